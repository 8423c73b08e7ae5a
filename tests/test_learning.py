"""Learning from scratch on real tasks, through the command line: minutes each, so marked slow.

``pytest -m slow tests/test_learning.py`` (add ``-k CartPole`` for one task).
"""

import json
import sys

import numpy as np
import pytest

from tests.helpers import run_process
from trpo.runs.sinks import read_metrics


def train_and_evaluate(task, steps, seed, out):
    run = out / f"{task}-s{seed}"
    trpo = [sys.executable, "-m", "trpo"]
    train = [*trpo, "train", task, "--steps", str(steps), "--seed", str(seed), "--out", str(run), "--quiet"]
    assert run_process(train, timeout=7000).returncode == 0
    evaluate = [*trpo, "evaluate", str(run), "--episodes", "20", "--json"]
    printed = run_process(evaluate).stdout
    for record in read_metrics(run):
        if record["result"] == "accepted":
            assert record["mean_kl"] <= record["max_kl"]
    return json.loads(printed)["mean_return"]


@pytest.mark.slow
def test_cartpole(tmp_path):
    # One run in ten ends a little below 475 (442 and 459 of seeds 0-9, before and after a change of the shuffling).
    returns = [train_and_evaluate("CartPole-v1", 100_000, seed, tmp_path) for seed in (0, 1, 2)]
    assert np.mean(returns) >= 475
    assert min(returns) >= 400


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pendulum(seed, tmp_path):
    assert train_and_evaluate("Pendulum-v1", 200_000, seed, tmp_path) >= -250


@pytest.mark.slow
def test_hopper(tmp_path):
    assert np.mean([train_and_evaluate("Hopper-v5", 300_000, seed, tmp_path) for seed in (0, 1, 2)]) >= 1800


@pytest.mark.slow
def test_halfcheetah(tmp_path):
    assert np.mean([train_and_evaluate("HalfCheetah-v5", 500_000, seed, tmp_path) for seed in (0, 1, 2)]) >= 3000
