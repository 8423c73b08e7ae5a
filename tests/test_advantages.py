"""GAE against its defining double sum; standardisation against weighted moments. PITFALLS rows 3 and 12."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo

T, E = 12, 3
GAMMA, LAMBDA = 0.9, 0.8
gae = jax.jit(trpo.gae)
standardise = jax.jit(trpo.standardise)


def fragment(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, T, E))
    kind = rng.choice(3, size=(T, E), p=(0.6, 0.2, 0.2))
    return {
        "reward": reward,
        "value": value,
        "next_value": next_value,
        "terminated": kind == 1,
        "truncated": kind == 2,
    }


def double_sum(data: dict[str, np.ndarray], gamma: float, lam: float) -> np.ndarray:
    """Â_t = Σ_{l ≥ 0} (γλ)^l δ_{t+l}, l running to the end of t's episode or of the data (arXiv:1506.02438, eq. 16)."""
    advantage = np.zeros((T, E))
    for t, e in np.ndindex(T, E):
        for s in range(t, T):
            future = 0.0 if data["terminated"][s, e] else data["next_value"][s, e]
            advantage[t, e] += (gamma * lam) ** (s - t) * (data["reward"][s, e] + gamma * future - data["value"][s, e])
            if data["terminated"][s, e] or data["truncated"][s, e]:
                break
    return advantage


@pytest.mark.parametrize(("gamma", "lam"), [(GAMMA, LAMBDA), (1.0, 1.0), (0.99, 0.0), (0.0, 0.5)])
def test_gae_is_its_defining_double_sum(gamma: float, lam: float, x64: None) -> None:
    """PITFALLS row 3: with a mixture of terminated and truncated episodes."""
    data = fragment()
    advantage = gae(**data, discount=gamma, gae_lambda=lam)
    np.testing.assert_allclose(advantage, double_sum(data, gamma, lam), rtol=1e-10, atol=1e-12)


def test_lambda_one_is_the_discounted_return_minus_the_value(x64: None) -> None:
    data = fragment(1)
    data["truncated"][:] = False
    data["terminated"][-1] = True
    returns = np.zeros((T + 1, E))
    for t in reversed(range(T)):
        returns[t] = data["reward"][t] + GAMMA * np.where(data["terminated"][t], 0.0, returns[t + 1])
    # Identity of GAE: it holds when next_value is V of the next row.
    data["next_value"][:-1] = data["value"][1:]
    advantage = gae(**data, discount=GAMMA, gae_lambda=1.0)
    np.testing.assert_allclose(advantage, returns[:T] - data["value"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(trpo.lambda_returns(advantage, jnp.asarray(data["value"])), returns[:T], atol=1e-12)


def test_lambda_zero_is_the_temporal_difference(x64: None) -> None:
    data = fragment(2)
    delta = data["reward"] + GAMMA * data["next_value"] * ~data["terminated"] - data["value"]
    np.testing.assert_allclose(gae(**data, discount=GAMMA, gae_lambda=0.0), delta, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_nothing_leaks_across_the_end_of_an_episode(end: str) -> None:
    """PITFALLS row 3: change everything after row 5, and rows 0 to 5 keep their bits."""
    data = {k: v.astype(np.float32) if v.dtype == float else v for k, v in fragment(3).items()}
    data["terminated"][:], data["truncated"][:] = False, False
    data[end][5] = True
    other = {k: v.copy() for k, v in data.items()}
    for name in ("reward", "value", "next_value"):
        other[name][6:] += 100.0
    other[end][8] = True
    one, two = (np.asarray(gae(**each, discount=GAMMA, gae_lambda=LAMBDA)) for each in (data, other))
    np.testing.assert_array_equal(one[:6], two[:6])
    assert not np.array_equal(one[6:], two[6:])


def test_a_terminal_states_value_is_ignored_whatever_it_is() -> None:
    data = {k: v.astype(np.float32) if v.dtype == float else v for k, v in fragment(4).items()}
    other = {**data, "next_value": np.where(data["terminated"], np.nan, data["next_value"])}
    one, two = (np.asarray(gae(**each, discount=GAMMA, gae_lambda=LAMBDA)) for each in (data, other))
    np.testing.assert_array_equal(one, two)


def test_endless_reward_of_one_with_a_time_limit_has_value_one_over_one_minus_gamma(x64: None) -> None:
    """PITFALLS row 3: V = 1/(1 − γ) is a fixed point, and iterating V ← E[λ-return] gets there."""
    truncated = np.zeros((T, E), bool)
    truncated[3::4] = True

    def lambda_return(v: float) -> np.ndarray:
        value = np.full((T, E), v)
        advantage = gae(np.ones((T, E)), value, value, np.zeros((T, E), bool), truncated, GAMMA, LAMBDA)
        return np.asarray(trpo.lambda_returns(advantage, jnp.asarray(value)))

    np.testing.assert_allclose(lambda_return(1 / (1 - GAMMA)), 1 / (1 - GAMMA), rtol=1e-12)
    v = 0.0
    for _ in range(200):
        v = lambda_return(v).mean()
    np.testing.assert_allclose(v, 1 / (1 - GAMMA), rtol=1e-9)


# ---------------------------------------------------------------- standardise


def weights(n: int, seed: int = 0) -> np.ndarray:
    w = np.random.default_rng(seed).uniform(0.1, 1, n) * (np.arange(n) % 4 != 3)
    return (w / w.sum()).astype(np.float32)


def test_standardised_moments_are_weighted_ones() -> None:
    w = weights(200)
    a = np.random.default_rng(1).normal(5, 3, 200).astype(np.float32)
    z = np.asarray(standardise(a, w), np.float64)
    mean, std = w @ a, np.sqrt(w @ (a - w @ a) ** 2)
    np.testing.assert_allclose(z, np.where(w > 0, (a - mean) / std, 0.0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([w @ z, w @ z**2], [0, 1], atol=1e-5)


@pytest.mark.parametrize("n", [7, 2048, 300_000])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6, 1e-30])
def test_equal_advantages_carry_no_signal(constant: float, n: int) -> None:
    """PITFALLS row 12: exactly zero, not rounding noise blown up to size one."""
    w = np.full(n, 1 / n, np.float32)
    np.testing.assert_array_equal(standardise(np.full(n, constant, np.float32), w), np.zeros(n))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e30])
def test_standardise_is_invariant_to_scale_and_shift(scale: float) -> None:
    w = weights(100)
    a = np.random.default_rng(2).normal(size=100).astype(np.float32)
    reference = standardise(a, w)
    np.testing.assert_allclose(standardise((a * np.float32(scale)), w), reference, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(standardise(a + np.float32(50), w), reference, rtol=1e-3, atol=1e-4)
    # A spread of 1/5000 of the level is a signal still, with the digits that single precision leaves.
    np.testing.assert_allclose(standardise(a + np.float32(5000), w), reference, atol=3e-3)


def test_nan_passes_through_where_it_counts_and_only_there() -> None:
    w = weights(40)
    a = np.random.default_rng(3).normal(size=40).astype(np.float32)
    absent, present = a.copy(), a.copy()
    absent[w == 0] = np.nan
    np.testing.assert_array_equal(standardise(absent, w), standardise(np.where(w > 0, a, 7), w))
    present[np.argmax(w > 0)] = np.nan
    assert np.isnan(standardise(present, w)[w > 0]).all()
