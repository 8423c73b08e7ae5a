"""Distributions: what a policy returns, with closed-form KL and Fisher products."""

from trpo.distributions.bernoulli import Bernoulli
from trpo.distributions.beta import Beta
from trpo.distributions.categorical import Categorical
from trpo.distributions.diag_gaussian import DiagGaussian
from trpo.distributions.multi_categorical import MultiCategorical
from trpo.distributions.product import Product
from trpo.distributions.protocol import Distribution
from trpo.distributions.squashed_gaussian import SquashedGaussian

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "DiagGaussian",
    "Distribution",
    "MultiCategorical",
    "Product",
    "SquashedGaussian",
]
