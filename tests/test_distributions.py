"""One suite for every distribution. Oracles: SciPy, enumeration, quadrature, automatic differentiation, Monte Carlo."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from distribution_cases import CASES, OTHERS, Case
from jax.flatten_util import ravel_pytree

import trpo
from trpo.distributions.beta import trigamma

SAMPLES = 20_000
STANDARD_ERRORS = 5  # fixed seeds: these tests do not flake, but a correct method may sit at 3 somewhere

every_case = pytest.mark.parametrize("case", CASES + OTHERS, ids=repr)
by_support = pytest.mark.parametrize("case", OTHERS, ids=repr)
discrete = pytest.mark.parametrize("case", [c for c in CASES if c.actions is not None], ids=repr)
one_of_each = pytest.mark.parametrize(  # for what does not depend on the numbers; keeps the suite quick
    "case",
    [
        c
        for c in CASES + OTHERS
        if c.name in ("gaussian-6d", "categorical-masked", "bernoulli-4", "multi-2-5-3", "squashed-2d", "beta-2d")
    ],
    ids=repr,
)
extreme = pytest.mark.parametrize(
    "case",
    [c for c in CASES + OTHERS if any(word in c.name for word in ("mask", "one", "saturated", "sigma", "bound"))],
    ids=repr,
)
continuous = pytest.mark.parametrize("case", [c for c in CASES if c.actions is None], ids=repr)


kl_between = jax.jit(lambda p, q: p.kl_to(q))  # compiled once for each shape, not once for each use
entropy_of = jax.jit(lambda p: p.entropy())


def draw(distribution: Any, seed: int, number: int = SAMPLES) -> np.ndarray:
    """Independent actions by the public route: noise, then transform."""
    many = jax.jit(lambda d, key: jax.vmap(d.transform)(d.noise(key, (number,))))
    leaves = jax.tree.leaves(many(distribution, jax.random.key(seed)))
    return np.asarray(leaves[0] if len(leaves) == 1 else np.concatenate([x.reshape(number, -1) for x in leaves], -1))


def free_parameters(case: Case, which: str = "p") -> tuple[jax.Array, Any]:
    """Return the finite parameters as a vector, and the function that makes a distribution of such a vector."""
    flat, unravel = ravel_pytree(case.build(which))
    finite = np.flatnonzero(np.isfinite(flat))
    return flat[finite], lambda vector: unravel(flat.at[finite].set(vector))


# ---------------------------------------------------------------- log-probabilities, samples, entropy


@discrete
def test_log_prob_is_scipys_and_sums_to_one(case: Case, x64: None) -> None:
    distribution = case.build()
    log_prob = jax.jit(jax.vmap(distribution.log_prob))(jnp.asarray(case.actions))
    np.testing.assert_allclose(log_prob, case.log_prob(case.p, case.actions), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1.0, rtol=1e-12)


@continuous
def test_log_prob_is_scipys_and_integrates_to_one(case: Case, x64: None) -> None:
    distribution = case.build()
    actions = draw(distribution, 0, 50)
    density = jax.jit(jax.vmap(distribution.log_prob))
    np.testing.assert_allclose(density(jnp.asarray(actions)), case.log_prob(case.p, actions), rtol=1e-12)
    # Along each axis through the mean, the density integrates to that of the other axes: Σ over them telescopes to 1.
    std = np.exp(case.p["log_std"])
    total = 1.0
    for axis in range(len(std)):
        grid = np.linspace(-12, 12, 2001) * std[axis]
        line = case.p["mean"] + grid[:, None] * np.eye(len(std))[axis]
        integral = np.trapezoid(np.exp(density(jnp.asarray(line))), grid)
        total *= integral / np.exp(distribution.log_prob(jnp.asarray(case.p["mean"])))
    np.testing.assert_allclose(total * np.exp(distribution.log_prob(jnp.asarray(case.p["mean"]))), 1.0, rtol=1e-9)


@discrete
def test_samples_have_the_stated_frequencies(case: Case) -> None:
    drawn = draw(case.build(), 1).reshape(SAMPLES, -1)
    probability = np.exp(case.log_prob(case.p, case.actions))
    for action, p in zip(case.actions.reshape(len(case.actions), -1), probability, strict=True):
        frequency = np.mean(np.all(drawn == action, axis=1))
        error = np.sqrt(p * (1 - p) / SAMPLES)
        assert abs(frequency - p) <= STANDARD_ERRORS * error + 0.5 / SAMPLES * (p > 0), (action, frequency, p)


@continuous
def test_samples_have_the_stated_moments(case: Case) -> None:
    drawn = draw(case.build(), 1).astype(np.float64)
    std = np.exp(case.p["log_std"])
    z = (drawn - case.p["mean"]) / std
    assert np.all(np.abs(z.mean(0)) <= STANDARD_ERRORS / np.sqrt(SAMPLES))
    covariance = z.T @ z / SAMPLES
    assert np.all(np.abs(covariance - np.eye(len(std))) <= STANDARD_ERRORS * np.sqrt(2 / SAMPLES))


@discrete
def test_mode_is_the_most_probable_action(case: Case) -> None:
    distribution = case.build()
    best = case.log_prob(case.p, case.actions).max()
    np.testing.assert_allclose(distribution.log_prob(distribution.mode()), best, rtol=1e-5, atol=1e-5)


@continuous
def test_mode_is_the_mean(case: Case, x64: None) -> None:
    np.testing.assert_array_equal(case.build().mode(), case.p["mean"])


@discrete
def test_entropy_is_minus_the_expected_log_prob(case: Case, x64: None) -> None:
    log_p = case.log_prob(case.p, case.actions)
    np.testing.assert_allclose(
        entropy_of(case.build()), scipy.special.entr(np.exp(log_p)).sum(), rtol=1e-11, atol=1e-14
    )


@continuous
def test_entropy_is_scipys(case: Case, x64: None) -> None:
    expected = scipy.stats.norm.entropy(case.p["mean"], np.exp(case.p["log_std"])).sum()
    np.testing.assert_allclose(entropy_of(case.build()), expected, rtol=1e-12)


@by_support
def test_log_prob_and_entropy_are_those_of_the_support(case: Case, x64: None) -> None:
    distribution, (rows, probability) = case.build(), case.support(case.p)
    np.testing.assert_allclose(probability.sum(), 1.0, rtol=1e-9)
    some = np.random.default_rng(0).choice(len(rows), 50, p=probability / probability.sum())
    log_prob = jax.jit(jax.vmap(distribution.log_prob))(jax.tree.map(jnp.asarray, case.tree(rows[some])))
    np.testing.assert_allclose(log_prob, case.log_prob(case.p, rows[some]), rtol=1e-10, atol=1e-10)
    possible = probability > 0
    entropy = -probability[possible] @ case.log_prob(case.p, rows[possible])
    np.testing.assert_allclose(entropy_of(distribution), entropy, rtol=1e-7)  # the squashed Gaussian's own quadrature


@pytest.mark.parametrize("case", [case for case in OTHERS if case.cdfs], ids=repr)
@pytest.mark.parametrize("on_host", [False, True])
def test_samples_are_distributed_as_stated(case: Case, on_host: bool) -> None:
    """Kolmogorov and Smirnov's test for each element; float32, as policies are."""
    drawn = draw(case.build(), 1)
    if on_host:
        host = case.build(xp=np, dtype=np.float32)
        noise = np.asarray(case.build().noise(jax.random.key(1), (SAMPLES,)))
        on_device, drawn = drawn, jax.tree.map(lambda leaf: leaf[None], host).transform(noise)
        np.testing.assert_allclose(drawn, on_device, rtol=1e-3, atol=1e-4)
    for i, cdf in enumerate(case.cdfs(case.p)):
        assert scipy.stats.kstest(drawn[:, i].astype(float), cdf).pvalue > 1e-3


def test_beta_samples_stay_finite_and_ordered_at_the_ends() -> None:
    """Where x of nearly 0 or 1 has no number in single precision, its logarithms still have."""
    steep = trpo.Beta(jnp.log(jnp.array([0.05, 900.0])), jnp.log(jnp.array([30.0, 0.1])))
    drawn = draw(steep, 3)
    assert np.isfinite(drawn).all()
    assert np.isfinite(jax.vmap(steep.log_prob)(jnp.asarray(drawn))).all()
    assert np.mean(np.abs(np.tanh(drawn)) == 1) > 0.1  # as numbers between −1 and 1 they are lost


def test_trigamma_is_scipys(x64: None) -> None:
    x = np.logspace(-4, 6, 200)
    np.testing.assert_allclose(trigamma(jnp.asarray(x)), scipy.special.polygamma(1, x), rtol=1e-14)
    np.testing.assert_allclose(trigamma(x), scipy.special.polygamma(1, x), rtol=1e-14)


def test_modes_of_bounded_families() -> None:
    peaked = trpo.Beta(jnp.log(jnp.array([3.0, 1.0, 0.5])), jnp.log(jnp.array([2.0, 4.0, 0.5])))
    np.testing.assert_allclose(np.tanh(peaked.mode()), [2 * (2 / 3) - 1, -1.0, 0.0], atol=1e-6)
    squashed = trpo.SquashedGaussian(jnp.array([0.7]), jnp.array([3.0]))
    np.testing.assert_array_equal(squashed.mode(), squashed.mean)


# ---------------------------------------------------------------- KL


def dense_kl(case: Case, p: dict[str, np.ndarray], q: dict[str, np.ndarray]) -> float:
    """Return KL(p ‖ q): the sum over all joint outcomes, or the formula of a *full-covariance* Gaussian."""
    if case.actions is not None:
        return scipy.special.rel_entr(*(np.exp(case.log_prob(x, case.actions)) for x in (p, q))).sum()
    if case.support is not None:
        rows, probability = case.support(p)
        rows, probability = rows[probability > 0], probability[probability > 0]
        return probability @ (case.log_prob(p, rows) - case.log_prob(q, rows))
    covariance_p, covariance_q = (np.diag(np.exp(2 * x["log_std"])) for x in (p, q))
    gap = p["mean"] - q["mean"]
    inverse = np.linalg.inv(covariance_q)
    log_det = np.linalg.slogdet(covariance_q)[1] - np.linalg.slogdet(covariance_p)[1]
    return 0.5 * (np.trace(inverse @ covariance_p) + gap @ inverse @ gap - len(gap) + log_det)


@every_case
def test_kl_is_the_dense_formula_in_both_directions(case: Case, x64: None) -> None:
    p, q = case.build("p"), case.build("q")
    np.testing.assert_allclose(kl_between(p, q), dense_kl(case, case.p, case.q), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(kl_between(q, p), dense_kl(case, case.q, case.p), rtol=1e-9, atol=1e-15)


@every_case
def test_joint_kl_is_the_monte_carlo_mean_of_the_log_ratio(case: Case, x64: None) -> None:
    """PITFALLS row 1: the joint KL, not its mean over action dimensions. The log-ratio is SciPy's."""
    p, q = case.build("p"), case.build("q")
    actions = draw(p, 2)
    log_ratio = case.log_prob(case.p, actions) - case.log_prob(case.q, actions)
    error = log_ratio.std() / np.sqrt(SAMPLES)
    if case.actions is not None:  # the exact deviation: a sample misses the rarest actions
        probability = np.exp(case.log_prob(case.p, case.actions))
        possible = probability > 0
        exact = case.log_prob(case.p, case.actions)[possible] - case.log_prob(case.q, case.actions)[possible]
        error = np.sqrt(probability[possible] @ (exact - probability[possible] @ exact) ** 2 / SAMPLES)
    assert abs(float(kl_between(p, q)) - log_ratio.mean()) <= STANDARD_ERRORS * error + 1e-12


def test_kl_direction_and_sum_are_pinned() -> None:
    """PITFALLS row 7: KL(self ‖ other). Values by hand, for N(0, 1) → N(1, 2²) and (.9, .1) → (.5, .5)."""
    f = jnp.array
    narrow, wide = trpo.DiagGaussian(f([0.0]), f([0.0])), trpo.DiagGaussian(f([1.0]), jnp.log(f([2.0])))
    np.testing.assert_allclose(narrow.kl_to(wide), np.log(2) + 2 / 8 - 1 / 2, rtol=1e-6)
    np.testing.assert_allclose(wide.kl_to(narrow), -np.log(2) + 5 / 2 - 1 / 2, rtol=1e-6)
    forwards = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)
    backwards = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    sure, fair = trpo.Categorical(jnp.log(f([0.9, 0.1]))), trpo.Categorical(f([0.0, 0.0]))
    np.testing.assert_allclose([sure.kl_to(fair), fair.kl_to(sure)], [forwards, backwards], rtol=1e-6)
    sure, fair = trpo.Bernoulli(jnp.log(f([9.0]))), trpo.Bernoulli(f([0.0]))
    np.testing.assert_allclose([sure.kl_to(fair), fair.kl_to(sure)], [forwards, backwards], rtol=1e-6)
    sure = trpo.MultiCategorical(jnp.log(f([0.9, 0.1, 0.9, 0.1, 0.9, 0.1])), (2, 2, 2))
    fair = trpo.MultiCategorical(jnp.zeros(6), (2, 2, 2))
    np.testing.assert_allclose([sure.kl_to(fair), fair.kl_to(sure)], [3 * forwards, 3 * backwards], rtol=1e-6)


def test_kl_to_a_policy_that_excludes_a_possible_action_is_infinite() -> None:
    p, q = trpo.Categorical(jnp.zeros(3)), trpo.Categorical(jnp.array([0.0, 0.0, -jnp.inf]))
    assert p.kl_to(q) == jnp.inf
    np.testing.assert_allclose(q.kl_to(p), np.log(1.5), rtol=1e-6)


@every_case
def test_kl_is_exactly_zero_at_equality_and_never_negative(case: Case) -> None:
    """In float32, where the textbook formula gives ±1e-7."""
    p = case.build()
    assert kl_between(p, p) == 0
    vector, of = free_parameters(case)
    direction = jax.random.normal(jax.random.key(0), (12, *vector.shape))
    size = jnp.array([1e-6, 1e-4, 1e-2, 1.0]).repeat(3)[:, None]
    kl = jax.jit(jax.vmap(lambda v: p.kl_to(of(v))))(vector[None] + size * direction)
    assert np.all(kl >= 0)


@every_case
def test_small_kl_keeps_its_relative_accuracy_in_float32(case: Case) -> None:
    """A KL near 1e-6 nats, where cancellation would leave noise. The same float32 parameters, in float64, judge."""
    p = case.build(dtype=jnp.float32)
    sigma = np.exp(case.p["log_std"]) if "log_std" in case.p else 1.0
    change = [np.random.default_rng(0).normal(size=len(leaf)) for leaf in jax.tree.leaves(p)]
    moved = [leaf + jnp.asarray(1e-3 * change[i] * (sigma if i == 0 else 1.0), jnp.float32)
             for i, leaf in enumerate(jax.tree.leaves(p))]  # fmt: skip
    q = jax.tree.unflatten(jax.tree.structure(p), moved)
    in_float32 = float(kl_between(p, q))
    with jax.enable_x64(True):
        wide = [jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), x) for x in (p, q)]
        exact = float(kl_between(*wide))
        assert exact < 1e-4
    # What rounding of the logarithms themselves costs grows with their size (logits of 1000 have spacing 6e-5).
    spacing = max(float(np.spacing(np.float32(np.abs(x[np.isfinite(x)]).max()))) for x in map(np.asarray, moved))
    np.testing.assert_allclose(in_float32, exact, rtol=1e-2 + 4 * spacing / 1e-3, atol=1e-12)


# ---------------------------------------------------------------- Fisher


@every_case
def test_fisher_product_is_the_dense_hessian_of_the_kl(case: Case, x64: None) -> None:
    """PITFALLS row 5."""
    vector, of = free_parameters(case)
    p = of(vector)
    hessian = jax.jit(jax.hessian(lambda v: p.kl_to(of(v))))(vector)
    np.testing.assert_allclose(dense_fisher(case), hessian, rtol=1e-8, atol=1e-10 * np.abs(hessian).max() + 1e-14)


@every_case
def test_fisher_product_is_the_covariance_of_the_score(case: Case, x64: None) -> None:
    """PITFALLS row 5. Exact expectation: enumeration, or Gauss–Hermite quadrature (the integrand is a polynomial)."""
    vector, of = free_parameters(case)
    if case.actions is not None:
        actions, probability = jnp.asarray(case.actions), np.exp(case.log_prob(case.p, case.actions))
        possible = probability > 0
        actions, probability = actions[possible], probability[possible]
    elif case.support is not None:
        rows, probability = case.support(case.p)
        likely = probability > 1e-30 * probability.max()  # the others' score is large, and may be rounded away
        probability, actions = probability[likely], jax.tree.map(jnp.asarray, case.tree(rows[likely]))
    else:
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)
        d = len(case.p["mean"])
        noise = np.array(list(itertools.product(nodes, repeat=d)))
        actions = jnp.asarray(case.p["mean"] + np.exp(case.p["log_std"]) * noise)
        probability = np.array([np.prod(w) for w in itertools.product(weights / weights.sum(), repeat=d)])
    score = np.asarray(jax.jit(jax.vmap(jax.grad(lambda v, a: of(v).log_prob(a)), (None, 0)))(vector, actions))
    covariance = (score * probability[:, None]).T @ score
    np.testing.assert_allclose(score.T @ probability, 0, atol=1e-9 * np.abs(score).max())
    scale = np.abs(covariance).max()
    np.testing.assert_allclose(dense_fisher(case), covariance, rtol=1e-8, atol=1e-10 * scale + 1e-14)


def dense_fisher(case: Case) -> np.ndarray:
    vector, of = free_parameters(case)
    p = of(vector)
    flat, unravel = ravel_pytree(p)
    finite = np.isfinite(flat)
    product = jax.jit(jax.vmap(lambda row: ravel_pytree(p.fisher_product(unravel(row)))[0]))
    dense = np.array(product(jnp.eye(len(flat))))
    assert not dense[:, ~finite].any()  # an impossible action carries no information and receives none
    assert not dense[~finite].any()
    return dense[np.ix_(finite, finite)]


# ---------------------------------------------------------------- arrays: NumPy, broadcasting, jit, pytrees


@one_of_each
def test_numpy_in_gives_numpy_out_and_the_same_numbers(case: Case) -> None:
    def stacked(xp: Any) -> Any:
        return jax.tree.map(lambda leaf: xp.stack([leaf, leaf[..., ::-1] * 0.5]), case.build(xp=xp, dtype=np.float32))

    host, device = stacked(np), stacked(jnp)
    noise = device.noise(jax.random.key(0))
    action = host.transform(np.asarray(noise))
    results = {
        "transform": (action, device.transform(noise)),
        "mode": (host.mode(), device.mode()),
        "log_prob": (host.log_prob(action), device.log_prob(jnp.asarray(action))),
    }
    for name, (ours, reference) in results.items():
        assert type(ours) is np.ndarray, name
        np.testing.assert_allclose(ours, reference, rtol=2e-6, atol=2e-6, err_msg=name)
        if name != "log_prob" and case.actions is not None:
            assert np.issubdtype(ours.dtype, np.integer)
    assert host.log_prob(action).dtype == np.float32


@one_of_each
def test_leading_axes_are_independent_distributions(case: Case) -> None:
    scale = np.array([[1.0, 0.5, 0.2], [0.9, 0.1, 0.3]], np.float32)
    p, q = (
        jax.tree.map(lambda leaf: scale.reshape(2, 3, 1) * leaf, case.build(which, np, np.float32))
        for which in ("p", "q")
    )
    noise = case.build().noise(jax.random.key(3), (2, 3))

    @jax.jit
    def everything(p: Any, q: Any, noise: jax.Array) -> dict[str, jax.Array]:
        action = p.transform(noise)
        return {
            "log_prob": p.log_prob(action),
            "entropy": p.entropy(),
            "kl_to": p.kl_to(q),
            "mode": p.mode(),
            "action": action,
            "fisher": jax.tree.leaves(p.fisher_product(jax.tree.map(jnp.sin, jax.tree.map(jnp.nan_to_num, q))))[0],
        }

    whole = everything(p, q, noise)
    assert whole["log_prob"].shape == whole["entropy"].shape == whole["kl_to"].shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        one = everything(*jax.tree.map(lambda leaf: leaf[i, j], (p, q, noise)))  # noqa: B023
        for name in one:
            np.testing.assert_allclose(whole[name][i, j], one[name], rtol=1e-5, atol=1e-6, err_msg=name)


@one_of_each
def test_sample_is_noise_transformed(case: Case) -> None:
    p, key = case.build(), jax.random.key(4)
    np.testing.assert_array_equal(p.sample(key), p.transform(p.noise(key)))
    assert p.noise(key, (7, 2)).shape == (7, 2, *p.noise(key).shape)
    assert p.noise(key).shape[: len(jax.tree.leaves(p)[0].shape)] == jax.tree.leaves(p)[0].shape
    np.testing.assert_array_equal(p.noise(key), case.build("q").noise(key))  # of the parameters' shape, not values


@one_of_each
def test_pytree_jit_vmap_repr(case: Case) -> None:
    p, q = case.build("p"), case.build("q")
    assert isinstance(p, trpo.Distribution)
    leaves, structure = jax.tree.flatten(p)
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is type(p)
    assert jax.tree.structure(again) == structure
    assert type(p).__name__ in repr(p)
    action = p.mode()
    pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), p, q)

    @jax.jit
    def compiled(d: Any, e: Any, both: Any) -> Any:
        batched = jax.vmap(lambda each: each.kl_to(e))(both)
        return d.log_prob(action), d.entropy(), d.kl_to(e), d.fisher_product(d).__class__ is type(d), batched

    log_prob, entropy, kl, same_class, batched = compiled(p, q, pair)
    np.testing.assert_allclose(log_prob, p.log_prob(action), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(entropy, p.entropy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kl, p.kl_to(q), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(batched, [kl, 0.0], rtol=1e-4, atol=1e-6)
    assert same_class


@extreme
def test_gradients_are_finite_also_where_an_action_is_impossible(case: Case) -> None:
    p, q = case.build("p"), case.build("q")
    vector, of = free_parameters(case)
    action = p.mode()
    every = jax.jit(jax.jacobian(lambda v: jnp.stack([of(v).log_prob(action), of(v).entropy(), q.kl_to(of(v))])))
    assert np.all(np.isfinite(every(vector)))


@pytest.mark.parametrize("gap", [0.0, 5.0, 10.0, 15.0])
def test_categorical_fisher_products_do_not_cancel_when_saturated(gap: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 4)) + gap * np.eye(4)[rng.integers(4, size=50)]
    u = rng.standard_normal((50, 4))
    p = np.exp(logits.astype(np.float32).astype(float))
    p /= p.sum(-1, keepdims=True)
    u = u.astype(np.float32)
    exactly = p * (u - (p * u).sum(-1, keepdims=True))
    curvature = (p * (u - (p * u).sum(-1, keepdims=True)) ** 2).sum(-1)
    product = trpo.Categorical(jnp.asarray(logits, jnp.float32)).fisher_product(trpo.Categorical(jnp.asarray(u)))
    np.testing.assert_allclose(product.logits, exactly, rtol=2e-4, atol=1e-7 * (1 - p.max()))
    # uᵀMu from the product, relative to itself: shifted likewise, since M has constants in its null space.
    shifted = u - np.take_along_axis(u, logits.argmax(-1)[:, None], axis=-1)
    np.testing.assert_allclose((shifted * np.asarray(product.logits)).sum(-1), curvature, rtol=2e-5)
