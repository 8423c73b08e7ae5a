"""The claim "rollouts": holds, and fails for plausible mistakes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo.rollout.vine
import trpo.vine
from trpo.rollout.vine import Start, follow
from trpo.theory.claims.rollouts import claim, measure
from trpo.theory.shared.ensemble import ensemble

SIZE = 16


@pytest.fixture
def failing(monkeypatch, x64):
    """Which checks fail now: a function, to be called after patching. ``run`` compiles afresh every time."""

    def one_shape(size, seed, sharpest):
        return ensemble(size, seed, ((4, 2, 3),), sharpest)

    monkeypatch.setattr(measure, "ensemble", one_shape)
    return lambda: {check.name for check in claim.run(SIZE).checks if not check.passed}


def test_holds(x64, tmp_path):
    outcome = claim.run(SIZE, tmp_path)
    assert outcome.passed, [check for check in outcome.checks if not check.passed]
    assert all(math.isfinite(check.worst) for check in outcome.checks)
    assert (tmp_path / outcome.pictures[0].file).stat().st_size > 0


def test_independent_noise_is_noticed(failing, monkeypatch):
    """Each branch of a root with random numbers of its own: estimates stay unbiased, but equal actions differ."""

    def apart(source, act, value, start, first, noise, keys, discount, branch_lambda):
        roots, k = first.shape
        spread = jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), (start.env, start.observation, start.reset))
        begin = Start(spread[0], spread[1], (), spread[2])
        keys = jax.vmap(lambda key: jax.random.split(key, k))(keys).reshape(-1)
        noise = jax.random.gumbel(keys[0], (len(noise), roots * k, noise.shape[-1]), noise.dtype)
        q, steps = follow(source, act, value, begin, first.reshape(-1, 1), noise, keys, discount, branch_lambda)
        return q.reshape(roots, k), steps

    monkeypatch.setattr(measure, "follow", apart)
    assert failing() == {"common random numbers"}


def test_missing_importance_weights_are_noticed(failing, monkeypatch):
    """All K sampled actions alike, whatever drew them."""
    original = trpo.vine.ratios

    def alike(distribution, roots):
        return original(distribution, roots) if roots.complete else jnp.full_like(roots.q, 1 / roots.q.shape[-1])

    monkeypatch.setattr(trpo.vine, "ratios", alike)
    assert failing() == {"self-normalised, from π", "self-normalised, from uniform"}


def test_branches_that_are_not_closed_are_noticed(failing, monkeypatch):
    """Nothing in place of V after the last step."""
    original = trpo.vine.branch_returns

    def cut(reward, alive, terminated, value, *others):
        return original(reward, alive, terminated, jnp.zeros_like(value), *others)

    monkeypatch.setattr(trpo.rollout.vine, "branch_returns", cut)
    another = {"surrogate, another V: unbiased, exact σ", "gradient, another V: unbiased, exact σ"}
    assert another <= failing()


def test_a_policy_left_out_of_the_sum_is_noticed(failing, monkeypatch):
    """Σ_a Q̂ in place of Σ_a π_θ Q̂ where all actions are there."""
    original = trpo.vine.ratios

    def alike(distribution, roots):
        return jnp.full_like(roots.q, 1 / roots.q.shape[-1]) if roots.complete else original(distribution, roots)

    monkeypatch.setattr(trpo.vine, "ratios", alike)
    assert {"exact Q, exact problem", "surrogate: unbiased, exact σ", "gradient: unbiased, exact σ"} <= failing()


def test_compositions_are_all_there_are():
    counts = measure.compositions(5, 3)
    assert len(counts) == len({tuple(row) for row in counts}) == math.comb(7, 2)
    assert (counts.sum(axis=1) == 5).all()
    assert np.array(counts).min() == 0
