"""PITFALLS row 6: accepted ⇒ gain > 0 and KL ≤ δ; rejected ⇒ θ bit-identical. The brute force is a Python loop."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trpo

MAX_BACKTRACKS = 6


@partial(jax.jit, static_argnames="options")
def search(
    table: dict, params: jax.Array, step: jax.Array, max_kl: jax.Array, ratio: jax.Array, options: tuple = ()
) -> tuple:
    """Line search on L = a·u + b·u², D̄ = c·u² + d·|u|³ with u = Σ (θ − θ₀), made non-finite beyond |u| = ``edge``."""

    def evaluate(theta: jax.Array) -> trpo.Evaluation:
        u = jnp.sum(theta - params)
        surrogate = table["start"] + table["a"] * u + table["b"] * u**2
        kl = table["c"] * u**2 + table["d"] * jnp.abs(u) ** 3
        beyond = jnp.abs(u) > table["edge"]
        surrogate = jnp.where(beyond, table["surrogate_beyond"], surrogate)
        return trpo.Evaluation(surrogate, jnp.where(beyond, table["kl_beyond"], kl), 2 * kl, u)

    start = evaluate(params)
    new, info = trpo.line_search(evaluate, params, step, max_kl, start, ratio, MAX_BACKTRACKS, **dict(options))
    trials = jax.vmap(lambda j: evaluate(params + ratio**j * step))(jnp.arange(MAX_BACKTRACKS + 1))
    return new, info, start, trials, evaluate(new)


number = st.floats(-3, 3, width=32)
size = st.floats(2.0**-10, 8, width=32)
ends = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e30])


inputs = {
    "table": st.fixed_dictionaries(
        {
            "start": number,
            "a": number,
            "b": number,
            "c": size,
            "d": number.map(abs),
            "edge": st.floats(0.0, 8, width=32),
            "surrogate_beyond": ends,
            "kl_beyond": ends,
        }
    ),
    "step": st.floats(-4, 4, width=32),
    "max_kl": st.floats(2.0**-16, 1, width=32),
    "ratio": st.sampled_from([0.5, 0.8]),
}
examples = settings(max_examples=200, deadline=None, derandomize=True)


@examples
@given(**inputs)
def test_the_first_acceptable_trial_or_nothing(table: dict, step: float, max_kl: float, ratio: float) -> None:
    table = {k: np.float32(v) for k, v in table.items()}
    params = np.array([0.1, -0.7, 1e-12], np.float32)
    steps = np.array([step / 2, step / 4, step / 4], np.float32)
    new, info, start, trials, there = search(table, params, steps, np.float32(max_kl), np.float32(ratio))
    gains = np.asarray(trials.surrogate) - np.asarray(start.surrogate)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(trials.surrogate) & np.isfinite(trials.mean_kl)
        good = finite & (trials.surrogate > start.surrogate) & (trials.mean_kl <= np.float32(max_kl))
    if info.accepted:
        assert there.surrogate > start.surrogate
        assert there.mean_kl <= np.float32(max_kl)
        assert info.evaluation.surrogate == there.surrogate
        assert info.evaluation.mean_kl == there.mean_kl
        j = int(info.backtracks)
        np.testing.assert_allclose(info.fraction, ratio**j, rtol=1e-5)
        np.testing.assert_allclose(new, params + ratio**j * steps, rtol=1e-5, atol=1e-6)
        # Nothing before j was acceptable, rounding at the very boundary aside (the brute force rounds ρ^j once).
        clear = good & (gains > 1e-5) & (np.asarray(trials.mean_kl) < max_kl * (1 - 1e-4))
        assert not clear[:j].any()
    else:
        np.testing.assert_array_equal(np.asarray(new).view(np.int32), params.view(np.int32))
        assert info.fraction == 0
        assert info.backtracks == MAX_BACKTRACKS + 1
        assert info.evaluation.surrogate == start.surrogate
        clear = good & (gains > 1e-5) & (np.asarray(trials.mean_kl) < max_kl * (1 - 1e-4))
        edge = np.abs(np.abs(ratio ** np.arange(MAX_BACKTRACKS + 1) * step) - table["edge"]) < 1e-4
        assert not (clear & ~edge).any()


@examples
@given(**inputs)
def test_shrinking_by_the_measured_kl_keeps_the_same_promise(
    table: dict, step: float, max_kl: float, ratio: float
) -> None:
    """PITFALLS row 6: which trials are made is free, what may be accepted is not."""
    table = {k: np.float32(v) for k, v in table.items()}
    params = np.array([0.1, -0.7, 1e-12], np.float32)
    steps = np.array([step / 2, step / 4, step / 4], np.float32)
    options = (("use_measured_kl", True),)
    new, info, start, _, there = search(table, params, steps, np.float32(max_kl), np.float32(ratio), options)
    if info.accepted:
        assert there.surrogate > start.surrogate
        assert there.mean_kl <= np.float32(max_kl)
        np.testing.assert_allclose(new, params + np.asarray(info.fraction) * steps, rtol=1e-5, atol=1e-6)
        assert info.backtracks <= MAX_BACKTRACKS
    else:
        np.testing.assert_array_equal(np.asarray(new).view(np.int32), params.view(np.int32))
        assert info.fraction == 0
        assert info.backtracks == MAX_BACKTRACKS + 1


def exact(surrogate: float, kl: float) -> trpo.Evaluation:
    return trpo.Evaluation(*(jnp.asarray(x, jnp.float32) for x in (surrogate, kl, kl, 0.0)))


@pytest.mark.parametrize(
    ("kl", "surrogate", "fraction", "backtracks"),
    [
        (4.0, 1.0, 0.49, 1),  # 0.98 √(δ / D̄), just inside the boundary
        (1.02, 1.0, 0.98 / 1.02**0.5, 1),
        (9e3, 1.0, 0.98 / 90**0.5 / 10, 2),  # never by more than 10 at once: then D̄ is 90, and then on the boundary
        (0.5, 0.0, 0.5**7, 7),  # it is not the KL that is in the way: ρ, and after seven trials there is an improvement
        (math.nan, 1.0, 0.5, 1),  # nothing was measured: ρ
    ],
)
def test_the_measured_kl_says_how_far_to_shrink(kl: float, surrogate: float, fraction: float, backtracks: int) -> None:
    """D̄ = kl·u² at u of a step of length 1, or NaN at the full step; δ = 1, ρ = 1/2."""

    def evaluate(theta: jax.Array) -> trpo.Evaluation:
        measured = jnp.where(theta < 1, 0.5, kl) if math.isnan(kl) else kl * theta**2
        return trpo.Evaluation(jnp.where(theta < 0.01, 1.0, surrogate), measured, measured, measured)

    new, info = trpo.line_search(evaluate, jnp.zeros(()), jnp.ones(()), 1.0, exact(0, 0), 0.5, 10, True)
    assert (bool(info.accepted), int(info.backtracks)) == (True, backtracks)
    np.testing.assert_allclose([new, info.fraction], fraction, rtol=1e-5)


def test_how_far_it_goes_unless_told_otherwise() -> None:
    """ρ = 0.8, ten times, whatever the KL was."""
    evaluate = lambda theta: trpo.Evaluation(theta, 1e9 * theta, theta, theta)  # noqa: E731
    for factor, most in ((0.8**10, 10), (0.8**11, None)):
        bound = 1e9 * factor * 1.01
        _, info = trpo.line_search(evaluate, jnp.zeros(()), jnp.ones(()), bound, exact(0, 0))
        assert (bool(info.accepted), int(info.backtracks)) == (most is not None, most or 11)
        np.testing.assert_allclose(info.fraction, factor if most else 0, rtol=1e-5)


def run(evaluations: list[tuple[float, float]], max_kl: float = 1.0) -> tuple[np.ndarray, object]:
    """Search over trials whose evaluations are written down: θ = 0, step 1, ρ = ½."""
    surrogates, kls = (jnp.array(x, jnp.float32) for x in zip(*evaluations, strict=True))

    def evaluate(theta: jax.Array) -> trpo.Evaluation:
        j = jnp.round(-jnp.log2(theta)).astype(int)
        return trpo.Evaluation(surrogates[j], kls[j], kls[j], kls[j])

    new, info = trpo.line_search(evaluate, jnp.zeros(()), jnp.ones(()), max_kl, exact(0, 0), 0.5, len(evaluations) - 1)
    return np.asarray(new), info


def test_written_down_trials() -> None:
    nan, inf = math.nan, math.inf
    new, info = run([(nan, 0.1), (1.0, nan), (inf, 0.1), (1.0, inf), (-0.1, 0.1), (0.0, 0.1), (1.0, 1.01), (0.1, 1.0)])
    assert (new, int(info.backtracks), bool(info.accepted)) == (2.0**-7, 7, True)
    assert np.isnan(info.first_mean_kl) == np.False_  # the first trial's KL was finite; only its surrogate was not
    new, info = run([(1.0, 1.01), (0.0, 0.1), (nan, 0.1)])
    assert (new, int(info.backtracks), bool(info.accepted), bool(info.finite)) == (0.0, 3, False, False)
    new, info = run([(nan, nan), (-1.0, 0.1)])
    assert (bool(info.accepted), bool(info.finite)) == (False, True)
    new, info = run([(5.0, 0.5), (9.0, 0.1)])
    assert (new, int(info.backtracks)) == (1.0, 0)  # the first acceptable, not the best


def test_a_trial_with_a_non_finite_parameter_is_refused() -> None:
    def evaluate(theta: dict) -> trpo.Evaluation:
        return exact(1.0, 0.0)  # blind to the parameter that overflows

    params = {"a": jnp.array([3e38], jnp.float32)}
    new, info = trpo.line_search(evaluate, params, {"a": jnp.array([3e38], jnp.float32)}, 1.0, exact(0, 0), 0.5, 0)
    assert not info.accepted
    np.testing.assert_array_equal(new["a"], params["a"])
