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
    categorical("saturated", [12.0, 0.0, -12.0], [10.0, 1.0, -9.0]),
    categorical("shifted", [1001.0, 1000.0, 999.5], [-500.0, -499.0, -500.5]),
    bernoulli("4", [0.0, 1.5, -2.0, 0.3], [0.4, 1.0, -1.0, 0.3]),
    bernoulli("saturated", [11.0, -11.0], [9.0, -10.0]),
    multi_categorical("2-5-3", [[0.2, -0.1], [0.0, 1.0, -1.0, 0.5, 0.1], [1.0, 0.0, -0.5]],
                      [[0.0, 0.4], [0.3, 0.2, -1.2, 0.0, 0.6], [0.1, 0.3, -0.2]]),
    multi_categorical("masked", [[0.3, -INF], [-INF, 0.5, -0.5]], [[1.0, -INF], [-INF, -0.2, 0.4]]),
]  # fmt: skip
