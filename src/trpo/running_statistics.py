"""Running mean and variance, frozen while a policy is using them."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Float

from trpo.trees import namespace, per_element, per_state
from trpo.types import AnyArray


class Normaliser(eqx.Module):
    """x ↦ clip((x − mean) · scale): statistics frozen for the length of an iteration."""

    mean: Float[AnyArray, "*shape"]
    scale: Float[AnyArray, "*shape"]
    clip: float = eqx.field(static=True)

    def __call__(self, x: Any) -> Any:
        """Normalise ``x``; NumPy in gives NumPy out."""
        mean, scale, clip = per_element(self.mean, x.ndim), per_element(self.scale, x.ndim), self.clip
        xp = namespace(mean)
        return xp.minimum(xp.maximum((x - mean) * scale, -clip), clip)  # NumPy's own clip takes three times as long


class RunningStatistics(eqx.Module):
    """Count, mean and sum of squared deviations of everything merged so far, elementwise.

    Merging is the exact parallel update of Chan, Golub and LeVeque (1983), so the order and the size of batches
    do not matter beyond rounding.
    """

    count: Float[AnyArray, ""]
    mean: Float[AnyArray, "*shape"]
    deviations: Float[AnyArray, "*shape"]

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: Any = jnp.float32) -> RunningStatistics:
        """Return statistics of nothing: mean 0 and, by convention, variance 1."""
        return cls(jnp.zeros((), dtype), jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    @property
    def variance(self) -> Float[AnyArray, "*shape"]:
        """The population variance; 1 before anything was merged."""
        xp = namespace(self.mean)
        seen = self.count > 0
        return xp.where(seen, self.deviations / xp.where(seen, self.count, 1.0), xp.ones_like(self.mean))

    def merge(self, x: Float[AnyArray, "*batch_and_shape"], present: Float[AnyArray, "*batch"]) -> RunningStatistics:
        """Return the statistics of everything so far and of ``x`` where ``present`` > 0 (a 0/1 mask)."""
        axes = tuple(range(present.ndim))
        mask = jnp.asarray(present > 0)
        weight = per_state(mask.astype(self.mean.dtype), x)
        x = jnp.where(weight > 0, x, 0.0)
        added = jnp.sum(mask, dtype=self.count.dtype)
        some = jnp.maximum(added, 1.0)
        mean = jnp.sum(x * weight, axis=axes) / some
        deviations = jnp.sum(weight * (x - per_element(mean, x.ndim)) ** 2, axis=axes)
        total = jnp.maximum(self.count + added, 1.0)
        gap = mean - self.mean
        return RunningStatistics(
            count=self.count + added,
            mean=self.mean + gap * (added / total),
            deviations=self.deviations + deviations + gap**2 * (self.count * added / total),
        )

    def freeze(self, clip: float) -> Normaliser:
        """Return the map x ↦ clip((x − mean) / std) with today's statistics.

        An element that has never varied has no scale of its own and is only centred.
        """
        xp = namespace(self.mean)
        variance = self.variance
        # The threshold is relative: rounding gives a constant of 1000 a variance of about (1000 · eps)².
        constant = variance <= (32 * xp.finfo(variance.dtype).eps) ** 2 * (1.0 + self.mean**2)
        scale = 1.0 / xp.sqrt(xp.where(constant, xp.ones_like(variance), variance))
        return Normaliser(self.mean, scale, clip)

    def normalise(self, x: Any, clip: float) -> Any:
        """Return (x − mean) / std, clipped to ±``clip``; NumPy in gives NumPy out."""
        return self.freeze(clip)(x)
