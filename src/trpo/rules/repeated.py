"""Several updates of one batch, as one rule."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from trpo.problem import LocalProblem
from trpo.rules.protocol import Rule, UpdateInfo
from trpo.rules.step import check
from trpo.types import Params


class Repeated(eqx.Module):
    """The rule applied K times to one batch, the k-th time with (k/K) δ: D̄(θ_k) ≤ (k/K) δ if it enforces its bound.

    Every update is from where the last one ended, with ratios and KL against the policy that *sampled* the batch, so
    that δ bounds them all together. This differs from Tianshou's ``repeat``, which measures the KL of each pass over
    the batch from where that pass began: K passes may then go K² δ far.
    """

    rule: Rule[Any]
    times: int = eqx.field(static=True, default=1)
    """K."""

    def __check_init__(self) -> None:
        check("times", self.times, 1, math.inf, "1 is the rule itself", strict=False)

    @property
    def enforces_max_kl(self) -> bool:
        return self.rule.enforces_max_kl

    @property
    def max_kl(self) -> Any:
        return self.rule.max_kl

    def init(self, params: Params) -> Any:
        return self.rule.init(params)

    def update(self, problem: LocalProblem, params: Params, state: Any) -> tuple[Params, Any, UpdateInfo]:
        if self.times == 1:
            return self.rule.update(problem, params, state)

        def once(before: tuple[Params, Any], k: Array) -> tuple[tuple[Params, Any], UpdateInfo]:
            bound = self.max_kl * ((k + 1) / self.times)
            rule = eqx.tree_at(lambda rule: rule.max_kl, self.rule, bound)
            new, state, info = rule.update(problem, *before)
            return (new, state), info

        (new, state), infos = jax.lax.scan(once, (params, state), jnp.arange(self.times))
        return new, state, UpdateInfo.combined(infos, optax.tree.sub(new, params))
