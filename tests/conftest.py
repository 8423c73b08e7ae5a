"""What every test runs under: annotations are checked, and nothing broadcasts by accident.

The import hook must come before the first import of ``trpo``, so it lives here and nowhere else.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jaxtyping
import strict_types

# Many tests and the processes that they start compile the same functions: once is enough for a whole session.
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker shares its parent's
    _cache = tempfile.mkdtemp(prefix="trpo-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
if "XDG_STATE_HOME" not in os.environ or not os.environ["XDG_STATE_HOME"].startswith(tempfile.gettempdir()):
    _state = tempfile.mkdtemp(prefix="trpo-tests-state-")  # which runs were trained here is none of the user's notes
    atexit.register(shutil.rmtree, _state, ignore_errors=True)
    os.environ["XDG_STATE_HOME"] = _state
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# All that states shapes. What steps environments, reads files and speaks does not, is called most, and mypy reads it:
# checking it as well would take a third of the time.
PACKAGE = Path(find_spec("trpo").submodule_search_locations[0])  # type: ignore[union-attr, index]
PLAIN_PYTHON = {"cli", "deploy", "envs.host", "report", "runs", "settings"}
_rooms = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for path in PACKAGE.rglob("*.py")}
_checked = [room for room in sorted(_rooms) if not any(f"{room}.".startswith(f"{plain}.") for plain in PLAIN_PYTHON)]
strict_types.watch()
jaxtyping.install_import_hook([f"trpo.{room}" for room in _checked if not room.endswith("__")], "strict_types.check")

PLAIN = "--xla_cpu_use_fusion_emitters=false"
if "slow" not in " ".join(sys.argv):
    # The tests compile hundreds of tiny programs: compiling them quickly halves the time. Learning runs want fast code.
    _flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if version("jaxlib").startswith("0.10."):  # halves it once more; a flag that XLA does not know ends the process
        _flags += f" {PLAIN} --xla_cpu_parallel_codegen_split_count=1"  # the second a tenth: other cores have tests
    os.environ.setdefault("XLA_FLAGS", _flags)

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def _no_implicit_broadcasting(request: pytest.FixtureRequest) -> Iterator[None]:
    """``[3] + [2, 3]`` is an error, except under ``@pytest.mark.rank_promotion`` (third-party code that does it)."""
    allowed = request.node.get_closest_marker("rank_promotion") is not None
    with jax.numpy_rank_promotion("allow" if allowed else "raise"):
        yield


LIMIT = 600.0
"""Seconds that a test, its setup and its teardown may each take, on a busy machine; a slow one twelve times as long."""
_stderr = 2


@pytest.hookimpl(wrapper=True)
def _limited(item: pytest.Item) -> Iterator[None]:
    """Fail what takes too long, and say where every thread is; what does not even listen ends the process."""
    limit = LIMIT * (12 if item.get_closest_marker("slow") else 1)

    def too_long(*_: Any) -> None:
        faulthandler.dump_traceback(_stderr)
        pytest.fail(f"took longer than {limit:g} s")

    if not hasattr(signal, "setitimer"):  # Windows
        return (yield)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, limit, 10)  # and again, should somebody swallow it
    faulthandler.dump_traceback_later(limit + 60, exit=True, file=_stderr)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run what is marked ``usual_compiler`` in a process whose loops are fused as users' are."""
    flags = os.environ.get("XLA_FLAGS", "")
    if pyfuncitem.get_closest_marker("usual_compiler") is None or PLAIN not in flags:
        return None
    from tests.helpers import run_process

    environment = {**os.environ, "XLA_FLAGS": flags.replace(PLAIN, "")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    done = run_process(command, env=environment, cwd=pyfuncitem.config.rootpath)
    assert done.returncode == 0, done.stdout + done.stderr
    return True


def pytest_runtest_logstart() -> None:
    """Check the first calls of every function anew, before a test and its fixtures."""
    strict_types.begin()


pytest_runtest_setup = pytest_runtest_call = pytest_runtest_teardown = _limited


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """End the processes that a test has started, with all that they have started."""
    yield
    from tests.helpers import end_processes

    end_processes()


LARGE = 1.4 * 2**30
"""Bytes of memory from which a process gives up what it can after every test."""


def _give_up_programs() -> None:
    """Forget compiled programs; the memory that is free then goes back, half of which the allocator would keep."""
    from trpo import programs

    programs.forget()
    jax.clear_caches()
    gc.collect()
    _give_back()


def _give_back() -> None:
    with contextlib.suppress(OSError, TypeError, AttributeError):  # GNU's C library
        ctypes.CDLL(None).malloc_trim(0)


def _memory() -> int:
    """Return this process's memory in bytes, 0 where the system does not tell in this way."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@pytest.fixture(autouse=True, scope="module")
def _programs_do_not_pile_up() -> Iterator[None]:
    """Forget compiled programs after each file: each has memory mappings, of which a process may have 65,530 or so.

    Beyond them the compiler aborts, or crashes while it writes to its cache.
    """
    yield
    _give_up_programs()


@pytest.fixture(autouse=True)
def _memory_is_bounded() -> Iterator[None]:
    yield
    if _memory() > LARGE:
        _give_back()
    if _memory() > LARGE:
        _give_up_programs()


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision, for comparisons with dense algebra."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run a command in this process, from an empty directory: the same code but for the interpreter's start."""
    from trpo.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        try:
            code: Any = main([str(a) for a in arguments])
        except SystemExit as error:
            code = error.code
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


def pytest_configure(config: pytest.Config) -> None:
    global _stderr
    _stderr = os.dup(2)  # the real one: nothing is captured now
    config.addinivalue_line("markers", "usual_compiler: what is compiled as users' is, in a process of its own")
    config.addinivalue_line("markers", "rank_promotion: third-party code under test broadcasts across ranks")
