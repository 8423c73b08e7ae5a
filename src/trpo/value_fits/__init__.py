"""Fitting the value function to λ-returns: one file a method."""

from trpo.value_fits.fit import (
    ValueBatch,
    ValueFit,
    ValueInfo,
    ValueState,
    explained_variance,
    fit_value,
    in_reward,
    predict,
)

__all__ = [
    "ValueBatch",
    "ValueFit",
    "ValueInfo",
    "ValueState",
    "explained_variance",
    "fit_value",
    "in_reward",
    "predict",
]
