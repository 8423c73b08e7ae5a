"""What every test runs under: annotations are checked, and nothing broadcasts by accident.

The import hook must come before the first import of ``trpo``, so it lives here and nowhere else.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping

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

jaxtyping.install_import_hook("trpo", "strict_types.check")

if "slow" not in " ".join(sys.argv):
    # The tests compile hundreds of tiny programs: compiling them quickly halves the time. Learning runs want fast code.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def _no_implicit_broadcasting(request: pytest.FixtureRequest) -> Iterator[None]:
    """``[3] + [2, 3]`` is an error, except under ``@pytest.mark.rank_promotion`` (third-party code that does it)."""
    allowed = request.node.get_closest_marker("rank_promotion") is not None
    with jax.numpy_rank_promotion("allow" if allowed else "raise"):
        yield


@pytest.fixture(autouse=True, scope="module")
def _programs_do_not_pile_up() -> Iterator[None]:
    """Forget compiled programs after each file: each has memory mappings, of which a process may have 65,530 or so.

    Beyond them the compiler aborts, or crashes while it writes to its cache.
    """
    yield
    from trpo.training import device

    device._programs.clear()
    jax.clear_caches()
    gc.collect()


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
    config.addinivalue_line("markers", "rank_promotion: third-party code under test broadcasts across ranks")
