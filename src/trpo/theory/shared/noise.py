"""Tests of randomness: whether errors of sample means have the sizes that their exact moments say."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trpo.theory.records import Check, at_most, within
from trpo.theory.shared.laws import rms, slope
from trpo.theory.shared.paths import Moments

HEAVIEST = 4.0
"""Largest excess kurtosis of a mean over the fewest samples with which an MDP enters a test of randomness."""
NORMAL_95 = 1.959964
"""A standard normal number is within ± this with probability 0.95."""
_NONE = "no MDP has few enough outliers to be tested"


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
        return at_most(name, statement, noise.z, sigmas, _NONE)
    mean = np.sqrt(len(noise.z)) * noise.z.mean(axis=0)
    square = (noise.z**2).mean(axis=0)
    deviations = np.abs(np.concatenate([mean, (square - 1) / _square_error(noise)]))
    numbers = ", ".join(f"{v:.3f}" for v in np.sqrt(square))
    counts = ", ".join(str(int(v)) for v in noise.samples)
    says = f"{statement}: E[error] = 0 and E[N·error²] = σ², σ exact (largest deviation in standard errors)"
    law = (
        f"RMS error of {what} in units of σ/√N: {numbers} at N = {counts}; mean error "
        f"{np.max(np.abs(mean)):.2f} standard errors at most"
    )
    return at_most(name, says, deviations, sigmas, law, over=noise.z)


def slope_check(name: str, noise: Noise, statement: str, sigmas: float = 5.0) -> Check:
    """Check that the RMS error over the MDPs falls as N^-½, within what so many MDPs can tell."""
    name = f"{name}: slope −½"
    if not len(noise.z):
        return at_most(name, statement, noise.z, 0.0, _NONE)
    error = rms(noise.z, axis=0) / np.sqrt(noise.samples)
    log_n = np.log(noise.samples)
    # An error of log RMS is half that of the mean square; those of nested samples are correlated, which makes it less.
    slack = sigmas * 0.5 * _square_error(noise).max() / np.sqrt(((log_n - log_n.mean()) ** 2).sum())
    fitted = float(slope(noise.samples.astype(float), error))
    says, low, high = f"{statement}: RMS error over the MDPs ∝ N^slope", -0.5 - slack, -0.5 + slack
    law = f"slope {fitted:.3f} in log-log, N = {noise.samples[0]} … {noise.samples[-1]}; statistical limit ±{slack:.3f}"
    return within(name, says, fitted, low, high, law, over=noise.z)


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
    says = (
        "Share of MDPs whose 95 % interval, mean ± 1.96 s/√N, contains the exact value, against 95 % less the exact "
        "term of order 1/N for skewed samples (largest deviation in standard errors)"
    )
    law = f"covers {described}; standard error {100 * error:.1f} %"
    return at_most("95 % interval covers", says, np.abs(covered - expected) / error, 4.0, law, over=cases)
