"""Simulated paths of many MDPs at once, the exact moments of what is summed along them."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import NamedTuple

import numpy as np

from trpo.tabular.mdp import MDP


class Moments(NamedTuple):
    """Exact moments of a random number, one for each MDP, shape ``[n]`` each."""

    mean: np.ndarray
    deviation: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray
    """Excess kurtosis: 0 for a normal distribution, 6 for an exponential one, infinite if nothing is random."""

    @classmethod
    def of(cls, mean: np.ndarray, central: Callable[[int], np.ndarray]) -> Moments:
        """Build them from the mean and a function that gives the central moment of an order."""
        deviation = np.sqrt(central(2))
        # Deviations of the size of rounding errors are no randomness either.
        random = deviation > 1e-12 * (1 + np.abs(mean))
        unit = np.where(random, deviation, 1.0)
        skewness = np.where(random, central(3) / unit**3, 0.0)
        return cls(mean, deviation, skewness, np.where(random, central(4) / unit**4 - 3, np.inf))


def draw_moments(probability: np.ndarray, x: np.ndarray) -> Moments:
    """Return the moments of x[:, i] drawn with probability[:, i]; both have shape ``[n, outcomes]``."""
    mean = (probability * x).sum(axis=-1)
    return Moments.of(mean, lambda k: (probability * (x - mean[:, None]) ** k).sum(axis=-1))


def _from_start(mdp: MDP, mean: np.ndarray, central: list[np.ndarray]) -> Moments:
    """Combine the moments given the first state, ``[n, S]`` each, over the start distribution."""
    total = (mdp.start * mean).sum(axis=-1)
    shift = mean - total[:, None]
    return Moments.of(
        total,
        lambda k: sum((mdp.start * comb(k, j) * shift ** (k - j) * central[j]).sum(axis=-1) for j in range(k + 1)),
    )


def _inherited(k: int, step: np.ndarray, central: list[np.ndarray]) -> np.ndarray:
    """Σ_{j<k} C(k, j) ε^(k−j) c_j(s'): the k-th central moment of ε + X', but for the term c_k(s') of X' alone."""
    return sum((comb(k, j) * step ** (k - j) * central[j][:, None, None, :] for j in range(k)), start=np.zeros(()))


def geometric_moments(mdp: MDP, policy: np.ndarray, f: np.ndarray) -> Moments:
    """Return the moments of G = Σ_{t ≤ τ} f(s_t, a_t) along a path that goes on with probability γ after each step.

    E[G] = E[Σ_t γᵗ f(s_t, a_t)] = m. From s, G − m(s) = ε + B·(G' − m(s')) with ε = f(s, a) + B·m(s') − m(s) and
    B = 1 with probability γ, else 0: one linear system for each central moment.
    """
    gamma = mdp.discount[:, None, None, None]
    joint = policy[..., None] * mdp.transition
    system = np.eye(mdp.states) - mdp.discount[:, None, None] * joint.sum(axis=-2)
    mean = np.linalg.solve(system, (policy * f).sum(axis=-1)[..., None])[..., 0]
    stop = (f - mean[..., None])[..., None]
    central = [np.ones_like(mean), np.zeros_like(mean)]
    for k in (2, 3, 4):
        going_on = _inherited(k, stop + mean[:, None, None, :], central)
        known = (joint * ((1 - gamma) * stop**k + gamma * going_on)).sum(axis=(-2, -1))
        central.append(np.linalg.solve(system, known[..., None])[..., 0])
    return _from_start(mdp, mean, central)


def path_moments(mdp: MDP, policy: np.ndarray, f: np.ndarray, weight: np.ndarray) -> Moments:
    """Return the moments of Σ_{t<T} w_t f(s_t, a_t) along a path of T steps, by backward recursion.

    ``f`` has shape ``[n, S, A]`` and ``weight`` ``[n, T]``.
    """
    # Raw moments are cheap; centring f first keeps them from cancelling.
    frequency = state_frequencies(mdp, policy, weight.shape[-1])
    f_at = (frequency[..., None] * policy[:, None] * f[:, None]).sum(axis=(-2, -1))
    mean = (weight * f_at).sum(axis=-1)
    centred = f - (mean / weight.sum(axis=-1))[:, None, None]
    n, states, actions = f.shape
    transition = mdp.transition.reshape(n, states * actions, states)
    raw = np.zeros((n, states, 5))
    raw[..., 0] = 1.0
    for w in weight.T[::-1]:
        powers = [(w[:, None, None] * centred) ** k for k in range(5)]
        ahead = (transition @ raw).reshape(n, states, actions, 5)
        orders = [sum(comb(k, j) * powers[k - j] * ahead[..., j] for j in range(k + 1)) for k in range(5)]
        raw = np.stack([(policy * order).sum(axis=-1) for order in orders], axis=-1)
    return Moments.of(mean, lambda k: (mdp.start * raw[..., k]).sum(axis=-1))


def state_frequencies(mdp: MDP, policy: np.ndarray, steps: int) -> np.ndarray:
    """Return P(s_t = s) for t < ``steps``, shape ``[n, steps, S]``."""
    transition = (policy[..., None] * mdp.transition).sum(axis=-2)
    frequency = [mdp.start]
    for _ in range(steps - 1):
        frequency.append((frequency[-1][:, None, :] @ transition)[:, 0])
    return np.stack(frequency, axis=1)


class Simulator:
    """Draws (action, successor) for walkers in many MDPs at once, with one uniform number a step."""

    def __init__(self, mdp: MDP, policy: np.ndarray) -> None:
        joint = (policy[..., None] * mdp.transition).reshape(*policy.shape[:2], -1)
        kept = np.max(np.count_nonzero(joint, axis=-1))
        outcome = np.argsort(-joint, axis=-1, kind="stable")[..., :kept]
        probability = np.take_along_axis(joint, outcome, axis=-1)
        self.states = mdp.states
        self.start = np.cumsum(mdp.start, axis=-1)
        self._outcome = outcome.reshape(-1, kept)
        self._cumulative = np.cumsum(probability, axis=-1).reshape(-1, kept)[:, :-1]

    def begin(self, rng: np.random.Generator, paths: int) -> np.ndarray:
        """Return first states, ``[n, paths]``."""
        uniform = rng.random((len(self.start), paths))
        return (uniform[..., None] >= self.start[:, None, :-1]).sum(axis=-1)

    def step(self, rng: np.random.Generator, which: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return action and successor of walkers in the MDPs ``which``, with shapes of ``state``."""
        row = which * self.states + state
        column = (rng.random(state.shape)[..., None] >= self._cumulative[row]).sum(axis=-1)
        return np.divmod(self._outcome[row, column], self.states)


def geometric_sums(rng: np.random.Generator, mdp: MDP, policy: np.ndarray, f: np.ndarray, paths: int) -> np.ndarray:
    """Simulate G of :func:`geometric_moments`, independent draws of shape ``[n, paths]``."""
    simulator = Simulator(mdp, policy)
    state = simulator.begin(rng, paths).ravel()
    which = np.repeat(np.arange(len(mdp.start)), paths)
    walker = np.arange(which.size)
    total = np.zeros(which.size)
    while walker.size:
        action, successor = simulator.step(rng, which, state)
        total[walker] += f[which, state, action]
        alive = rng.random(walker.size) < mdp.discount[which]
        walker, which, state = walker[alive], which[alive], successor[alive]
    return total.reshape(-1, paths)


def simulate(
    rng: np.random.Generator, mdp: MDP, policy: np.ndarray, paths: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate paths of ``steps`` steps: states and actions, ``[n, paths, steps]`` each."""
    simulator = Simulator(mdp, policy)
    state = simulator.begin(rng, paths)
    which = np.broadcast_to(np.arange(len(state))[:, None], state.shape)
    states, actions = [], []
    for _ in range(steps):
        states.append(state)
        action, state = simulator.step(rng, which, state)
        actions.append(action)
    return np.stack(states, axis=-1), np.stack(actions, axis=-1)
