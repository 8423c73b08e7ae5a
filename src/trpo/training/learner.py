"""What is learned, and the pure functions that learn it from a trajectory.

One iteration is ``improve`` (policy) and then ``refit`` (value function). They are two compiled calls because the
second is not needed before the next improvement: on the host it runs while the next fragment is being collected.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo.advantages import gae, lambda_returns, standardise
from trpo.policies.function import ModuleFunction
from trpo.problem import Batch, PolicyFunction, sampled_problem
from trpo.rollout import Actor, Trajectory
from trpo.rollout.acting import noise_of
from trpo.rules import Repeated
from trpo.rules.protocol import UpdateInfo
from trpo.running_statistics import RunningStatistics
from trpo.settings.config import Config
from trpo.trees import all_finite, tree_where
from trpo.types import Params, Scalar
from trpo.value_fits.fit import ValueBatch, ValueInfo, ValueState, explained_variance, fit_value, predict


class Learner(eqx.Module):
    """Everything that training changes."""

    policy: Params
    rule: Any
    """State of the update rule."""
    value: ValueState
    observations: RunningStatistics
    """Of raw observations, merged after each update."""
    average: Params | None = None
    """Of the policies so far (:func:`averaged`); None without averaging."""

    @property
    def deployed(self) -> Params:
        """The policy to act with when not training: the average where there is one."""
        return self.policy if self.average is None else self.average

    def actor(self, config: Config) -> Actor:
        """Return what training's acting needs, with today's statistics frozen."""
        clip = config.observation_clip if config.normalise_observations else None
        return freeze_actor(self.policy, self.observations, clip)


def freeze_actor(params: Params, observations: RunningStatistics, clip: float | None) -> Actor:
    """Return what acting needs: parameters, and statistics frozen as they are (None: observations stay raw)."""
    return Actor(params, None if clip is None else observations.freeze(clip))


class Hyper(eqx.Module):
    """Hyperparameters of an iteration; floats are traced, so changing one compiles nothing anew."""

    rule: Any
    value_fit: Any
    discount: float | Scalar
    final_discount: float | Scalar | None
    """Where γ goes, if anywhere."""
    discount_iterations: float | Scalar
    """After how many iterations it is there."""
    gae_lambda: float | Scalar
    averaging: float | Scalar | None
    """The share of the iterations that the average of policies is over; None: no average."""
    observation_clip: float = eqx.field(static=True)
    updates_per_batch: int = eqx.field(static=True)
    fisher_subsample: int = eqx.field(static=True)
    standardise_advantages: bool = eqx.field(static=True)
    normalise_observations: bool = eqx.field(static=True)
    normalise_returns: bool = eqx.field(static=True)
    strata: int = eqx.field(static=True, default=1)
    """Blocks of environments that every minibatch of a value fit draws from equally: one for each device."""

    @classmethod
    def of(cls, config: Config, rule: Any = None, strata: int = 1) -> Hyper:
        """Take them from a configuration; ``rule`` is used instead of the configuration's."""
        return cls(
            rule=config.rule.build() if rule is None else rule,
            value_fit=config.value.build(),
            discount=config.discount,
            final_discount=config.final_discount,
            discount_iterations=config.discount_steps / config.batch,
            gae_lambda=config.gae_lambda,
            averaging=config.policy.averaging or None,
            observation_clip=config.observation_clip,
            updates_per_batch=config.updates_per_batch,
            fisher_subsample=config.fisher_subsample,
            standardise_advantages=config.standardise_advantages,
            normalise_observations=config.normalise_observations,
            normalise_returns=config.value.normalise_returns,
            strata=strata,
        )

    def discount_at(self, iteration: Any) -> Any:
        """Return γ of an iteration, 1 − γ_k = (1 − γ)^(1 − s) (1 − γ_final)^s with s = k / K, at most 1.

        The horizon 1 / (1 − γ_k) thus grows by the same factor in each of K iterations (a growing discount:
        François-Lavet, Fonteneau and Ernst 2015, arXiv:1512.02011).
        """
        if self.final_discount is None:
            return self.discount
        share = jnp.clip(iteration / self.discount_iterations, 0.0, 1.0)
        return 1 - (1 - self.discount) ** (1 - share) * (1 - self.final_discount) ** share


class IterationInfo(eqx.Module):
    """What an iteration did."""

    update: UpdateInfo
    """Of all updates of the batch together: gains and backtracks summed, KL cumulative from the sampling policy."""
    accepted_updates: Array
    explained_variance: Float[Array, ""]
    """Of the λ-returns by the value function before its fit."""
    std: Float[Array, ""]
    """Mean σ of a Gaussian policy over the batch before the update; NaN for other distributions."""
    finite: Array
    """False if the batch had a NaN or infinity."""


def improve(
    policy: PolicyFunction,
    value: ModuleFunction,
    hyper: Hyper,
    learner: Learner,
    trajectory: Trajectory,
    iteration: Any = 0,
) -> tuple[Learner, ValueBatch, IterationInfo]:
    """Steps 3–6 and 8 of an iteration: advantages, trust-region updates, observation statistics.

    Pure: no key, no environment; ``iteration``, from 0, matters to γ and to the average of policies. Returns the
    learner with its old value function, and the data to refit that with.
    """
    weight = trajectory.valid / jnp.maximum(jnp.sum(trajectory.valid), 1).astype(jnp.result_type(float))
    clean = jax.tree.map(lambda leaf: _where_valid(trajectory.valid, leaf), trajectory)
    seen, following = clean.observation, clean.next_observation
    if hyper.normalise_observations:
        normaliser = learner.observations.freeze(hyper.observation_clip)
        seen, following = normaliser(seen), normaliser(following)
    v = predict(value, learner.value, seen, hyper.normalise_returns)
    next_v = predict(value, learner.value, following, hyper.normalise_returns)
    discount = hyper.discount_at(iteration)
    advantage = gae(clean.reward, v, next_v, clean.terminated, clean.truncated, discount, hyper.gae_lambda)
    target = lambda_returns(advantage, v)
    observations = learner.observations
    if hyper.normalise_observations:
        observations = observations.merge(clean.observation, weight)
    # The statistics too: an observation of 1e25 is finite, but a variance that has seen its square never recovers.
    finite = all_finite((clean.observation, clean.next_observation, clean.reward, target, observations))

    scaled = standardise(advantage, weight) if hyper.standardise_advantages else advantage
    batch = Batch(seen, clean.action, scaled, weight)
    problem = sampled_problem(policy, learner.policy, batch, hyper.fisher_subsample)
    rule = Repeated(hyper.rule, hyper.updates_per_batch)
    params, rule_state, update = rule.update(problem, learner.policy, learner.rule)
    update = tree_where(finite, update, update.refused())

    average = averaged(learner.average, params, hyper.averaging, iteration + 1)
    new = Learner(params, rule_state, learner.value, observations, average)
    info = IterationInfo(
        update=update,
        accepted_updates=update.accepted_updates,
        explained_variance=explained_variance(v, target, weight),
        std=_mean_std(problem.old),
        finite=finite,
    )
    data = ValueBatch(*(_rows(leaf, hyper.strata) for leaf in (seen, target, weight)))
    return tree_where(finite, new, learner), data, info


def averaged(average: Params | None, params: Params, share: Any, k: Any) -> Params | None:
    """Return the average of the policies after iteration k = 1, 2, …, θ̄_k = θ̄_{k−1} + a_k (θ_k − θ̄_{k−1}).

    With a_k = 1 / (1 + s (k − 1)), s the ``share``, θ_j has the weight Γ(j + η) / Γ(j) up to a constant, η = 1/s − 1:
    the late policies count, those of about the last s k iterations (polynomial-decay averaging: Shamir and Zhang
    2013, arXiv:1212.1824, §4). Nothing is sampled from it; the trust region is that of the policy itself.
    """
    if average is None or share is None:
        return average
    step = 1 / (1 + share * (k - 1))
    return jax.tree.map(lambda old, new: old + step * (new - old), average, params)


def refit(
    value: ModuleFunction, hyper: Hyper, state: ValueState, batch: ValueBatch, key: Any
) -> tuple[ValueState, ValueInfo]:
    """Step 7 of an iteration: fit the value function to the λ-returns."""
    return fit_value(hyper.value_fit, value, state, batch, key, hyper.normalise_returns)


def _rows(leaf: Array, strata: int) -> Array:
    """Flatten ``[time, env, …]`` to rows ``[n, …]``, or to ``[strata, n / strata, …]``, each from a block of envs."""
    if strata == 1:
        return leaf.reshape(-1, *leaf.shape[2:])
    blocks = leaf.reshape(leaf.shape[0], strata, -1, *leaf.shape[2:])
    return jnp.moveaxis(blocks, 1, 0).reshape(strata, -1, *leaf.shape[2:])


def _where_valid(valid: Array, leaf: Array) -> Array:
    mask = valid.reshape(valid.shape + (1,) * (leaf.ndim - valid.ndim))
    return jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def _mean_std(distribution: Any) -> Scalar:
    log_std = getattr(distribution, "log_std", None)
    return jnp.full((), jnp.nan) if log_std is None else jnp.mean(jnp.exp(log_std))


def prepare(
    params: Params, observations: Any, key: Any, iteration: Any, *, policy: Any, clip: float | None, shape: Any
) -> tuple[Actor, Any, Any]:
    """Steps 1 and 2 of an iteration, up to the first step: actor, noise of its fragment, key of its value fit.

    All randomness is a function of the run's key and the iteration's number, so it does not depend on what came
    before. ``shape`` is (fragment, environments, features of an observation).
    """
    actor = freeze_actor(params, observations, clip)
    noise_key, fit_key = jax.random.split(jax.random.fold_in(key, iteration))
    length, count, observation_size = shape
    return actor, noise_of(policy, actor, count, observation_size, length, noise_key), fit_key
