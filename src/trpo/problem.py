"""The local problem that every update rule solves, and its builder from sampled data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from trpo.blocks import InBlocks, Split
from trpo.distributions import Distribution
from trpo.fisher import Linearisation, linearise
from trpo.line_search import Evaluation
from trpo.objectives import importance_sampled_surrogate, max_state_kl, mean_kl
from trpo.policies.function import memoryless
from trpo.policies.protocol import PolicyFunction, require_memory, unroll
from trpo.trees import per_element, per_state, weighted_sum
from trpo.types import Params, Scalar


class Batch(eqx.Module):
    """What the policy's update needs of a batch; leading axes are free and the same in every field.

    For a policy with memory they are ``[time, env]``.
    """

    observation: PyTree[Shaped[Array, "..."]]
    """As the policy takes it (normalised, if the policy was run on normalised observations)."""
    action: PyTree[Shaped[Array, "..."]]
    """Unclipped, as sampled from the policy."""
    advantage: Float[Array, "*batch"]
    weight: Float[Array, "*batch"]
    """≥ 0, summing to 1; 0 for padding and auto-reset steps, whose content then does not matter."""
    carry: Any = ()
    """A policy's memory before the first step, as it was when it acted."""
    reset: Bool[Array, "*batch"] | None = None
    """Whether an episode begins with a step: memory starts anew."""
    log_prob: Float[Array, "*batch"] | None = None
    """log b(a|s) under the behaviour policy b that sampled, if that is not the policy at ``params``; None if it is."""


class LocalModel(eqx.Module):
    """First- and second-order information about a local problem at one θ, from one primal pass."""

    evaluation: Evaluation
    gradient: Params
    """∇L(θ)."""
    policy: Linearisation
    kl: Callable[[Any], Scalar]
    weight: Float[Array, "*batch"]
    products: Linearisation
    """The linearisation that Fisher products use: all states, or a fixed subsample."""
    product_weight: Float[Array, "*sample"]

    def fisher_vp(self, vector: Params) -> Params:
        """Return F v with F the Fisher matrix of π_θ, averaged over states."""
        return self.products.fisher_vp(vector, self.product_weight)

    def kl_gradient(self) -> Params:
        """Return ∇D̄(θ): zero at the sampling policy, not at the second update of a batch."""
        return self.policy.pull_back(self.kl)

    def kl_along(self, vector: Params) -> tuple[Scalar, Scalar]:
        """Return slope and curvature of D̄ along ``vector``: ∇D̄(θ)ᵀv and vᵀF v, over all states."""
        return self.policy.along(self.kl, vector, self.weight)


class Rows(eqx.Module):
    """A batch of single paths, part by part: its states one by one, or with memory whole columns ``[time, env]``."""

    policy: PolicyFunction = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    """Leading axes of the batch."""
    observation: PyTree[Shaped[Array, "..."]]
    carry: Any
    reset: Any
    each: dict[str, Any]
    """What the surrogate needs of each state."""

    @property
    def whole(self) -> bool:
        """Whether a row is all the times of one environment."""
        return bool(jax.tree.leaves(self.carry))

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.shape[-1] if self.whole else math.prod(self.shape)

    def part(self, rows: Int[Array, "part"]) -> tuple[Callable[[Params], Distribution], dict[str, Any]]:
        """Return θ ↦ π_θ on some rows, and what the surrogate needs of them, with weights that sum to 1."""
        axis = len(self.shape) - 1 if self.whole else 0

        def take(leaf: Array) -> Array:
            leaf = leaf if self.whole else leaf.reshape(-1, *leaf.shape[len(self.shape) :])
            return jnp.take(leaf, rows, axis)

        carry = jax.tree.map(lambda leaf: jnp.take(leaf, rows, 0), self.carry)
        observation, reset, each = jax.tree.map(take, (self.observation, self.reset, self.each))
        total = jnp.sum(each["weight"])
        each |= {"weight": each["weight"] / jnp.where(total > 0, total, 1.0)}
        return _PolicyAt(self.policy, observation, carry, reset), each


class LocalProblem(eqx.Module):
    """maximise L(θ) subject to D̄(θ) = Σ_i w_i KL(π_old(·|s_i) ‖ π_θ(·|s_i)) ≤ δ  (TRPO paper, eq. 14).

    All that an update rule may know: it sees no batch, environment, network, device or random key. It is a
    pytree, so it can be an argument of a jitted function.
    """

    distributions: Callable[[Params], Distribution]
    """θ ↦ π_θ(·|s_i) for all states."""
    objective: Callable[[Any], Scalar]
    """π ↦ L."""
    old: Any
    """π_old: distributions of the policy that the trust region is around, as a rule the one that sampled the data. It
    stays put when a batch serves several updates."""
    weight: Float[Array, "*batch"]
    product_distributions: Callable[[Params], Distribution] | None = None
    """θ ↦ π_θ on the states that enter Fisher products; all of them if None."""
    product_weight: Float[Array, "*sample"] | None = None
    rows: Rows | None = None
    """The batch's rows, for rules that climb on parts of it; None where the data are not of single paths."""

    def _evaluation(self, distribution: Any) -> Evaluation:
        return Evaluation(
            surrogate=self.objective(distribution),
            mean_kl=mean_kl(self.old, distribution, self.weight),
            max_state_kl=max_state_kl(self.old, distribution, self.weight),
            entropy=weighted_sum(self.weight, distribution.entropy()),
        )

    def evaluate(self, params: Params) -> Evaluation:
        """Return surrogate, mean and largest KL and entropy at ``params``, in one forward pass."""
        return self._evaluation(self.distributions(params))

    def surrogate(self, params: Params) -> Scalar:
        """Return L(θ)."""
        return self.evaluate(params).surrogate

    def mean_kl(self, params: Params) -> Scalar:
        """Return D̄(θ), in nats."""
        return self.evaluate(params).mean_kl

    def linearise(self, params: Params) -> LocalModel:
        """Return value, gradient and Fisher products at ``params`` from a single primal pass."""
        policy = linearise(self.distributions, params)
        return LocalModel(
            evaluation=self._evaluation(policy.distribution),
            gradient=policy.pull_back(self.objective),
            policy=policy,
            kl=lambda distribution: mean_kl(self.old, distribution, self.weight),
            weight=self.weight,
            products=policy if self.product_distributions is None else linearise(self.product_distributions, params),
            product_weight=self.weight if self.product_weight is None else self.product_weight,
        )


def sampled_problem(
    policy: PolicyFunction | Callable[[Params, Any], Distribution],
    params: Params,
    batch: Batch,
    fisher_subsample: int = 1,
    block: int = 0,
    strata: int = 1,
) -> LocalProblem:
    """Build the local problem of a single-path batch around the policy that sampled it.

    Args:
        policy: a :class:`~trpo.policies.protocol.PolicyFunction`, or without memory ``policy(params, observation)``,
            which returns a :class:`Distribution` with the batch's leading axes.
        params: parameters of π_old, where the KL is 0: those of the *sampling* policy, so that ratios are 1 there, or,
            with ``batch.log_prob``, of any policy whose ratios to the one that sampled are finite.
        batch: see :class:`Batch`.
        fisher_subsample: k > 1 lets every product use a fixed 1/k of the states (the paper used a tenth); the
            gradient, and the KL that the line search enforces, always use all. Of every environment it takes other
            times (or, where fragments are shorter than k, it flattens the two); with memory it takes all times of one
            environment in k.
        block: states that a larger batch is worked on at a time, in every pass, gradient and product; of a policy with
            memory all times of some environments. The result is the same to rounding; memory is that of a block, and
            each pass over the batch computes the policy anew. 0: all at once.
        strata: parts of the environments of which each block has equally many, one for each device.

    Raises:
        ValueError: ``fisher_subsample`` is less than 1, or ``batch.carry`` is not a memory of the policy.
    """
    if fisher_subsample < 1:
        raise ValueError(f"fisher_subsample={fisher_subsample}: must be ≥ 1 (1 uses every state, 10 every tenth)")
    policy = memoryless(policy)
    require_memory("batch.carry", batch.carry, jax.eval_shape(lambda: policy.start(batch.weight.shape[-1])))
    if jax.tree.leaves(batch.carry) and (batch.reset is None or batch.reset.ndim != 2):
        raise ValueError("batch.reset: a policy with memory needs to know where episodes begin, [time, env]")
    content = (batch.action, batch.advantage, batch.log_prob)
    action, advantage, log_prob = _without_absent_rows(content, batch.weight)

    def each(old: Distribution) -> dict[str, Any]:
        sampled = old.log_prob(action) if log_prob is None else log_prob
        return {"action": action, "old_log_prob": sampled, "advantage": advantage, "weight": batch.weight}

    def objective(old: Distribution) -> Callable[[Any], Scalar]:
        return jax.tree_util.Partial(importance_sampled_surrogate, **each(old))

    seen = batch.observation, batch.weight, batch.carry, batch.reset
    problem = problem_on(policy, params, objective, *seen, fisher_subsample, block, strata)
    observation = _without_absent_rows(batch.observation, batch.weight)
    rows = Rows(policy, batch.weight.shape, observation, batch.carry, batch.reset, each(problem.old))
    return dataclasses.replace(problem, rows=rows)


def problem_on(
    policy: PolicyFunction,
    params: Params,
    objective: Callable[[Distribution], Callable[[Any], Scalar]],
    observation: PyTree,
    weight: Float[Array, "*batch"],
    carry: Any = (),
    reset: Any = None,
    fisher_subsample: int = 1,
    block: int = 0,
    strata: int = 1,
) -> LocalProblem:
    """Build a local problem on some states; ``objective`` returns L, given π_old there.

    The other arguments are those of :func:`sampled_problem`.
    """
    place = partial(_placed, policy, _first_row(observation, weight), block=block, strata=strata)
    distributions = place(observation, weight, carry, reset)
    old = jax.lax.stop_gradient(distributions(params))
    problem = LocalProblem(distributions, objective(old), old, weight)
    if fisher_subsample == 1:
        return problem
    take = take_carry = _fixed_subsample(weight.shape, fisher_subsample)
    if jax.tree.leaves(carry):
        take, take_carry = (_fixed_columns(weight.shape[1], fisher_subsample, axis) for axis in (1, 0))
    sample_weight = take(weight)
    total = jnp.sum(sample_weight)
    carry, reset = jax.tree.map(take_carry, carry), jax.tree.map(take, reset)
    return dataclasses.replace(
        problem,
        product_distributions=place(jax.tree.map(take, observation), sample_weight, carry, reset),
        product_weight=sample_weight / jnp.where(total > 0, total, 1.0),
    )


def _without_absent_rows(tree: PyTree, weight: Float[Array, "*batch"]) -> PyTree:
    return _replaced_rows(tree, _first_row(tree, weight), weight > 0)


def _replaced_rows(tree: PyTree, row: PyTree, present: Bool[Array, "*batch"]) -> PyTree:
    return jax.tree.map(lambda leaf, x: jnp.where(per_state(present, leaf), leaf, per_element(x, leaf.ndim)), tree, row)


def _first_row(tree: PyTree, weight: Float[Array, "*batch"]) -> PyTree:
    """Return the first row that counts."""
    # A NaN behind weight 0 would reach the gradient as 0 · NaN. Zeros are no cure: an observation of zeros may be
    # invalid (a mask that allows no action gives NaN as well). So such rows become copies of the first that counts.
    present = weight > 0
    index = jnp.arange(weight.size).reshape(weight.shape)
    lowest = jnp.min(jnp.where(present, index, weight.size))
    first = index == jnp.where(lowest < weight.size, lowest, 0)

    def row(leaf: Array) -> Array:
        only_first = jnp.where(per_state(first, leaf), leaf, jnp.zeros((), leaf.dtype))
        return jnp.sum(only_first, axis=tuple(range(weight.ndim)), dtype=leaf.dtype)

    return jax.tree.map(row, tree)


def _placed(
    policy: PolicyFunction,
    first: PyTree,
    observation: PyTree,
    weight: Float[Array, "*batch"],
    carry: Any = (),
    reset: Any = None,
    *,
    block: int,
    strata: int,
) -> Callable[[Params], Distribution]:
    """Return θ ↦ π_θ on the states of a batch, in blocks where it is larger than one; ``first`` is one that counts."""
    memory = bool(jax.tree.leaves(carry))
    split = Split.of(weight.shape, block, strata, whole=memory)
    if split is None:
        return _PolicyAt(policy, _replaced_rows(observation, first, weight > 0), carry, reset)
    # Rows that don't count are replaced in the blocks, so that there is no second copy of a large observation.
    rows = jax.tree.map(split.split, (observation, reset, weight > 0))
    carries = jax.tree.map(split.split_rows, carry)
    return InBlocks(_PolicyOn(policy, first), (*rows, carries), split)


class _PolicyOn(eqx.Module):
    """(θ, block) ↦ π_θ(·|s_i) on the block's observations."""

    policy: PolicyFunction = eqx.field(static=True)
    first: PyTree[Shaped[Array, "..."]]
    """An observation that counts."""

    def __call__(self, params: Params, block: Any) -> Distribution:
        observation, reset, present, carry = block
        return unroll(self.policy, params, carry, (_replaced_rows(observation, self.first, present), reset))[0]


class _PolicyAt(eqx.Module):
    """θ ↦ π_θ(·|s_i) on fixed observations."""

    policy: PolicyFunction = eqx.field(static=True)
    observation: PyTree[Shaped[Array, "..."]]
    carry: Any = ()
    reset: Bool[Array, "..."] | None = None

    def __call__(self, params: Params) -> Distribution:
        return unroll(self.policy, params, self.carry, (self.observation, self.reset))[0]


def _fixed_subsample(shape: tuple[int, ...], every: int) -> Callable[[Array], Array]:
    """Return the map from a batch with these leading axes to 1/``every`` of its rows, always the same."""
    # Not a stride: a stride shares factors with the number of environments and would then see only some of them.
    random = np.random.default_rng(0)
    if len(shape) == 2 and shape[0] >= every:
        # Of each environment its own times: on a batch that is divided by environment nothing has to move.
        length, count = shape
        times = np.stack([np.sort(random.permutation(length)[: length // every]) for _ in range(count)])
        pick = jax.vmap(lambda column, rows: column[rows], in_axes=(1, 0), out_axes=1)
        return lambda leaf: pick(leaf, times)
    size = math.prod(shape)
    rows = np.sort(random.permutation(size)[: max(1, size // every)])
    return lambda leaf: leaf.reshape((-1, *leaf.shape[len(shape) :]))[rows]


def _fixed_columns(count: int, every: int, axis: int) -> Callable[[Array], Array]:
    """Return the map to 1/``every`` of the environments along ``axis``, always the same: one of each block of them.

    So a batch that is divided by environment stays where it is.
    """
    every = min(every, count)
    picked = np.random.default_rng(0).integers(every, size=count // every)

    def take(leaf: Array) -> Array:
        within = jax.lax.slice_in_dim(leaf, 0, len(picked) * every, axis=axis)
        blocks = within.reshape(*leaf.shape[:axis], len(picked), every, *leaf.shape[axis + 1 :])
        return jax.vmap(lambda block, i: jnp.take(block, i, axis), in_axes=(axis, 0), out_axes=axis)(blocks, picked)

    return take
