"""Distances between policies that have closed forms, by the library: Gaussians, and a soft-max that saturates."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from trpo.distributions import Categorical, DiagGaussian


class Gaussians(NamedTuple):
    """Relative errors of the library's KL between Gaussians."""

    moved: np.ndarray
    """Against Σ_i Δμ_i² / 2σ²."""
    ratio: float
    """KL of a moved mean at the smallest σ over that at the largest."""
    general: np.ndarray
    """Against the defining integral."""


def gaussian_kl(mean: np.ndarray, std: np.ndarray, other_mean: np.ndarray, other_std: np.ndarray) -> np.ndarray:
    """Return the KL by the library; arrays are ``[cases, d]``."""
    p = DiagGaussian(jnp.asarray(mean), jnp.asarray(np.log(std)))
    return np.asarray(p.kl_to(DiagGaussian(jnp.asarray(other_mean), jnp.asarray(np.log(other_std)))))


def gaussians(rng: np.random.Generator, size: int) -> Gaussians:
    """Compare the library's KL with closed form and integral, the latter for ``size`` random pairs."""
    sigma, moved = np.geomspace(0.01, 10, 61), []
    for d in (1, 2, 6):
        mean, std = rng.standard_normal((sigma.size, d)), np.repeat(sigma[:, None], d, axis=1)
        kl = gaussian_kl(mean, std, mean + 0.1, std)
        step = (mean + 0.1) - mean
        moved.append(np.abs(kl / ((step**2).sum(axis=-1) / (2 * sigma**2)) - 1))
    return Gaussians(np.concatenate(moved), kl[0] / kl[-1], _quadrature_error(rng, size))


def _quadrature_error(rng: np.random.Generator, size: int) -> np.ndarray:
    """Compare the library's KL with its defining integral: log p − log q is quadratic, so two nodes suffice."""
    mean, other = rng.standard_normal((2, size, 3))
    std, other_std = np.exp(rng.uniform(np.log(0.01), np.log(10), (2, size, 3)))
    node, mass = np.polynomial.hermite.hermgauss(2)
    action = mean[..., None] + np.sqrt(2) * std[..., None] * node
    log_p = -0.5 * ((action - mean[..., None]) / std[..., None]) ** 2 - np.log(std[..., None])
    log_q = -0.5 * ((action - other[..., None]) / other_std[..., None]) ** 2 - np.log(other_std[..., None])
    exactly = ((log_p - log_q) @ mass).sum(axis=-1) / np.sqrt(np.pi)
    return np.abs(gaussian_kl(mean, std, other, other_std) / exactly - 1)


def saturation() -> tuple[np.ndarray, float]:
    """Return the library's relative error where one of two actions grows rare, and the slope of log KL in the gap."""
    gap = np.linspace(2, 35, 34)
    rare = 1 / (1 + np.exp(gap))
    logits = jnp.stack([jnp.asarray(gap), jnp.zeros(gap.size)], axis=-1)
    kl = np.asarray(Categorical(logits).kl_to(Categorical(logits + jnp.array([[0.0, 1.0]]))))
    # log E exp(Δ) − E Δ for a step of 1 in the rare action's logit.
    error = np.abs(kl / (np.log1p(rare * np.expm1(1.0)) - rare) - 1)
    return error, float(np.polyfit(gap[gap > 10], np.log(kl[gap > 10]), 1)[0])
