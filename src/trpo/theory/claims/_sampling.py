"""Simulated paths of many MDPs at once, the exact moments of what is summed along them, and tests of randomness."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import NamedTuple

import numpy as np

from trpo.tabular.mdp import MDP
from trpo.theory.records import Check, at_most, within
from trpo.theory.shared.laws import rms, slope

HEAVIEST = 4.0
"""Largest excess kurtosis of a mean over the fewest samples with which an MDP enters a test of randomness."""
NORMAL_95 = 1.959964
"""A standard normal number is within ± this with probability 0.95."""


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


class Noise(NamedTuple):
    """Errors of sample means in units of their exact standard deviations."""

    samples: np.ndarray
    """N, rising, shape ``[k]``."""
    z: np.ndarray
    """√N (mean of N samples − exact mean) / exact deviation of one, shape ``[n, k]``: N(0, 1) in the limit."""
    kurtosis: np.ndarray
    """Exact excess kurtosis of one sample, shape ``[n]``."""

    @classmethod
    def of(cls, samples: np.ndarray, mean: np.ndarray, moments: Moments, exact: np.ndarray) -> Noise:
        """Standardise means ``[n, k]`` over N samples, of those MDPs whose exact kurtosis allows it."""
        keep = moments.kurtosis <= HEAVIEST * samples[0]
        error = mean[keep] - exact[keep, None]
        return cls(samples, np.sqrt(samples) * error / moments.deviation[keep, None], moments.kurtosis[keep])


def _square_error(noise: Noise) -> np.ndarray:
    """Return the standard deviation of the mean of z² over the MDPs, per N: the variance of z² is 2 + kurtosis/N."""
    return np.sqrt((2 + noise.kurtosis[:, None] / noise.samples).mean(axis=0) / len(noise.z))


def bias_check(name: str, what: str, noise: Noise, statement: str, sigmas: float = 5.0) -> Check:
    """Check that an estimate is unbiased and has its exact deviation σ/√N; only exact moments enter the limits."""
    name = f"{name}: unbiased, exact σ"
    if not len(noise.z):
        return at_most(name, statement, 0, np.nan, sigmas, "no MDP has few enough outliers to be tested")
    mean = np.sqrt(len(noise.z)) * noise.z.mean(axis=0)
    square = (noise.z**2).mean(axis=0)
    worst = np.max(np.abs(np.concatenate([mean, (square - 1) / _square_error(noise)])))
    numbers = ", ".join(f"{v:.3f}" for v in np.sqrt(square))
    counts = ", ".join(str(int(v)) for v in noise.samples)
    return at_most(
        name,
        f"{statement}: E[error] = 0 and E[N·error²] = σ², σ exact (largest deviation in standard errors)",
        len(noise.z),
        worst,
        sigmas,
        f"RMS error of {what} in units of σ/√N: {numbers} at N = {counts}; mean error "
        f"{np.max(np.abs(mean)):.2f} standard errors at most",
    )


def slope_check(name: str, noise: Noise, statement: str, sigmas: float = 5.0) -> Check:
    """Check that the RMS error over the MDPs falls as N^-½, within what so many MDPs can tell."""
    name = f"{name}: slope −½"
    if not len(noise.z):
        return at_most(name, statement, 0, np.nan, 0.0, "no MDP has few enough outliers to be tested")
    error = rms(noise.z, axis=0) / np.sqrt(noise.samples)
    log_n = np.log(noise.samples)
    # An error of log RMS is half that of the mean square; those of nested samples are correlated, which makes it less.
    slack = sigmas * 0.5 * _square_error(noise).max() / np.sqrt(((log_n - log_n.mean()) ** 2).sum())
    fitted = float(slope(noise.samples.astype(float), error))
    return within(
        name,
        f"{statement}: RMS error over the MDPs ∝ N^slope",
        len(noise.z),
        fitted,
        -0.5 - slack,
        -0.5 + slack,
        f"slope {fitted:.3f} in log-log, N = {noise.samples[0]} … {noise.samples[-1]}; statistical limit ±{slack:.3f}",
    )


def noise_checks(name: str, what: str, noise: Noise, statement: str) -> list[Check]:
    """Return both checks."""
    return [bias_check(name, what, noise, statement), slope_check(name, noise, statement)]


def interval_check(
    samples: np.ndarray, mean: np.ndarray, deviation: np.ndarray, moments: Moments, exact: np.ndarray
) -> Check:
    """Check how often the 95 % interval, mean ± 1.96 s/√N from the samples alone, contains the exact value.

    Skewed samples make it cover a little less than 95 % at finite N; the term of order 1/N is known (Hall 1992, The
    Bootstrap and Edgeworth Expansion, section 2.6). ``mean`` and ``deviation`` are ``[n, k]``, the rest as in Noise.
    """
    keep = moments.kurtosis <= samples[0] / 4
    cases = max(int(keep.sum()), 1)
    half_width = NORMAL_95 * deviation / np.sqrt(samples)
    covered = (np.abs(mean - exact[:, None]) <= half_width)[keep].sum(axis=0) / cases
    x, skewness, kurtosis = NORMAL_95, moments.skewness[keep], moments.kurtosis[keep]
    term = kurtosis * (x**2 - 3) / 12 - skewness**2 * (x**4 + 2 * x**2 - 3) / 18 - (x**2 + 1) / 4
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    expected = 0.95 + 2 * x * density * (term.sum() / cases) / samples
    error = np.sqrt(0.05 * 0.95 / cases)
    described = " and ".join(
        f"{100 * covered[i]:.1f} % (expected {100 * expected[i]:.1f} %) at N = {samples[i]}" for i in (0, -1)
    )
    return at_most(
        "95 % interval covers",
        "Share of MDPs whose 95 % interval, mean ± 1.96 s/√N, contains the exact value, against 95 % less the exact "
        "term of order 1/N for skewed samples (largest deviation in standard errors)",
        cases,
        np.max(np.abs(covered - expected)) / error,
        4.0,
        f"covers {described}; standard error {100 * error:.1f} %",
    )
