"""Fitting the value function to λ-returns: one file a method."""

from trpo.value_fits.adam import AdamFit
from trpo.value_fits.fit import ValueBatch, ValueFit, ValueInfo, ValueState, explained_variance, fit_value, predict
from trpo.value_fits.gauss_newton import GaussNewtonFit

__all__ = [
    "AdamFit",
    "GaussNewtonFit",
    "ValueBatch",
    "ValueFit",
    "ValueInfo",
    "ValueState",
    "explained_variance",
    "fit_value",
    "predict",
]
