"""Every distribution at several settings, with oracles that share no code with the package.

To add a distribution: append cases here; ``test_distributions.py`` and nothing else then judges it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

import trpo

INF = np.inf
Oracle = Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    """Two distributions of one family, unbatched, in float64."""

    name: str
    make: Callable[..., Any]
    p: dict[str, np.ndarray]
    q: dict[str, np.ndarray]
    log_prob: Oracle
    """(parameters, actions ``[n, …]``) ↦ log-probabilities ``[n]``, by SciPy."""
    actions: np.ndarray | None = None
    """Every possible action, or None where they are a continuum."""
    support: Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]] | None = None
    """Parameters ↦ actions ``[n, …]`` and their probabilities, by which any expectation is a sum; None: a Gaussian."""
    cdfs: Callable[[dict[str, np.ndarray]], list[Callable]] | None = None
    """Parameters ↦ the distribution function of each element of an action that is a number."""
    tree: Callable[[Any], Any] = lambda actions: actions
    """Actions as an array ↦ in the distribution's own form."""

    def build(self, which: str = "p", xp: Any = jnp, dtype: Any = None) -> Any:
        """Return p or q with parameters in ``xp``'s arrays (default: the widest floating type in force)."""
        values = getattr(self, which)
        return self.make(**{k: xp.asarray(v, dtype or jnp.result_type(float)) for k, v in values.items()})

    def __repr__(self) -> str:
        return self.name


def gaussian(name: str, mean: list, log_std: list, mean_q: list, log_std_q: list) -> Case:
    def log_prob(values: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        return scipy.stats.norm.logpdf(actions, values["mean"], np.exp(values["log_std"])).sum(-1)

    p = {"mean": np.array(mean, float), "log_std": np.array(log_std, float)}
    q = {"mean": np.array(mean_q, float), "log_std": np.array(log_std_q, float)}
    return Case(f"gaussian-{name}", trpo.DiagGaussian, p, q, log_prob)


def categorical(name: str, logits: list, logits_q: list) -> Case:
    def log_prob(values: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        return scipy.special.log_softmax(values["logits"])[actions]

    p, q = ({"logits": np.array(x, float)} for x in (logits, logits_q))
    return Case(f"categorical-{name}", trpo.Categorical, p, q, log_prob, np.arange(len(logits)))


def bernoulli(name: str, logits: list, logits_q: list) -> Case:
    def log_prob(values: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        x = values["logits"]
        return np.where(actions == 1, scipy.special.log_expit(x), scipy.special.log_expit(-x)).sum(-1)

    p, q = ({"logits": np.array(x, float)} for x in (logits, logits_q))
    every = np.array(list(itertools.product((0, 1), repeat=len(logits))))
    return Case(f"bernoulli-{name}", trpo.Bernoulli, p, q, log_prob, every)


def multi_categorical(name: str, logits: list[list], logits_q: list[list]) -> Case:
    sizes = tuple(len(x) for x in logits)

    def log_prob(values: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        parts = np.split(values["logits"], np.cumsum(sizes)[:-1])
        return sum(scipy.special.log_softmax(part)[actions[:, i]] for i, part in enumerate(parts))

    p, q = ({"logits": np.concatenate([np.array(part, float) for part in x])} for x in (logits, logits_q))
    every = np.array(list(itertools.product(*map(range, sizes))))
    return Case(f"multi-{name}", partial(trpo.MultiCategorical, sizes=sizes), p, q, log_prob, every)


def forbidden(name: str, mask: list, logits: list, logits_q: list) -> Case:
    """A categorical from a head that was told which actions are allowed."""

    def log_prob(values: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        return scipy.special.log_softmax(np.where(mask, values["logits"], -INF))[actions]

    def make(logits: Any) -> Any:
        return trpo.CategoricalHead(len(mask))(logits, logits.__array_namespace__().asarray(mask))

    p, q = ({"logits": np.array(x, float)} for x in (logits, logits_q))
    return Case(f"categorical-{name}", make, p, q, log_prob, np.arange(len(mask)))


def by_quadrature(density: Callable, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Actions of independent elements and probabilities, by the trapezoidal rule on the same nodes for each."""
    weights = density(nodes[:, None] + np.zeros(len(density(np.zeros(1))))) * (nodes[1] - nodes[0])
    d = weights.shape[-1]
    rows = np.array(list(itertools.product(nodes, repeat=d)))
    return rows, np.array([np.prod(w) for w in itertools.product(*weights.T)])


def squashed(name: str, mean: list, log_std: list, mean_q: list, log_std_q: list) -> Case:
    def log_prob(values: dict[str, np.ndarray], u: np.ndarray) -> np.ndarray:
        gaussian = scipy.stats.norm.logpdf(u, values["mean"], np.exp(values["log_std"]))
        return (gaussian + 2 * np.log(np.cosh(u))).sum(-1)  # du / dtanh(u) = cosh²(u)

    def support(values: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        each = scipy.stats.norm(values["mean"], np.exp(values["log_std"]))
        return by_quadrature(lambda u: each.pdf(u), np.linspace(-9, 9, 181))

    def cdfs(values: dict[str, np.ndarray]) -> list[Callable]:
        return [scipy.stats.norm(m, np.exp(s)).cdf for m, s in zip(values["mean"], values["log_std"], strict=True)]

    p = {"mean": np.array(mean, float), "log_std": np.array(log_std, float)}
    q = {"mean": np.array(mean_q, float), "log_std": np.array(log_std_q, float)}
    return Case(f"squashed-{name}", trpo.SquashedGaussian, p, q, log_prob, support=support, cdfs=cdfs)


def beta(name: str, alpha: list, beta: list, alpha_q: list, beta_q: list) -> Case:
    def of(values: dict[str, np.ndarray]) -> Any:
        return scipy.stats.beta(np.exp(values["log_alpha"]), np.exp(values["log_beta"]))

    def log_prob(values: dict[str, np.ndarray], u: np.ndarray) -> np.ndarray:
        # a = tanh(u) = 2x − 1; SciPy's density of x, by the logarithms that x and 1 − x have.
        a, b = np.exp(values["log_alpha"]), np.exp(values["log_beta"])
        log_x, log_rest = scipy.special.log_expit(2 * u), scipy.special.log_expit(-2 * u)
        return ((a - 1) * log_x + (b - 1) * log_rest - scipy.special.betaln(a, b) - np.log(2)).sum(-1)

    def support(values: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        def density(u: np.ndarray) -> np.ndarray:  # of u: that of x times dx/du = 2 x (1 − x)
            a, b = np.exp(values["log_alpha"]), np.exp(values["log_beta"])
            log_x, log_rest = scipy.special.log_expit(2 * u), scipy.special.log_expit(-2 * u)
            return np.exp(a * log_x + b * log_rest - scipy.special.betaln(a, b) + np.log(2))

        return by_quadrature(density, np.linspace(-60, 60, 6001) if len(alpha) == 1 else np.linspace(-10, 10, 161))

    def cdfs(values: dict[str, np.ndarray]) -> list[Callable]:
        a, b = np.exp(values["log_alpha"]), np.exp(values["log_beta"])
        return [lambda u, i=i: scipy.stats.beta(a[i], b[i]).cdf(scipy.special.expit(2 * u)) for i in range(len(a))]

    p, q = ({"log_alpha": np.log(x), "log_beta": np.log(y)} for x, y in ((alpha, beta), (alpha_q, beta_q)))
    return Case(f"beta-{name}", trpo.Beta, p, q, log_prob, support=support, cdfs=cdfs)


def product(name: str, p: dict[str, list], q: dict[str, list]) -> Case:
    """A choice, and within a tuple a force and two bits: actions are rows (choice, force, bit, bit)."""

    def make(logits: Any, mean: Any, log_std: Any, bits: Any) -> Any:
        inner = trpo.Product.of([trpo.DiagGaussian(mean, log_std), trpo.Bernoulli(bits)])
        return trpo.Product.of({"more": inner, "choice": trpo.Categorical(logits)})

    def log_prob(values: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        choice = scipy.special.log_softmax(values["logits"])[rows[:, 0].astype(int)]
        force = scipy.stats.norm.logpdf(rows[:, 1:2], values["mean"], np.exp(values["log_std"])).sum(-1)
        sign = np.where(rows[:, 2:] == 1, 1, -1)
        return choice + force + scipy.special.log_expit(sign * values["bits"]).sum(-1)

    def support(values: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        nodes, weights = np.polynomial.hermite_e.hermegauss(6)
        forces = values["mean"][0] + np.exp(values["log_std"][0]) * nodes
        ways = list(itertools.product(range(len(values["logits"])), range(6), (0, 1), (0, 1)))
        rows = np.array([(c, forces[i], *bits) for c, i, *bits in ways])
        choice = scipy.special.softmax(values["logits"])
        bit = scipy.special.expit(values["bits"])
        each = [
            choice[c] * (weights / weights.sum())[i] * np.prod(np.where(bits, bit, 1 - bit)) for c, i, *bits in ways
        ]
        return rows, np.array(each)

    def tree(rows: Any) -> Any:
        return {"choice": rows[..., 0].astype("int32"), "more": (rows[..., 1:2], rows[..., 2:].astype("int32"))}

    values = ({key: np.array(x, float) for key, x in each.items()} for each in (p, q))
    return Case(f"product-{name}", make, *values, log_prob, support=support, tree=tree)


CASES = [
    gaussian("1d", [0.3], [-0.2], [-0.4], [0.3]),
    gaussian(
        "6d",
        [0.0, 1.0, -1.0, 0.5, 2.0, -0.3],
        [0.0, 0.5, -0.5, 0.2, -1.0, 0.1],
        [0.1, 0.7, -1.2, 0.5, 2.1, 0.0],
        [0.2, 0.4, -0.5, 0.0, -0.8, -0.3],
    ),
    gaussian("tiny-sigma", [0.2, -0.1], [-7.0, -6.0], [0.2003, -0.101], [-6.8, -6.2]),
    gaussian("large-sigma", [10.0, -40.0], [4.0, 3.0], [30.0, -35.0], [4.2, 2.5]),
    categorical("5", [0.0, 1.0, -2.0, 0.3, 0.7], [0.2, 0.1, -1.0, 1.3, 0.0]),
    categorical("1", [0.7], [-0.2]),
    categorical("uniform", [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]),
    categorical("masked", [0.5, -INF, 1.0, -INF], [-0.3, -INF, 0.4, -INF]),
    categorical("only-one-allowed", [-INF, 0.3, -INF], [-INF, 2.0, -INF]),
    forbidden("by-mask", [0, 1, 1, 0, 1], [50.0, 0.3, -1.0, 0.0, 0.2], [-9.0, 0.1, -0.4, 80.0, 1.0]),
    categorical("saturated", [12.0, 0.0, -12.0], [10.0, 1.0, -9.0]),
    categorical("shifted", [1001.0, 1000.0, 999.5], [-500.0, -499.0, -500.5]),
    bernoulli("4", [0.0, 1.5, -2.0, 0.3], [0.4, 1.0, -1.0, 0.3]),
    bernoulli("saturated", [11.0, -11.0], [9.0, -10.0]),
    multi_categorical("2-5-3", [[0.2, -0.1], [0.0, 1.0, -1.0, 0.5, 0.1], [1.0, 0.0, -0.5]],
                      [[0.0, 0.4], [0.3, 0.2, -1.2, 0.0, 0.6], [0.1, 0.3, -0.2]]),
    multi_categorical("masked", [[0.3, -INF], [-INF, 0.5, -0.5]], [[1.0, -INF], [-INF, -0.2, 0.4]]),
]  # fmt: skip
OTHERS = [
    squashed("2d", [0.3, -1.2], [-0.5, -1.0], [0.1, -1.0], [-0.3, -1.2]),
    squashed("near-a-bound", [4.0], [-1.0], [4.5], [-0.5]),
    beta("one-maximum", [1.7], [2.5], [2.0], [2.2]),
    beta("2d", [2.0, 5.0], [3.0, 4.0], [2.2, 9.0], [3.5, 4.4]),
    beta("uniform", [1.0], [1.0], [1.2], [0.8]),
    beta("at-both-bounds", [0.6], [0.7], [0.5], [0.9]),
    beta("concentrated", [300.0], [500.0], [310.0], [480.0]),
    beta("far", [2.0], [3.0], [30.0], [1.1]),
    product("nested", {"logits": [0.2, -0.3, 1.0], "mean": [0.4], "log_std": [-0.5], "bits": [0.3, -1.0]},
            {"logits": [0.0, 0.1, 0.7], "mean": [0.5], "log_std": [-0.3], "bits": [0.1, -0.8]}),
]  # fmt: skip
"""Families of which expectations are sums over ``support``."""
