"""The tasks beyond vectors and Gaussians: their environments are what they say, and their table says what is so."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

beyond = pytest.importorskip("benchmarks.beyond")
tables = pytest.importorskip("benchmarks.beyond_tables")
tasks = pytest.importorskip("benchmarks.tasks")


def test_the_best_policy_of_mixed_actions_gets_what_is_said() -> None:
    env = tasks.Mixed()  # by its class: other tests register tasks of the same names
    grid = np.linspace(-1, 1, 2001)
    best, total, ended = 0.0, 0.0, False
    seen, _ = env.reset(seed=3)
    while not ended:
        s = float(seen[0])
        gains = [b - (grid - t) ** 2 for b, t in ((s, s / 2), (-s, -s / 2), (0.25, s))]  # the table in its docstring
        best += max(gain.max() for gain in gains)
        choice = int(np.argmax([gain.max() for gain in gains]))
        number = np.array([grid[np.argmax(gains[choice])]], np.float32)
        seen, reward, ended, _, _ = env.step({"choice": choice, "number": number})
        total += float(reward)
    assert abs(total - best) < 1e-4
    assert abs(total - tasks.OPTIMUM) < 1e-4


@pytest.mark.parametrize("masked", [True, False])
def test_the_greatest_valid_action_is_best(masked: bool) -> None:
    env = gym.make("Valid-v0", masked=masked)
    rng = np.random.default_rng(0)
    seen, info = env.reset(seed=1)
    ended, total, refused = False, 0.0, 0
    while not ended:
        assert seen.sum() == tasks.VALID
        assert ("action_mask" in info) == masked
        if masked:
            np.testing.assert_array_equal(info["action_mask"], seen)
        greatest, other = int(np.flatnonzero(seen)[-1]), int(rng.integers(64))
        action = greatest if rng.random() < 0.5 else other
        refused += int(not seen[action])
        seen, reward, ended, _, info = env.step(action)
        assert reward == float(action == greatest)
        total += float(reward)
    assert 0 < total < 50
    assert info["refused"] == refused > 0


def test_all_of_the_state_of_a_task_of_popgym() -> None:
    pytest.importorskip("popgym")
    env = gym.make("Observed-v0", task="popgym-RepeatPreviousEasy-v0")
    seen, _ = env.reset(seed=0)
    cards = [int(seen[0][-1])]
    for _ in range(20):
        seen, reward, *_ = env.step(cards[-4] if len(cards) >= 4 else 0)
        assert reward == (1 / 48 if len(cards) >= 4 else 0)
        cards.append(int(seen[0][-1]))


def _write(row: str, seed: int, returns: dict[str, float], out: Path) -> None:
    for job in beyond.jobs_of(row, seed, out):
        if job.variant in returns:
            job.path.parent.mkdir(parents=True, exist_ok=True)
            job.path.write_text(json.dumps({"deterministic": {"mean_return": returns[job.variant]}}))


def test_a_row_says_what_was_run_and_whether_it_is_enough(tmp_path: Path) -> None:
    def shown(row: str) -> list[str]:
        title = beyond.ROWS[row]["title"]
        lines = tables.section(tmp_path)
        return lines[next(i for i, line in enumerate(lines) if line.startswith(f"| {title} |")) :]

    assert "not run" in shown("pendulum-positions")[0]
    for seed in range(5):
        assert "✓" not in shown("pendulum-positions")[0]  # not before all are there
        _write("pendulum-positions", seed, {"gru": -180.0 - seed}, tmp_path)
    assert "| -180 / -181 / -182 / -183 / -184 | **-182** | ≥ -200 ✓ |" in shown("pendulum-positions")[0]
    assert "not run" in shown("pendulum-positions")[1]
    for seed, score in enumerate([1.0, 1.0, 0.98, 1.0, 0.0]):
        _write("chain-32", seed, {"gru": score}, tmp_path)
        _write("chain-128", seed, {"gru": score}, tmp_path)
    assert "✓" not in shown("chain-32")[0]
    assert "≥ 1 on 3 of 5 ✓" in shown("chain-128")[0]
    for seed in range(5):
        _write("popgym-pendulum", seed, {"gru": 0.94, "full": 0.98}, tmp_path)
        _write("repeat-previous", seed, {"gru": 0.94, "full": 1.0}, tmp_path)
    assert "≥ 0.95 of “full” ✓" in shown("popgym-pendulum")[0]
    assert "✓" not in shown("repeat-previous")[0]
    assert tables.at_least([-104.0], [-100.0], 0.95)
    assert not tables.at_least([-106.0], [-100.0], 0.95)


def test_every_run_has_a_file_of_its_own(tmp_path: Path) -> None:
    jobs = beyond.plan(list(beyond.ROWS), None, tmp_path)
    assert len({job.path for job in jobs}) == len(jobs)
    assert {job.seed for job in jobs if "Pong" in job.task} == {0, 1}
