"""Running mean and variance, frozen while a policy is using them."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Float

from trpo.trees import namespace, per_element, per_state, power_of_two
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
    do not matter beyond rounding. Squares are taken in a unit that follows the data, so that numbers whose squares
    are beyond the type's range are like any other.
    """

    count: Float[AnyArray, ""]
    mean: Float[AnyArray, "*shape"]
    deviations: Float[AnyArray, "*shape"]
    """Sum of squared deviations, divided by ``unit``²."""
    unit: Float[AnyArray, "*shape"]
    """A power of two, at least half the largest |x| so far: dividing by it rounds nothing."""

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: Any = jnp.float32) -> RunningStatistics:
        """Return statistics of nothing: mean 0 and, by convention, variance 1."""
        smallest = jnp.full(shape, jnp.finfo(dtype).tiny, dtype)
        return cls(jnp.zeros((), dtype), jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), smallest)

    @property
    def std(self) -> Float[AnyArray, "*shape"]:
        """The population's standard deviation; 1 before anything was merged."""
        xp = namespace(self.mean)
        return xp.where(self.count > 0, xp.sqrt(self._scaled_variance) * self.unit, xp.ones_like(self.mean))

    @property
    def variance(self) -> Float[AnyArray, "*shape"]:
        """The population variance; 1 before anything was merged. Unlike ``std`` it may be out of the type's range."""
        xp = namespace(self.mean)
        return xp.where(self.count > 0, self._scaled_variance * self.unit * self.unit, xp.ones_like(self.mean))

    @property
    def _scaled_variance(self) -> Float[AnyArray, "*shape"]:
        return self.deviations / namespace(self.mean).maximum(self.count, 1.0)

    def merge(self, x: Float[AnyArray, "*batch_and_shape"], present: Float[AnyArray, "*batch"]) -> RunningStatistics:
        """Return the statistics of everything so far and of ``x`` where ``present`` > 0 (a 0/1 mask)."""
        axes = tuple(range(present.ndim))
        mask = jnp.asarray(present > 0)
        weight = per_state(mask.astype(self.mean.dtype), x)
        x = jnp.where(weight > 0, x, 0.0)
        added = jnp.sum(mask, dtype=self.count.dtype)
        some = jnp.maximum(added, 1.0)
        unit = jnp.maximum(self.unit, power_of_two(jnp.max(jnp.abs(x), axis=axes, initial=0.0)))
        x = x / per_element(unit, x.ndim)
        mean = jnp.sum(x * weight, axis=axes) / some
        deviations = jnp.sum(weight * (x - per_element(mean, x.ndim)) ** 2, axis=axes)
        total = jnp.maximum(self.count + added, 1.0)
        before = self.mean / unit
        gap = mean - before
        return RunningStatistics(
            count=self.count + added,
            mean=(before + gap * (added / total)) * unit,
            deviations=self.deviations * (self.unit / unit) ** 2 + deviations + gap**2 * (self.count * added / total),
            unit=unit,
        )

    def freeze(self, clip: float) -> Normaliser:
        """Return the map x ↦ clip((x − mean) / std) with today's statistics.

        An element that has never varied, beyond the rounding of its largest |x|, has no scale of its own and is only
        centred.
        """
        xp = namespace(self.mean)
        variance = self._scaled_variance
        # Rounding gives a constant of 1000 a variance of about (1000 · eps)².
        constant = variance <= (32 * xp.finfo(variance.dtype).eps) ** 2 * (1.0 + (self.mean / self.unit) ** 2)
        one = xp.ones_like(variance)
        scale = 1.0 / xp.sqrt(xp.where(constant, one, variance)) / xp.where(constant, one, self.unit)
        return Normaliser(self.mean, xp.minimum(scale, xp.finfo(variance.dtype).max), clip)

    def normalise(self, x: Any, clip: float) -> Any:
        """Return (x − mean) / std, clipped to ±``clip``; NumPy in gives NumPy out."""
        return self.freeze(clip)(x)
