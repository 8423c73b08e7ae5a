"""What the claim "rollouts" measures: the library's branches and vine problems on random MDPs, next to exact values."""

from __future__ import annotations

import dataclasses
from math import factorial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo.distributions import Categorical
from trpo.envs.device import Step
from trpo.envs.spaces import Box, Choice
from trpo.envs.spec import EnvSpec
from trpo.rollout.device import DeviceSource
from trpo.rollout.vine import Start, follow
from trpo.tabular import exact
from trpo.tabular.mdp import MDP
from trpo.theory.shared.arrays import join
from trpo.theory.shared.ensemble import Group, ensemble
from trpo.theory.shared.noise import Noise
from trpo.theory.shared.tabular_batch import table_policy
from trpo.vine import Roots, vine_problem, vine_surrogate

SHARPEST = 3.0
"""Standard deviation of the sharpest policies' logits."""
STEP = 0.5
"""π̃ is π with ``STEP`` times standard normal numbers added to the logits."""
SAMPLES = np.array([32, 128, 512])
"""N, roots drawn from d_π."""
LENGTH = 3
"""n, steps of a branch: few, so that it matters what closes it."""
OFF = 5.0
"""Standard deviation of the error of another V."""
LENGTHS = np.array([1, 2, 4, 8, 16])
"""n, where the bias of the tail is looked at."""
KS = np.array([2, 4, 8, 16])
"""K, actions sampled in a root."""
LARGEST = (16, 4)
"""States and actions of every table; absent actions have logit −inf. So one compiled program serves all."""


@dataclasses.dataclass(frozen=True, eq=False)
class TableEnv:
    """An MDP as an environment that never ends; one uniform number makes each transition."""

    cumulative: Any
    reward: Any
    cheap_reset: bool = True
    spec: EnvSpec = dataclasses.field(default=EnvSpec("table", Box((), "int32"), Choice(LARGEST[1])))

    def reset(self, key: Any) -> tuple[Any, Any]:
        """Begin anywhere."""
        state = jax.random.randint(key, (), 0, LARGEST[0])
        return state, state

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        """Take an action."""
        after = jnp.sum(jax.random.uniform(key) >= self.cumulative[state, action][:-1]).astype(state.dtype)
        never = jnp.asarray(False)
        return after, Step(after, self.reward[state, action], never, never)


class Branches(NamedTuple):
    """The library's estimates from N roots, ``[n, k]``, and Q̂ of every root ``[n, roots, A]``."""

    surrogate: Any
    gradient: Any
    q: Any


class Cases(NamedTuple):
    """What was measured on one group of MDPs, or on all; leading axis ``[n]``."""

    noise: tuple[np.ndarray, ...]
    """z and kurtosis of surrogate and gradient closed with V_π, then of both closed with another V."""
    listed: np.ndarray
    """Error of surrogate and gradient with Q_π of every pair, relative to the size of their summands."""
    tail: np.ndarray
    """|bias| of the gradient along u closed with another V, over γⁿ times that V's error, ``[n, lengths]``."""
    same: np.ndarray
    """Largest difference of Q̂ among actions that are all the same."""
    common: np.ndarray
    """Variance of a root's part of the surrogate with common random numbers, over that with independent ones."""
    paths: np.ndarray
    """Variance at equal steps, of the vine over that of as many single actions."""
    bias: np.ndarray
    """Of the self-normalised surrogate in units of E_q ρ² |Q − E_π̃ Q|, ``[n, 2, ks]``: proposals π, uniform."""
    coefficient: np.ndarray
    """That of 1/K in it, −E_q ρ² (Q − E_π̃ Q), ``[n, 2]``."""
    largest: np.ndarray
    """Largest of ρ and 1/ρ there, ``[n, 2]``."""


class Measured(NamedTuple):
    """All of it."""

    cases: Cases
    noises: dict[str, Noise]


def _table(x: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """Enlarge ``[n, S, A, …]`` to ``LARGEST``."""
    table = np.zeros((len(x), *LARGEST, *x.shape[3:]))
    table[:, :, x.shape[2] :] = fill
    table[:, : x.shape[1], : x.shape[2]] = x
    return table


def _one(arguments: tuple[Any, ...]) -> Branches:
    """Follow all actions in the roots of one MDP, and build the library's problem from the first N of them."""
    logits, new_logits, u, cumulative, reward, v, discount, roots, key = arguments
    count, actions = SAMPLES[-1], LARGEST[1]
    env = TableEnv(cumulative, reward)

    def act(observation: Any, carry: Any, reset: Any, noise: Any) -> tuple[Any, Any]:
        return Categorical(logits[observation]).transform(noise), carry

    first = jnp.broadcast_to(jnp.arange(actions), (count, actions))
    noise = Categorical(jnp.zeros((count, actions))).noise(jax.random.fold_in(key, 0), (LENGTH,))
    keys = jax.random.split(jax.random.fold_in(key, 1), count)
    start = Start(roots, roots, (), jnp.zeros(count, bool))
    q, _ = follow(DeviceSource(env, env.spec), act, lambda s: v[s], start, first, noise, keys, discount, None)

    def estimate(weight: Any) -> tuple[Any, Any]:
        problem = vine_problem(table_policy, logits, Roots(roots, first, q, weight, complete=True))
        return problem.surrogate(new_logits), jnp.vdot(u, problem.linearise(logits).gradient)

    weights = (np.arange(count) < SAMPLES[:, None]) / SAMPLES[:, None]
    surrogate, gradient = jax.lax.map(estimate, jnp.asarray(weights))
    return Branches(surrogate, gradient, q)


class Programs(NamedTuple):
    """Compiled once for all groups of MDPs."""

    branches: Any
    normalised: Any

    @classmethod
    def new(cls) -> Programs:
        """Compile them afresh."""
        return cls(*(jax.jit(lambda given, f=f: jax.lax.map(f, given)) for f in (_one, _normalised)))


def follow_all(
    run: Programs, group: Group, new: np.ndarray, u: np.ndarray, v: np.ndarray, roots: np.ndarray
) -> Branches:
    """Follow branches in the MDPs of a group, closed with ``v``."""
    mdp = group.mdp
    whole = np.zeros((group.size, *LARGEST, LARGEST[0]))
    whole[..., :] = 1.0
    whole[:, : mdp.states, : mdp.actions, : mdp.states] = np.cumsum(mdp.transition, axis=-1)
    whole[:, : mdp.states, : mdp.actions, mdp.states - 1 :] = 1.0
    tables = _table(group.logits, -np.inf), _table(new, -np.inf), _table(u), whole, _table(mdp.reward)
    values = np.zeros((group.size, LARGEST[0]))
    values[:, : mdp.states] = v
    keys = jax.random.split(jax.random.key(int(roots.sum())), group.size)
    given = (*map(jnp.asarray, (*tables, values, mdp.discount, roots.astype(np.int32))), keys)
    return jax.tree.map(np.asarray, run.branches(given))


def action_values(group: Group, v: np.ndarray, length: int) -> np.ndarray:
    """Return E[Q̂(s, a)] of branches of ``length`` steps closed with ``v``, ``[n, S, A]``."""
    q = exact.action_value_of(group.mdp, v)
    for _ in range(length - 1):
        q = exact.action_value_of(group.mdp, (group.policy * q).sum(axis=-1))
    return q


def _of_roots(policy: np.ndarray, new: np.ndarray, u: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each root's part of the surrogate at π̃ and of the gradient along u, from Q ``[…, A]``."""
    centred = u - (policy * u).sum(axis=-1, keepdims=True)
    return ((new - policy) * q).sum(axis=-1), (policy * centred * q).sum(axis=-1)


def _standardised(found: np.ndarray, parts: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return errors in units of the roots' own standard error, and their kurtosis; NaN where nothing is random."""
    centred = parts - parts.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1)
    random = deviation > 1e-9 * (1 + np.abs(parts).max(axis=1))
    unit = np.where(random, deviation, np.nan)
    kurtosis = (centred**4).mean(axis=1) / unit**4 - 3
    return np.sqrt(SAMPLES) * (found - wanted[:, None]) / unit[:, None], kurtosis


def compositions(k: int, parts: int) -> np.ndarray:
    """List how often each of ``parts`` actions may come in k draws."""
    if parts == 1:
        return np.array([[k]])
    rows = [np.insert(compositions(k - i, parts - 1), 0, i, axis=1) for i in range(k + 1)]
    return np.concatenate(rows)


def _normalised(given: tuple[Any, ...]) -> Any:
    """Return the library's self-normalised surrogate of one state, expected over all that may be drawn."""
    new, proposal, q, action, probability = given
    log_new, log_proposal = jnp.log(new), jnp.log(proposal)
    distribution = Categorical(jnp.broadcast_to(log_new, (len(action), new.size)))
    roots = Roots(jnp.zeros(len(action)), action, q[action], probability, log_proposal[action])
    return vine_surrogate(distribution, roots)


def self_normalised(
    run: Programs, proposal: np.ndarray, new: np.ndarray, q: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bias in one state of each MDP, exactly, ``[n, ks]``, its coefficient, and how far ρ is from 1."""
    mean = (new * q).sum(axis=-1, keepdims=True)
    squares = new**2 / proposal
    size = (squares * np.abs(q - mean)).sum(axis=-1)
    absent = [(0, 0), (0, LARGEST[1] - q.shape[-1])]
    given = [np.pad(x, absent) for x in (new, proposal, q)]
    biases = []
    for k in KS.tolist():
        counts = compositions(k, LARGEST[1])
        ways = factorial(k) / np.prod([[float(factorial(c)) for c in row] for row in counts], axis=-1)
        action = np.array([np.repeat(np.arange(LARGEST[1]), row) for row in counts])
        probability = ways * np.prod(given[1][:, None] ** counts, axis=-1)
        each = np.broadcast_to(action, (len(q), *action.shape))
        biases.append(np.asarray(run.normalised(tuple(map(jnp.asarray, (*given, each, probability))))) - mean[:, 0])
    rho = new / proposal
    largest = np.maximum(rho, 1 / rho).max(axis=-1)
    return np.stack(biases, axis=-1) / size[:, None], -(squares * (q - mean)).sum(axis=-1) / size, largest


def study(run: Programs, group: Group, rng: np.random.Generator) -> Cases:
    """Measure one group of MDPs."""
    mdp, policy, n = group.mdp, group.policy, group.size
    new_logits, u = group.logits + STEP * rng.standard_normal(group.logits.shape), rng.standard_normal(policy.shape)
    new = exact.softmax(new_logits)
    weight, v = exact.state_weight(mdp, policy), exact.value(mdp, policy)
    other = v + OFF * rng.standard_normal(v.shape)
    roots = (rng.random((n, SAMPLES[-1], 1)) >= np.cumsum(weight, axis=-1)[:, None, :-1]).sum(axis=-1)
    which = np.arange(n)[:, None], roots
    noise: list[np.ndarray] = []
    for closing in (v, other):
        found = follow_all(run, group, new_logits, u, closing, roots)
        q = found.q[..., : mdp.actions]
        parts = _of_roots(policy[which], new[which], u[which], q)
        wanted = _of_roots(policy, new, u, action_values(group, closing, LENGTH))
        for estimate, part, exactly in zip(found[:2], parts, wanted, strict=True):
            noise += _standardised(estimate, part, (weight * exactly).sum(axis=-1))
        if closing is v:
            common = parts[0].var(axis=1)
            apart = ((new - policy)[which] ** 2 * _within(q, roots)).sum(axis=-1).mean(axis=1)
            apart += _of_roots(policy, new, u, action_values(group, v, LENGTH))[0][which].var(axis=1)
            drawn = (rng.random((*roots.shape, 1)) >= np.cumsum(policy, axis=-1)[which][..., :-1]).sum(axis=-1)
            taken = np.take_along_axis(q, drawn[..., None], -1)[..., 0] - v[which]
            ratio = np.take_along_axis((new / policy)[which], drawn[..., None], -1)[..., 0] - 1
            single = (ratio * taken).var(axis=1)
    # The first action's effects for all of them: with common random numbers nothing differs.
    transition, reward = (np.repeat(x[:, :, :1], mdp.actions, 2) for x in (mdp.transition, mdp.reward))
    alike = MDP(transition, reward, mdp.start, mdp.discount)
    equal = follow_all(run, group._replace(mdp=alike), new_logits, u, other, roots).q[..., : mdp.actions]
    q = exact.action_value(mdp, policy)
    tails = [_of_roots(policy, new, u, action_values(group, other, k) - q) for k in LENGTHS.tolist()]
    bias = np.stack([np.abs((weight * tail[1]).sum(axis=-1)) for tail in tails], axis=-1)
    # At most γⁿ times the largest error of V times Σ_s d Σ_a π |u − E_π u|.
    reach = (weight * (policy * np.abs(u - (policy * u).sum(axis=-1, keepdims=True))).sum(axis=-1)).sum(axis=-1)
    size = (np.abs(other - v).max(axis=-1) * reach)[:, None] * mdp.discount[:, None] ** LENGTHS
    state = np.arange(n), rng.integers(mdp.states, size=n)
    of_state = new[state], q[state]
    proposals = policy[state], np.full_like(policy[state], 1 / mdp.actions)
    sampled = (self_normalised(run, proposal, *of_state) for proposal in proposals)
    bias_of_k, coefficient, largest = (np.stack(x, axis=1) for x in zip(*sampled, strict=True))
    return Cases(
        noise=tuple(noise),
        listed=_listed(group, new_logits, u, weight),
        tail=bias / size,
        same=np.abs(equal - equal[..., :1]).max(axis=(1, 2)),
        common=common / np.where(apart > 0, apart, np.nan),
        paths=mdp.actions * common / np.where(single > 0, single, np.nan),
        bias=bias_of_k,
        coefficient=coefficient,
        largest=largest,
    )


def _within(q: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Return for every root and action the variance of Q̂ among the roots in the same state, ``[n, roots, A]``."""
    found = np.empty_like(q)
    for i, (rows, of) in enumerate(zip(q, roots, strict=True)):
        count = np.bincount(of)[:, None]
        mean, square = (
            np.stack([np.bincount(of, x) for x in (rows**power).T], axis=-1) / np.maximum(count, 1) for power in (1, 2)
        )
        found[i] = (square - mean**2)[of]
    return found


def _listed(group: Group, new_logits: np.ndarray, u: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return errors of the library's problem with every state a root, and its exact Q."""
    mdp, policy, new = group.mdp, group.policy, exact.softmax(new_logits)
    q = exact.action_value(mdp, policy)

    def both(given: tuple[Any, ...]) -> Any:
        logits, of_new, direction, values, w = given
        actions = jnp.broadcast_to(jnp.arange(mdp.actions), values.shape)
        problem = vine_problem(table_policy, logits, Roots(jnp.arange(mdp.states), actions, values, w, complete=True))
        return problem.surrogate(of_new), jnp.vdot(direction, problem.linearise(logits).gradient)

    given = tuple(map(jnp.asarray, (group.logits, new_logits, u, q, weight)))
    found = jax.jit(lambda x: jax.lax.map(both, x))(given)
    errors = []
    for ours, part in zip(found, _of_roots(policy, new, u, q), strict=True):
        size = (weight * np.abs(q).max(axis=-1)).sum(axis=-1) * (1 + np.abs(u).max(axis=(1, 2)))
        errors.append(np.abs(np.asarray(ours) - (weight * part).sum(axis=-1)) / size)
    return np.max(errors, axis=0)


def measure(size: int, seed: int) -> Measured:
    """Measure at least ``size`` random MDPs."""
    rng = np.random.default_rng(seed)
    run = Programs.new()
    cases = join([study(run, group, rng) for group in ensemble(size, seed, sharpest=SHARPEST)])
    names = ("surrogate", "gradient", "surrogate, another V", "gradient, another V")
    noises = {}
    for name, z, kurtosis in zip(names, cases.noise[::2], cases.noise[1::2], strict=True):
        keep = kurtosis <= SAMPLES[0] / 4
        noises[name] = Noise(SAMPLES, z[keep], kurtosis[keep])
    return Measured(cases, noises)
