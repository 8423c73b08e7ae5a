"""Several updates on one batch, by the library, and what they come to, by the oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo.distributions import Categorical
from trpo.problem import Batch, LocalProblem, sampled_problem
from trpo.rules import TRPO, Repeated
from trpo.tabular import exact
from trpo.tabular.mdp import MDP
from trpo.theory.shared.ensemble import Group
from trpo.trees import tree_where

UPDATES = (1, 2, 4, 8)
"""K, the updates that one batch serves."""
MOST = UPDATES[-1]
BEGINS = np.cumsum((0, *UPDATES))
"""Where the K updates of each K begin in the schedule; the last entry is where the re-anchored ones do."""
ENDS = BEGINS[1:] - 1
"""The last update of each K, within a cumulative δ."""
ANCHORED = BEGINS[-1] + np.array(UPDATES) - 1
"""The K-th re-anchored update."""


class Schedule(NamedTuple):
    """What every update of one scan does: first all K cumulative updates for each K, then the re-anchored ones."""

    restart: Any
    """Whether it begins at θ_old."""
    fraction: Any
    """Its bound on the mean KL, in units of δ."""
    anchored: Any
    """Whether the KL is measured from the present policy, not from the sampling one."""


def schedule() -> Schedule:
    """Return k/K of δ from the sampling policy for K = 1, 2, 4, 8, then δ from the present policy eight times."""
    rows = [(k == 0, (k + 1) / count, False) for count in UPDATES for k in range(count)]
    rows += [(k == 0, 1.0, True) for k in range(MOST)]
    return Schedule(*(np.asarray(column) for column in zip(*rows, strict=True)))


def rule(max_kl: Any, parameters: int) -> TRPO:
    """Return the rule under test: a nearly undamped solve to the end, and steps of any norm."""
    return TRPO(
        max_kl=max_kl, damping=1e-9, cg_iterations=parameters, cg_tolerance=1e-14, max_step_norm=1e6,
        use_measured_kl=True,
    )  # fmt: skip


def local_problem(features: jax.Array, base: jax.Array, batch: Batch) -> LocalProblem:
    """Return the sampled problem of the policy with logits base(s, a) + φ(s, a)ᵀθ around θ = 0."""

    def policy(theta: jax.Array, state: jax.Array) -> Categorical:
        # The batch lists every (s, a) in order, so looking up a row's state is repeating each state's logits.
        logits = base + features @ theta
        return Categorical(jnp.broadcast_to(logits[:, None, :], (*state.shape, logits.shape[-1])))

    return sampled_problem(policy, jnp.zeros(features.shape[-1]), batch)


def updates() -> Callable[..., Any]:
    """Return the compiled map (features, base logits, batch, δ) ↦ θ after every update of the schedule."""
    plan = jax.tree.map(jnp.asarray, schedule())

    def one(features: jax.Array, base: jax.Array, batch: Batch, max_kl: jax.Array) -> jax.Array:
        problem = local_problem(features, base, batch)
        theta_old = jnp.zeros(features.shape[-1])

        def update(theta: jax.Array, row: Schedule) -> tuple[jax.Array, jax.Array]:
            theta = jnp.where(row.restart, theta_old, theta)
            anchor = tree_where(row.anchored, problem.distributions(theta), problem.old)
            present = dataclasses.replace(problem, old=anchor)
            theta, _, _ = rule(max_kl * row.fraction, features.shape[-1]).update(present, theta, ())
            return theta, theta

        return jax.lax.scan(update, theta_old, plan)[1]

    return jax.jit(jax.vmap(one))


def learner_updates(facts: Facts, phi: np.ndarray, batch: Batch, max_kl: float, count: int) -> np.ndarray:
    """Return θ after ``count`` updates of one batch by what the learner calls, ``[n, S·A]``."""

    def one(features: jax.Array, base: jax.Array, batch: Batch) -> jax.Array:
        theta = jnp.zeros(features.shape[-1])
        return Repeated(rule(max_kl, theta.size), count).update(local_problem(features, base, batch), theta, ())[0]

    every = jax.jit(jax.vmap(one))
    return np.asarray(every(jnp.asarray(phi), jnp.asarray(facts.group.logits), batch))


def apply(compiled: Callable[..., Any], facts: Facts, phi: np.ndarray, batch: Batch, max_kl: np.ndarray) -> np.ndarray:
    """Run :func:`updates`: θ after each update, ``[n, updates, S·A]``."""
    return np.asarray(compiled(jnp.asarray(phi), jnp.asarray(facts.group.logits), batch, jnp.asarray(max_kl)))


def return_deviation(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """Return the standard deviation of Σ_t γᵗ r_t from (s, a), ``[n, S, A]``, by its second moments' linear system."""
    gamma = mdp.discount[:, None, None]
    v = exact.value(mdp, policy)
    q = exact.action_value_of(mdp, v)
    # Var(s, a) = γ² (E Var(s') + Var V(s')), Var(s) = E_a[Var(s, a) + (Q − V)²].
    ahead = (mdp.transition @ v[:, None, :, None])[..., 0]
    known = gamma**2 * ((mdp.transition @ (v**2)[:, None, :, None])[..., 0] - ahead**2)
    system = np.eye(mdp.states) - gamma**2 * exact.state_transition(mdp, policy)
    right = (policy * (known + (q - v[..., None]) ** 2)).sum(axis=-1)
    variance = np.linalg.solve(system, right[..., None])
    total = known + gamma**2 * (mdp.transition @ variance[:, None])[..., 0]
    return np.sqrt(np.maximum(total, 0.0))


class Facts(NamedTuple):
    """What the oracle knows of a group before any update; leading axis ``[n]``."""

    group: Group
    policy: np.ndarray
    weight: np.ndarray
    advantage: np.ndarray
    deviation: np.ndarray
    """Of a one-sample return from (s, a)."""
    expected_return: np.ndarray
    second: np.ndarray
    """κ₂ = Σ_s d(s) E[A²]."""

    @classmethod
    def of(cls, group: Group) -> Facts:
        """Collect them."""
        mdp, policy = group.mdp, group.policy
        weight, advantage = exact.state_weight(mdp, policy), exact.advantage(mdp, policy)
        second = (weight[..., None] * policy * advantage**2).sum(axis=(-2, -1))
        deviation = return_deviation(mdp, policy)
        return cls(group, policy, weight, advantage, deviation, exact.expected_return(mdp, policy), second)

    def promise(self, max_kl: np.ndarray) -> np.ndarray:
        """Return √(2δ κ₂)/(1 − γ), the gain of η that the linear model promises to the tabular policy."""
        return np.sqrt(2 * max_kl * self.second) / (1 - self.group.mdp.discount)


def draw_batch(facts: Facts, samples: int, rng: np.random.Generator) -> Batch:
    """Draw ``samples`` pairs s ~ d_π, a ~ π with noisy advantages, or take the expectation if 0.

    A batch's L and D̄ depend on it only through how often each (s, a) occurs and the mean of its advantages, so the
    batch lists each (s, a) once with its frequency as weight: batches of every size have one shape.
    """
    joint = facts.weight[..., None] * facts.policy
    n, states, actions = joint.shape
    weight, advantage = joint, facts.advantage
    if samples > 0:
        joint = joint / joint.sum(axis=(-2, -1), keepdims=True)
        count = rng.multinomial(samples, joint.reshape(n, -1)).reshape(joint.shape)
        noise = facts.deviation * rng.standard_normal(joint.shape) / np.sqrt(np.maximum(count, 1))
        weight, advantage = count / samples, advantage + noise
    state = np.broadcast_to(np.arange(states)[:, None], joint.shape)
    action = np.broadcast_to(np.arange(actions), joint.shape)
    return Batch(*map(jnp.asarray, (state, action, advantage, weight)))


def features(group: Group, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return φ(s, a) of the table, and of policies that share S·A/3 parameters; ``[n, S, A, S·A]`` both.

    The shared ones are padded by zeros, so that one compiled program serves both.
    """
    n, states, actions = group.logits.shape
    total = states * actions
    shared = rng.standard_normal((n, states, actions, total))
    shared[..., max(2, total // 3) :] = 0.0
    table = np.eye(total).reshape(states, actions, total)
    return {"table": np.broadcast_to(table, shared.shape), "shared": shared}


def policies(facts: Facts, features: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Return π after each update, ``[updates, n, S, A]`` (oracle)."""
    logits = np.einsum("nsap,nup->unsa", features, theta, optimize=True)
    return exact.softmax(facts.group.logits + logits)


def state_kl(facts: Facts, new: np.ndarray) -> np.ndarray:
    """Return KL(π ‖ π_k) in each state after each update, ``[updates, n, S]`` (oracle)."""
    return exact.kl(np.broadcast_to(facts.policy, new.shape), new)


def bisect(inside: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return the largest positive x, to 1e-13 or so, with ``inside(x)``; true below and false above."""
    high = np.ones(shape)
    while np.any(grow := inside(high) & (high < 1e12)):
        high = np.where(grow, 2 * high, high)
    low = np.zeros(shape)
    for _ in range(46):
        middle = 0.5 * (low + high)
        good = inside(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return low


def to_boundary(facts: Facts, step: np.ndarray, weight: np.ndarray, max_kl: np.ndarray) -> np.ndarray:
    """Return the policy on the line of logits ``step`` at which D̄ = δ, ``[n, S, A]``."""

    def along(t: np.ndarray) -> np.ndarray:
        return exact.softmax(facts.group.logits + t[:, None, None] * step)

    def inside(t: np.ndarray) -> np.ndarray:
        return (weight * exact.kl(facts.policy, along(t))).sum(axis=-1) <= max_kl

    return along(bisect(inside, step.shape[:1]))


def constrained_optimum(facts: Facts, max_kl: np.ndarray) -> np.ndarray:
    """Return the maximiser of L within D̄ ≤ δ among all policies: π̃(a|s) = π(a|s) / (u (λ_s − A(s, a))).

    One multiplier u = 1/ν serves all states, λ_s > max_a A(s, a) makes π̃(·|s) sum to 1, and ν is such that D̄ = δ.
    """
    policy, a = facts.policy, facts.advantage
    likely = np.take_along_axis(policy, a.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    distance = a.max(axis=-1, keepdims=True) - a

    def tilted(nu: np.ndarray) -> np.ndarray:
        # x = λ_s − max A. The sum is convex in x and ≥ 1 at x = ν π(best): Newton's method rises to the root.
        nu = nu[:, None]
        x = nu * likely
        for _ in range(14):
            terms = policy / (x[..., None] + distance)
            x = x + (nu * terms.sum(axis=-1) - 1) / (nu * (terms / (x[..., None] + distance)).sum(axis=-1))
        new = policy / (x[..., None] + distance)
        return new / new.sum(axis=-1, keepdims=True)

    def inside(u: np.ndarray) -> np.ndarray:
        return (facts.weight * exact.kl(policy, tilted(1 / np.maximum(u, 1e-300)))).sum(axis=-1) <= max_kl

    return tilted(1 / bisect(inside, a.shape[:1]))


def cumulants(facts: Facts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return κ₂ and κ₃ = Σ_s d(s) E[A³], and Σ_s d(s) Var(A²), for a ~ π(·|s)."""
    joint, a = facts.weight[..., None] * facts.policy, facts.advantage
    square = (facts.policy * a**2).sum(axis=-1, keepdims=True)
    moments = (a**2, a**3, (a**2 - square) ** 2)
    second, third, spread = ((joint * moment).sum(axis=(-2, -1)) for moment in moments)
    return second, third, spread
