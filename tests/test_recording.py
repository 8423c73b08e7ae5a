"""Videos: right length and speed, no display, nothing left behind, and clear mistakes."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import trpo
from tests.helpers import run_process
from trpo.report import recording
from trpo.report.recording import default_path, headless_backend, record
from trpo.report.video import GifWriter


class Clock(gym.Env):
    """An episode of ``length`` steps whose picture is the time: one grey for each step."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(
        self, length: int = 6, fps: int = 10, fails_at: int | None = None, render_mode: str | None = "rgb_array"
    ):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self.render_mode = render_mode
        self.length, self.fails_at, self.time = length, fails_at, 0
        self.actions: list[float] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        self.actions.append(float(action[0]))
        if self.time == self.fails_at:
            raise ArithmeticError("unstable")
        return np.zeros(1, np.float32), 0.0, False, self.time == self.length, {}

    def render(self) -> Any:
        return np.full((9, 15, 3), 10 * self.time, np.uint8)


def clock_agent(**settings: Any) -> tuple[trpo.Agent, list[Clock]]:
    made: list[Clock] = []

    def make() -> Clock:
        made.append(Clock(**settings))
        return made[-1]

    return trpo.make_agent(make), made


def frames_of(path: Path) -> list[tuple[np.ndarray, int]]:
    """Frames and how many milliseconds each is shown."""
    with Image.open(path) as image:
        frames = []
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            frames.append((np.asarray(image.convert("RGB")), image.info["duration"]))
        return frames


def test_hopper_without_a_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    out = record(trpo.make_agent("Hopper-v5"), tmp_path / "hopper.gif", max_frames=20, episodes=4)
    frames = frames_of(out)
    assert len(frames) == 20
    first, last = frames[0][0], frames[-1][0]
    assert first.std() > 10  # a picture, not a blank
    assert (first != last).any()
    assert {duration for _, duration in frames} == {40}  # 125 steps a second, every fifth is written
    assert [path.name for path in tmp_path.iterdir()] == ["hopper.gif"]


def test_every_frame_from_reset_to_the_end_is_shown_in_real_time(tmp_path: Path) -> None:
    agent, _ = clock_agent(length=5, fps=20)
    frames = frames_of(record(agent, tmp_path / "clock.gif", episodes=2))
    assert [int(frame[0, 0, 0]) for frame, _ in frames] == [0, 10, 20, 30, 40, 50] * 2
    assert [duration for _, duration in frames] == [50] * 12


def test_fast_simulations_keep_their_speed(tmp_path: Path) -> None:
    agent, _ = clock_agent(length=20, fps=70)
    frames = frames_of(record(agent, tmp_path / "clock.gif"))
    assert [int(frame[0, 0, 0]) for frame, _ in frames][:4] == [0, 30, 60, 90]
    shown = sum(duration for _, duration in frames[:7])
    assert shown == pytest.approx(1000 * 21 / 70, abs=10)


def test_rounding_of_frame_times_does_not_add_up(tmp_path: Path) -> None:
    writer = GifWriter(tmp_path / "a.gif", (4, 4), 30)
    for i in range(60):
        writer.add(np.full((4, 4, 3), i, np.uint8))
    writer.close()
    assert sum(duration for _, duration in frames_of(tmp_path / "a.gif")) == pytest.approx(2000, abs=10)


def test_stops_at_max_frames_in_an_endless_environment(tmp_path: Path) -> None:
    agent, _ = clock_agent(length=10**9)
    assert len(frames_of(record(agent, tmp_path / "clock.gif", max_frames=3))) == 3


def test_what_is_cut_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    out = record(clock_agent(length=10**9)[0], tmp_path / "a.gif", episodes=2, max_steps=4, tell=said.append)
    assert len(frames_of(out)) == 10  # each with the frame after its last step
    assert said == [f"episode {i} was cut at 4 steps (max_steps)" for i in (1, 2)]
    said.clear()
    record(clock_agent(length=10**9)[0], tmp_path / "a.gif", max_frames=3, tell=said.append)
    assert said == ["the recording was cut at 3 frames, before the last episode had ended"]
    said.clear()
    record(clock_agent(length=6)[0], tmp_path / "a.gif", max_frames=7, max_steps=6, tell=said.append)
    assert said == []


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("step", (np.zeros(1), 0.0, False, {}), "step returned a tuple of 4"),
        ("step", (np.zeros(1), None, False, False, {}), "reward is None"),
        ("step", (np.zeros(2), 0.0, False, False, {}), "observation has shape"),
        ("reset", np.zeros(1), "reset returned an array"),
    ],
)
def test_wrong_answers_are_named(tmp_path: Path, name: str, answer: Any, words: str) -> None:
    agent, _ = clock_agent()

    def make() -> Clock:
        env = Clock()
        setattr(env, name, lambda *_, **__: answer)
        return env

    with pytest.raises(trpo.EnvironmentFailure, match=f"^environment make: {words}"):
        record(dataclasses.replace(agent, env=make), tmp_path / "a.gif")


def test_a_picture_that_fails_names_environment_and_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setattr(Clock, "render", lambda self: 1 / 0)
    with pytest.raises(
        trpo.EnvironmentFailure, match=r"make cannot be drawn: ZeroDivisionError.*; MUJOCO_GL=glfw: unset"
    ):
        record(clock_agent()[0], tmp_path / "a.gif")


def test_an_opengl_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    agent = trpo.train(
        "Hopper-v5", config=trpo.Config(steps=8, fragment=1, env=trpo.EnvConfig(count=8)), out=tmp_path / "r"
    )
    assert agent.spec.id == "Hopper-v5"
    done = subprocess.run(
        [sys.executable, "-m", "trpo", "record", tmp_path / "r"],
        env=os.environ | {"MUJOCO_GL": "nonsense"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "'Hopper-v5' cannot be made: RuntimeError: invalid value" in done.stderr
    assert "MUJOCO_GL=nonsense: unset it" in done.stderr


def test_deterministic_and_sampled_actions(tmp_path: Path) -> None:
    agent, made = clock_agent()
    for seed, deterministic in ((0, True), (1, True), (0, False), (0, False), (1, False)):
        record(agent, tmp_path / "clock.gif", deterministic=deterministic, seed=seed)
    greedy, greedy_again, sampled, same, other = (env.actions for env in made[1:])
    assert greedy == greedy_again
    assert len(set(greedy)) == 1
    assert len(set(sampled)) > 1
    assert sampled == same != other


def test_default_file_follows_the_installed_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, _ = clock_agent()
    out = record(agent, run=tmp_path)
    assert out == default_path(tmp_path)
    assert out.stat().st_size > 0
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert default_path(tmp_path) == tmp_path / "video.gif"


def test_mp4(tmp_path: Path) -> None:
    agent, _ = clock_agent()
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        with pytest.raises(ValueError, match=r"pip install 'trpo\[video\]'"):
            record(agent, tmp_path / "clock.mp4")
        return
    out = record(agent, tmp_path / "clock.mp4")
    assert out.read_bytes()[4:8] == b"ftyp"
    ffmpeg = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    said = run_process([ffmpeg, "-i", str(out), "-f", "null", "-"]).stderr
    assert "14x8" in said  # even sizes: what players need
    assert "10 fps" in said
    assert "frame=    7" in said


@pytest.mark.parametrize("directory", ["run:1", "-d", "a%03d b"])
@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, suffix: str) -> None:
    """Not a protocol, an option or a pattern of ffmpeg's; nor is there a file where a path was misunderstood."""
    if suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        suffix = ".gif"
    monkeypatch.chdir(tmp_path)
    out = record(clock_agent()[0], Path(directory, f"-v:1{suffix}"))
    assert out.stat().st_size > 100
    assert [str(path) for path in Path().rglob("*") if path.is_file()] == [str(out)]


def test_mp4_without_its_extra_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'trpo\[video\]'; a file that ends in \.gif needs nothing"):
        record(clock_agent()[0], tmp_path / "clock.mp4")


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    if suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        suffix = ".gif"
    out = tmp_path / f"video{suffix}"
    out.write_bytes(b"old")
    agent, _ = clock_agent(fails_at=3)
    with pytest.raises(trpo.EnvironmentFailure, match="raised ArithmeticError: unstable"):
        record(agent, out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_bytes() == b"old"


def test_environments_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'probe:action' offers no images to record: its render modes are none"):
        record(trpo.make_agent("probe:action"), tmp_path / "a.gif")
    agent, _ = clock_agent(render_mode=None)
    with pytest.raises(ValueError, match="pass render_mode='rgb_array' in the function that makes it"):
        record(agent, tmp_path / "a.gif")


def test_missing_drawing_package_names_the_command(tmp_path: Path) -> None:
    agent, out = trpo.make_agent("CartPole-v1"), tmp_path / "cartpole.gif"
    if importlib.util.find_spec("pygame") is None:
        with pytest.raises(
            ValueError, match=r"'CartPole-v1' needs a package.*: pip install 'gymnasium\[classic-control\]'"
        ):
            record(agent, out)
    else:
        assert len(frames_of(record(agent, out, max_frames=3))) == 3


def test_envpool_is_drawn_by_gymnasium() -> None:
    agent = trpo.make_agent("Hopper-v5")
    spec = dataclasses.replace(agent.spec, id="envpool:Hopper-v5")
    env = recording.make_drawn(spec.id, agent.config.env, spec.id)
    assert env.spec is not None
    assert env.spec.id == "Hopper-v5"
    env.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "out: give a file"),
        ({"out": Path("a.webm")}, r"out='a\.webm': must end in \.mp4 or \.gif"),
        ({"out": Path("a.gif"), "episodes": 0}, "episodes=0: must be ≥ 1"),
        ({"out": Path("a.gif"), "max_frames": 0}, "max_frames=0: must be ≥ 1"),
        ({"out": Path("a.gif"), "fps": 0.0}, r"fps=0\.0: must be > 0"),
    ],
)
def test_mistakes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(clock_agent()[0], **arguments)


def test_a_backend_that_the_user_chose_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    assert headless_backend() == "osmesa"
    assert os.environ["SDL_VIDEODRIVER"] == "x11"


def test_no_backend_at_all_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(recording, "_working_backend", lambda: None)
    with pytest.raises(ValueError, match="neither EGL nor OSMesa works; install one"):
        record(trpo.make_agent("Hopper-v5"), tmp_path / "a.gif")
    assert record(clock_agent()[0], tmp_path / "b.gif").exists()  # needs no OpenGL


def test_plots_and_recording_load_no_heavy_package_on_import() -> None:
    code = (
        "import sys, trpo.report.plots, trpo.report.recording; "
        "assert not {'matplotlib', 'PIL', 'imageio_ffmpeg', 'pygame', 'glfw'} & set(sys.modules)"
    )
    assert run_process([sys.executable, "-c", code]).returncode == 0
