"""What the surrogate claim measures: values, gradients and the second order, of library, oracle and derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo.problem import sampled_problem
from trpo.tabular import exact
from trpo.tabular.bridge import exact_problem
from trpo.theory.claims.surrogate.derivatives import complex_step_gradient, second_order
from trpo.theory.shared.arrays import join
from trpo.theory.shared.ensemble import Group, ensemble
from trpo.theory.shared.tabular_batch import enumerated_batch, table_policy

STEPS = np.geomspace(0.1, 0.01, 5)
"""t, along random directions d of standard normal logits."""
MEASURABLE = 1e-5
"""Least exact coefficient, relative to max|r|/(1 − γ): below it t² times it drowns in the rounding errors of η."""


class Study(NamedTuple):
    """What the library and the oracle say on each MDP, in the oracle's units; leading axis ``[n]``."""

    scale: np.ndarray
    """max|r|/(1 − γ), the largest return possible."""
    value_error: np.ndarray
    """L_π(π) − η(π) of the library."""
    elsewhere_error: np.ndarray
    """Library's L_π(π̃) − equation 3 at an unrelated π̃."""
    sampled_elsewhere_error: np.ndarray
    """The same of the enumerated sampled problem."""
    gradient_norm: np.ndarray
    gradient_scale: np.ndarray
    """‖ρ_π π (|Q| + |V|)‖: what the gradient is a difference of."""
    theorem_error: np.ndarray
    """‖library's gradient − policy gradient theorem‖."""
    complex_error: np.ndarray
    """‖library's gradient − complex-step derivative of η‖."""
    sampled_error: np.ndarray
    """‖enumerated sampled problem's gradient − complex-step derivative‖."""
    slope: np.ndarray
    """∇η·d."""
    change: np.ndarray
    """η − η(π) at θ + td, ``[n, k]`` over ``STEPS``."""
    forward: np.ndarray
    """η − L_π at θ + td."""
    backward: np.ndarray
    """At θ − td."""
    coefficient: np.ndarray
    """Σ_s dρ(s) dĀ(s)."""
    coefficient_scale: np.ndarray
    """Σ_s |dρ(s)| |dĀ(s)|."""

    @property
    def measurable(self) -> Study:
        """The MDPs in which what L_π misses is more than rounding."""
        keep = self.coefficient_scale > MEASURABLE * self.scale
        return Study(*(column[keep] for column in self))


def _norm(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).sum(axis=(-2, -1)))


def _library(group: Group, direction: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return gradients and surrogates of the library's exact and enumerated sampled problem, in units of η."""
    steps = jnp.asarray([0.0, *STEPS, *-STEPS])

    weight, advantage = exact.state_weight(group.mdp, group.policy), exact.advantage(group.mdp, group.policy)

    def study(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        mdp, logits, other, direction, weight, policy, advantage = arguments
        problem = exact_problem(mdp, logits)
        sampled = sampled_problem(table_policy, logits, enumerated_batch(weight, policy, advantage))
        answer = (
            problem.linearise(logits).gradient,
            sampled.linearise(logits).gradient,
            jax.vmap(lambda t: problem.surrogate(logits + t * direction))(steps),
            problem.surrogate(other),
            sampled.surrogate(other),
        )
        return jax.tree.map(lambda x: x / (1 - mdp.discount), answer)

    arguments = (group.mdp, group.logits, group.other_logits, direction, weight, group.policy, advantage)
    answers = jax.jit(jax.vmap(study))(jax.tree.map(jnp.asarray, arguments))
    return tuple(np.asarray(x) for x in answers)


def _compare(group: Group, direction: np.ndarray) -> Study:
    mdp, policy = group.mdp, group.policy
    gradient, sampled_gradient, along, elsewhere, sampled_elsewhere = _library(group, direction)
    eta = exact.expected_return(mdp, policy)
    gain = exact.surrogate(mdp, policy, group.other_policy) - eta
    theorem, derivative = exact.policy_gradient(mdp, group.logits), complex_step_gradient(mdp, group.logits)
    steps = np.array([*STEPS, *-STEPS])
    returns = [exact.expected_return(mdp, exact.softmax(group.logits + t * direction)) for t in steps]
    change = np.stack(returns, axis=-1) - eta[:, None]
    missed = change - along[:, 1:]
    d_rho, d_advantage = second_order(mdp, group.logits, direction)
    terms = np.abs(exact.action_value(mdp, policy)) + np.abs(exact.value(mdp, policy))[..., None]
    return Study(
        scale=np.abs(mdp.reward).max(axis=(-2, -1)) / (1 - mdp.discount),
        value_error=np.abs(along[:, 0]),
        elsewhere_error=np.abs(elsewhere - gain),
        sampled_elsewhere_error=np.abs(sampled_elsewhere - gain),
        gradient_norm=_norm(derivative),
        gradient_scale=_norm(exact.visitation(mdp, policy)[..., None] * policy * terms),
        theorem_error=_norm(gradient - theorem),
        complex_error=_norm(gradient - derivative),
        sampled_error=_norm(sampled_gradient - derivative),
        slope=(derivative * direction).sum(axis=(-2, -1)),
        change=change[:, : STEPS.size],
        forward=missed[:, : STEPS.size],
        backward=missed[:, STEPS.size :],
        coefficient=(d_rho * d_advantage).sum(axis=-1),
        coefficient_scale=(np.abs(d_rho) * np.abs(d_advantage)).sum(axis=-1),
    )


def measure(size: int, seed: int) -> tuple[Study, tuple[Group, np.ndarray]]:
    """Measure at least ``size`` random MDPs in random directions; return a group with its directions as well."""
    # Some policies are too nearly deterministic for second differences, so a few MDPs more.
    groups = ensemble(size + size // 8, seed)
    rng = np.random.default_rng((seed, 3))
    directions = [rng.standard_normal(group.logits.shape) for group in groups]
    study = join([_compare(group, direction) for group, direction in zip(groups, directions, strict=True)])
    middle = len(groups) // 2
    return study, (groups[middle], directions[middle])
