"""Ctrl-C and other requests to end: at whatever moment they come, the end is orderly, said in a line, and soon."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trpo
from benchmarks.fault_processes import Process, start
from benchmarks.fault_signals import BOUND, CASES, inject
from trpo.envs.host.closing import close_all
from trpo.envs.host.families import signals_held
from trpo.runs.interrupts import Interrupted, Stop, graceful_stop, number_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
SMALL = trpo.Config(
    steps=10**7,
    fragment=16,
    env=trpo.EnvConfig(count=8),
    policy=trpo.PolicyConfig(hidden=(8,)),
    value=trpo.ValueConfig(hidden=(8,)),
)
HEED = "from trpo.runs.interrupts import *\nheed_signals()\nbegin_work()\n"


@pytest.fixture(autouse=True)
def _ctrl_c_as_in_a_terminal() -> Iterator[None]:
    """What a shell starts in the background ignores it, the test session included."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start commands, or programs given as text, of which nothing is left after the test."""
    begun: list[Process] = []

    def run(*arguments: Any, program: str = "", options: tuple[str, ...] = ("-m", "trpo")) -> Process:
        begun.append(start(arguments, tmp_path, ("-c", program) if program else options))
        return begun[-1]

    yield run
    for each in begun:
        each.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_are_loaded(number: int, launch: Callable[..., Process]) -> None:
    started = launch("train", "probe:both", options=("-X", "importtime", "-m", "trpo"))
    assert started.says(" tyro"), started.output
    started.send(number)
    ending = started.finish()
    assert ending.wrong(128 + number, says="trpo: interrupted") == ""


def test_a_signal_that_is_caught_ends_the_process_all_the_same(launch: Callable[..., Process]) -> None:
    """Once it has had some time: the line and the exit code are those of the signal."""
    caught = (
        "while True:\n    try:\n        import time; print('ready', file=__import__('sys').stderr); time.sleep(600)\n"
    )
    started = launch(program=f"{HEED}{caught}    except BaseException:\n        pass\n")
    assert started.says("ready")
    started.send(signal.SIGTERM)
    ending = started.finish(60)
    assert ending.wrong(143, says="trpo: interrupted by SIGTERM\n") == ""


def test_what_follows_from_a_signal_is_not_what_ended_the_command(launch: Callable[..., Process]) -> None:
    """Such as an import that it has broken; and neither is a command done that it has ended."""
    ending = (
        "from trpo.cli import main\nimport signal\ndef work(arguments):\n    try:\n        signal.raise_signal(2)\n"
        "    except KeyboardInterrupt as error:\n        {}\n"
        "main.COMMANDS['plot'] = work\nimport sys; sys.argv = ['trpo', 'plot']\nmain.entry_point()\n"
    )
    for rest in ("raise ImportError('numpy')", "return 0"):
        found = launch(program=HEED + ending.format(rest)).finish(60)
        assert found.wrong(130) == ""
        assert found.err == "trpo: interrupted\n"


def test_a_signal_between_resuming_and_the_first_iteration(
    launch: Callable[..., Process], here: Callable[..., Any], tmp_path: Path
) -> None:
    flags = ["--policy.hidden", "8", "--value.hidden", "8", "--fragment", "16", "--env.count", "8", "--quiet"]
    assert here("train", "probe:both", "--steps", 256, "--out", "r", *flags).returncode == 0
    started = launch("resume", "r", "--steps", 10**9)
    assert started.says("resuming"), started.output
    started.send(signal.SIGINT)
    ending = started.finish()
    assert ending.wrong(130, says="trpo: interrupted") == ""
    newest = max(int(path.name) for path in (tmp_path / "r" / "checkpoints").iterdir())
    assert newest <= 3  # a signal may come after the next iteration began
    assert (tmp_path / "r" / "metrics.jsonl").read_text().count("\n") == newest


def test_the_first_signal_waits_for_an_iteration_if_there_was_one() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with graceful_stop() as stop:
        with pytest.raises(Interrupted, match=r"^interrupted by SIGTERM$") as caught:
            signal.raise_signal(signal.SIGTERM)
        assert number_of(caught.value) == signal.SIGTERM
        assert stop.raised
    with graceful_stop() as stop:
        stop.iterating = True
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match=r"^interrupted by SIGTERM$"):
            stop.check()
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
        stop.saving()
        signal.raise_signal(signal.SIGINT)  # nothing interrupts the last checkpoint
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_hang_up_that_is_ignored_or_another_s_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for handler in (signal.SIG_IGN, lambda *_: None):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with graceful_stop():
                assert signal.getsignal(signal.SIGHUP) is handler
        finally:
            signal.signal(signal.SIGHUP, before)


def test_training_in_python_is_interrupted_and_leaves_handlers_alone(tmp_path: Path) -> None:
    """In the third iteration; what was finished before is saved, and the user's handlers are as they were."""
    seen: list[int] = []

    class Signalling(trpo.envs.host.probes.Probe):
        def __init__(self) -> None:
            super().__init__("endless")

        def step(self, action: Any) -> Any:
            seen.append(1)
            if len(seen) == 2 * SMALL.batch + 5:
                signal.raise_signal(signal.SIGINT)
            return super().step(action)

    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    mine = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"^interrupted; checkpoint of iteration 3 is in"):
            trpo.train(Signalling, config=SMALL, out=tmp_path / "r", quiet=True)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert threading.active_count() >= 1


def test_training_in_a_thread_sets_no_handlers() -> None:
    found: list[Any] = []

    def work() -> None:
        with graceful_stop() as stop:
            found.extend([stop, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(found[0], Stop)
    assert found[1] is signal.default_int_handler


def test_signals_are_held_back_while_a_process_starts() -> None:
    reached = []

    def begin() -> None:
        with signals_held():
            signal.raise_signal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(signal.pthread_sigmask(signal.SIG_BLOCK, []) >= {signal.SIGINT, signal.SIGTERM})

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert reached == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}


def test_closing_that_never_ends_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other environments are closed."""
    monkeypatch.setattr("trpo.envs.host.closing.GRACE", 0.2)
    closed = []

    class Environment:
        def __init__(self, hangs: bool) -> None:
            self.hangs = hangs

        def close(self) -> None:
            while self.hangs:
                with contextlib.suppress(Exception):
                    time.sleep(100)
            closed.append(self)

    before = signal.getsignal(signal.SIGURG)
    with pytest.warns(UserWarning, match="environment E did not close within"):
        close_all([Environment(True), Environment(False), Environment(True)], "E")
    assert len(closed) == 1
    assert signal.getsignal(signal.SIGURG) is before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close_all([Environment(False)], "E")


TWO = """
import sys, numpy as np, time
from trpo.envs.names import make_envs
envs = make_envs({env!r}, 6, 2)
envs.reset(list(range(6)))
for _ in range(3):
    envs.step(np.zeros(6, int))
print("ready", file=sys.stderr)
"""


def test_nothing_is_left_when_all_processes_are_killed_at_once(launch: Callable[..., Process]) -> None:
    """No memory either: it has no name any more once every worker has it."""
    started = launch(program=TWO.format(env="probe:endless") + "time.sleep(600)")
    assert started.says("ready"), started.output
    assert len(started.workers()) == 2
    started.send(signal.SIGKILL, everything=True)
    assert started.finish().wrong(-9) == ""
    assert started.shared == set()


def test_workers_that_stop_or_do_not_hear_are_ended(launch: Callable[..., Process]) -> None:
    """When environments are closed, when they never were, and when the parent was killed."""
    # Stopped when the parent dies, the system lets them go on; who is stopped after that, nobody does.
    stop = (
        "import os, signal\nfor p in envs._processes: os.kill(p.pid, signal.SIGSTOP); os.waitpid(p.pid, os.WUNTRACED)\n"
    )
    closes = "began = time.monotonic(); envs.close(); print(f'took {time.monotonic() - began}', file=sys.stderr)"
    for last in (closes, "", "os.kill(os.getpid(), 9)"):
        started = launch(program=TWO.format(env="probe:endless") + stop + last)
        ending = started.finish(120)
        assert ending.wrong(-9 if "kill(" in last else 0) == "", last
        if last is closes:
            assert float(ending.err.split("took ")[1]) < BOUND


def test_a_signal_to_everything_ends_no_worker(launch: Callable[..., Process]) -> None:
    """Not even in its first moments: they end when the parent says so, and say nothing themselves."""
    program = (
        f"{HEED}import sys\ntry:\n    from trpo.envs.names import make_envs\n    make_envs('probe:endless', 4, 2)\n"
        "except KeyboardInterrupt:\n    print('stopped', file=sys.stderr)\nsys.exit(over(130))\n"
    )
    started = launch(program=program)
    assert started.until(lambda: len(started.members()) > 2), started.output
    started.send(signal.SIGINT, everything=True)
    ending = started.finish(60)
    assert ending.wrong(130) == ""
    assert ending.err in ("stopped\n", "trpo: interrupted\n")  # the latter where a busy machine takes too long


def test_what_an_environment_starts_in_a_worker_hears_signals() -> None:
    """A worker does not; a program, or a fork, that it starts has the handlers of any other."""

    def make() -> Any:
        import multiprocessing
        import signal
        import subprocess
        import sys

        from trpo.envs.host.probes import Probe

        class Starting(Probe):
            def close(self) -> None:
                program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                fork = multiprocessing.get_context("fork").Process(target=signal.pause)
                fork.start()
                program.terminate()
                fork.terminate()
                fork.join(30)
                assert (program.wait(30), fork.exitcode) == (-signal.SIGTERM, -signal.SIGTERM)
                self.heard = True

            def snapshot(self) -> Any:
                self.close()
                return self.heard

        return Starting("endless")

    envs = trpo.make_envs(make, 1, 1)
    try:
        envs.reset([0])
        assert envs.snapshot() == [{"layers": [True]}]
    finally:
        envs.close()


def test_a_fork_of_a_process_that_has_computed_is_told_so(tmp_path: Path) -> None:
    """In place of waiting for ever; what needs NumPy alone works."""
    agent = trpo.make_agent("probe:action", SMALL)
    agent.act(np.zeros(1, np.float32))
    fresh = trpo.make_agent("probe:action", SMALL)
    said = tmp_path / "said"

    def work() -> None:
        agent.act(np.zeros(1, np.float32))
        calls = (
            lambda: trpo.train("probe:action", config=SMALL),
            lambda: next(trpo.iterations("probe:action", agent)),
            lambda: agent.evaluate(1),
            fresh.actor,
        )
        for call in calls:
            try:
                call()
            except RuntimeError as error:
                with said.open("a") as file:
                    file.write(f"{error}\n")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns too
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
    process.join(60)
    process.kill()
    process.join()
    assert said.read_text().count("was forked from one in which JAX had computed") == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_signals_at_random_moments(name: str) -> None:
    for seed in range(3):
        assert inject(name, seed) == "", f"seed {seed}, {sys.version}"
