"""``trpo watch``: what is shown is what the policy does, in a window or in text, which says why."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import trpo
from trpo.report.watching import watch
from trpo.runs.checkpoint import write_checkpoint
from trpo.runs.train import read_run

TINY: dict[str, Any] = {"policy": trpo.PolicyConfig(hidden=(4,)), "value": trpo.ValueConfig(hidden=(4,))}
CONFIG = trpo.Config(env=trpo.EnvConfig(count=1), **TINY)


def saved(env: Any, out: Path) -> Path:
    trpo.make_agent(env, dataclasses.replace(CONFIG, env=trpo.EnvConfig(env, count=1))).save(out)
    return out


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("CartPole-v1", tmp_path_factory.mktemp("runs") / "cartpole")


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that nobody sees."""
    monkeypatch.setenv("DISPLAY", ":none")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")


@pytest.mark.usefixtures("blind")
def test_text_tells_what_the_policy_does(cartpole: Path) -> None:
    told: list[str] = []
    live: list[str] = []
    assert watch(cartpole, episodes=2, seed=3, tell=told.append, live=live.append) == 2
    assert told[0] == "no window: there is no display (DISPLAY and WAYLAND_DISPLAY are not set); text instead"
    agent, env = trpo.load(cartpole), gym.make("CartPole-v1")
    for seed, line in zip((3, 4), told[1:], strict=True):
        (observation, _), total, done = env.reset(seed=seed), 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
            total, done = total + float(reward), terminated or truncated
        assert line == f"episode {seed - 2}: return {total:g}, {total:.0f} steps · checkpoint 0, 0 steps"
    first = env.reset(seed=3)[0]
    assert live[0].startswith(f"step 1 · return 1 · action {agent.act(first)} · observation {first[0]:.3g} ")
    cut: list[str] = []
    watch(cartpole, episodes=1, max_steps=2, deterministic=False, tell=cut.append)
    assert "2 steps (cut)" in cut[1]


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("follow", [True, False])
def test_a_newer_checkpoint_is_taken_between_episodes(follow: bool, tmp_path: Path) -> None:
    run = saved("probe:both", tmp_path / "r")
    state = read_run(run)[1]
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if text.startswith("episode 1"):
            write_checkpoint(run / "checkpoints", dataclasses.replace(state, iteration=7, steps=70))
            (run / "checkpoints" / "00000009").mkdir()  # being written, or removed, at this moment

    watch(run, episodes=2, follow=follow, tell=tell)
    assert told[1].endswith("checkpoint 0, 0 steps")
    assert told[2].endswith("checkpoint 7, 70 steps" if follow else "checkpoint 0, 0 steps")


@pytest.mark.usefixtures("blind")
def test_an_environment_s_own_text(tmp_path: Path) -> None:
    live: list[str] = []
    watch(saved("FrozenLake-v1", tmp_path / "r"), episodes=1, max_steps=3, tell=lambda text: None, live=live.append)
    assert all("SF" in text or "FF" in text for text in live)
    assert all("\n" in text for text in live)


@pytest.mark.usefixtures("display")
def test_environments_in_jax_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    watch(saved("jax-probe:both", tmp_path / "r"), episodes=1, tell=told.append)
    assert told[0] == "no window: environments in JAX are not drawn; text instead"
    assert "return" in told[1]


@pytest.mark.usefixtures("display")
def test_a_window_that_is_closed_ends_it(cartpole: Path) -> None:
    pygame = pytest.importorskip("pygame")
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if text.startswith("episode 1"):
            assert pygame.display.get_surface().get_size() == (600, 400)
            pygame.event.post(pygame.event.Event(pygame.QUIT))

    assert watch(cartpole, tell=tell) == 1
    assert told[0].startswith("episode 1")
    assert told[1] == "the window was closed"


@pytest.mark.usefixtures("display")
@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("CartPole-v1", "pip install 'gymnasium[classic-control]'"),
        ("probe:both", "its render modes are none"),
        ("InvertedPendulum-v5", "GLFW cannot open one with DISPLAY=:none"),
    ],
)
def test_why_there_is_no_window(env: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    told: list[str] = []
    watch(saved(env, tmp_path / "r"), episodes=1, tell=told.append)
    assert told[0].startswith("no window: ")
    assert words in told[0]
    assert told[1].startswith("episode 1")


@pytest.mark.usefixtures("blind")
def test_an_observation_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trpo.envs.host import probes

    run = saved("probe:both", tmp_path / "r")
    monkeypatch.setattr(probes.Probe, "_observation", lambda self: np.full(1, np.nan, np.float32))
    with pytest.raises(trpo.EnvironmentFailure, match="probe:both gave an observation that is not finite"):
        watch(run, episodes=1, tell=lambda text: None)


@pytest.mark.usefixtures("blind")
def test_the_command(cartpole: Path, here: Any) -> None:
    done = here("watch", cartpole, "--episodes", 1)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("episode 1: return ")
    for arguments, words in [
        (["nowhere"], "nowhere is not the directory of a run"),
        ([cartpole, "--episodes", "-1"], "episodes=-1: must be ≥ 0"),
        ([cartpole, "--max-steps", "0"], "max_steps=0: must be ≥ 1"),
        ([cartpole, "--checkpoint", "9"], "checkpoint='9': must be last, best or an iteration"),
        ([cartpole, "--follw"], "did you mean --follow?"),
    ]:
        done = here("watch", *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert words in done.stderr
