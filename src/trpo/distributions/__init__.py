"""Distributions: what a policy returns, with closed-form KL and Fisher products."""

from trpo.distributions.bernoulli import Bernoulli
from trpo.distributions.categorical import Categorical
from trpo.distributions.diag_gaussian import DiagGaussian
from trpo.distributions.multi_categorical import MultiCategorical
from trpo.distributions.product import Product
from trpo.distributions.protocol import Distribution

__all__ = ["Bernoulli", "Categorical", "DiagGaussian", "Distribution", "MultiCategorical", "Product"]
