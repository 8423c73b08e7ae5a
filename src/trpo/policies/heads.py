"""Policies and value functions: a network, and the distribution that its outputs mean."""

from __future__ import annotations

from typing import Any

import equinox as eqx
from jaxtyping import Float

from trpo.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical
from trpo.policies.networks import MLP
from trpo.trees import namespace, per_element
from trpo.types import AnyArray


def _above(min_std: float, log_std: Any) -> Any:
    """Return log(min_std + exp(log_std)): the logarithm of a σ that cannot fall below ``min_std``."""
    xp = namespace(log_std)
    return xp.log(min_std + xp.exp(log_std)) if min_std > 0 else log_std


class GaussianPolicy(eqx.Module):
    """s ↦ N(network(s), diag(σ)²), σ = min_std + exp(log_std), the same in every state.

    With ``min_std`` 0 it is that of the TRPO paper's appendix D.
    """

    network: MLP
    log_std: Float[AnyArray, "d"]
    min_std: float = eqx.field(static=True, default=0.0)

    def __call__(self, observation: Any) -> DiagGaussian:
        """Return the distribution for each observation."""
        return self.around(self.network(observation))

    def around(self, mean: Any) -> DiagGaussian:
        """Return the distribution for each mean."""
        log_std = self.log_std
        return DiagGaussian(mean, namespace(log_std).broadcast_to(_above(self.min_std, log_std), mean.shape))


class StateDependentGaussianPolicy(eqx.Module):
    """s ↦ N(μ(s), diag(σ(s))²): the network's outputs are the d means, then the d offsets to ``log_std``.

    σ(s) = min_std + exp(log_std + offset(s)).
    """

    network: MLP
    log_std: Float[AnyArray, "d"]
    min_std: float = eqx.field(static=True, default=0.0)

    def __call__(self, observation: Any) -> DiagGaussian:
        """Return the distribution for each observation."""
        outputs = self.network(observation)
        d = self.log_std.shape[0]
        log_std = outputs[..., d:] + per_element(self.log_std, outputs.ndim)
        return DiagGaussian(outputs[..., :d], _above(self.min_std, log_std))


class CategoricalPolicy(eqx.Module):
    """s ↦ Categorical(network(s))."""

    network: MLP

    def __call__(self, observation: Any) -> Categorical:
        """Return the distribution for each observation."""
        return Categorical(self.network(observation))


class MultiCategoricalPolicy(eqx.Module):
    """s ↦ independent categoricals, their logits concatenated in ``network(s)``."""

    network: MLP
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, observation: Any) -> MultiCategorical:
        """Return the distribution for each observation."""
        return MultiCategorical(self.network(observation), self.sizes)


class BernoulliPolicy(eqx.Module):
    """s ↦ independent bits with logits ``network(s)``."""

    network: MLP

    def __call__(self, observation: Any) -> Bernoulli:
        """Return the distribution for each observation."""
        return Bernoulli(self.network(observation))


class ValueFunction(eqx.Module):
    """s ↦ V(s) in units of the running deviation of returns: a scalar for each leading index."""

    network: MLP

    def __call__(self, observation: Any) -> Any:
        """Return V for each observation."""
        return self.network(observation)[..., 0]
