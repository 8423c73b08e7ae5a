"""What a distribution must offer to be a policy's output."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from trpo.types import AnyArray


@runtime_checkable
class Distribution(Protocol):
    """A batch of distributions: a pytree of its own parameters, broadcasting over leading axes.

    The last axis of a parameter is the *event*: action dimensions or logits. Everything that is summed over
    the event (log-probability, entropy, KL) has the leading shape only. Methods are written against the array
    namespace of their inputs, so NumPy parameters give NumPy results.

    To add one: write the class, add it to ``tests/distribution_cases.py``, run the shared tests.
    """

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draw standard noise of shape ``leading + parameter shape``, independent of the parameters' values."""

    def transform(self, noise: Float[AnyArray, "..."]) -> Shaped[AnyArray, "..."]:
        """Turn standard noise into an action; ``transform(noise(key))`` has this distribution."""

    def sample(self, key: PRNGKeyArray) -> Shaped[Array, "..."]:
        """Draw one action for each leading index."""

    def mode(self) -> Shaped[AnyArray, "..."]:
        """Return the most probable action, the one a deterministic policy takes."""

    def log_prob(self, action: Shaped[AnyArray, "..."]) -> Float[AnyArray, "..."]:
        """Return log π(action), the joint over action dimensions."""

    def entropy(self) -> Float[AnyArray, "..."]:
        """Return −E[log π], in nats, the joint over action dimensions."""

    def kl_to(self, other: Any) -> Float[AnyArray, "..."]:
        """Return KL(self ‖ other) = E_self[log self − log other], in nats, *summed* over action dimensions."""

    def fisher_product(self, tangent: Any) -> Any:
        """Return M·tangent with M the Fisher matrix E[∇log π ∇log πᵀ] in this distribution's own parameters.

        ``tangent`` and the result have this distribution's structure, with tangents and cotangents as leaves.
        """
