"""What is learned, and the pure functions that learn it from a trajectory.

One iteration is :func:`improve` (the stages estimate, problem, rule, settle) and then :func:`refit`. They are two
compiled calls because the second is not needed before the next improvement: on the host it runs while the next fragment
is being collected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from trpo.advantages import gae, lambda_returns, standardise
from trpo.blocks import InBlocks, Split
from trpo.distributions import Product
from trpo.envs.masks import MASK, blocked
from trpo.envs.spaces import Space
from trpo.envs.spec import EnvSpec
from trpo.policies.protocol import PolicyFunction, after_each, unroll
from trpo.problem import Batch, LocalProblem, sampled_problem
from trpo.rollout import Actor, Trajectory, noise_of
from trpo.rollout.trajectory import Successors
from trpo.rollout.vine import Branches, Plan
from trpo.rules import Repeated
from trpo.rules.protocol import Rule, UpdateInfo
from trpo.running_statistics import RunningStatistics
from trpo.settings.config import Config
from trpo.training.vine import plan_of, roots_of, with_roots
from trpo.trees import all_finite, per_state, tree_where
from trpo.types import Params, Scalar
from trpo.value_fits import (
    ValueBatch,
    ValueFit,
    ValueInfo,
    ValueState,
    explained_variance,
    fit_value,
    in_reward,
    predict,
)
from trpo.vine import Roots, Trunk, vine_problem


class Learner(eqx.Module):
    """Everything that training changes."""

    policy: Params
    rule: Any
    """State of the update rule."""
    value: ValueState
    observations: PyTree[RunningStatistics]
    """Of the numbers of each leaf of raw observations that is normalised, merged after each update; None for others."""
    average: Params | None = None
    """Of the policies so far (:func:`averaged`); None without averaging."""
    value_carry: Any = ()
    """The value function's memory of each environment, before the next fragment. It is not in the source's seat, since
    sources know nothing of values; where an episode begins it does not count, so it may meet a source begun anew."""

    @property
    def deployed(self) -> Params:
        """The policy to act with when not training: the average where there is one."""
        return self.policy if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything static about an iteration: what it is compiled from."""

    policy: PolicyFunction
    value: PolicyFunction
    space: Space
    """Of observations."""
    count: int
    fragment: int
    clip: float | None
    """Bound on normalised observations; None: they are not normalised."""
    standardise_advantages: bool
    normalise_returns: bool
    fisher_subsample: int
    block: int = 0
    """States that a larger batch is worked on at a time; 0: all."""
    reward_sign: bool = False
    """Learn from the signs of rewards."""
    strata: int = 1
    """Blocks of environments, one for each device."""
    choices: tuple[int, ...] = ()
    """Of the actions that observations tell to be allowed or not (:func:`trpo.envs.masks.choices`); empty if none."""
    vine: Plan | None = None
    """None for single-path rollouts."""

    @classmethod
    def of(
        cls,
        policy: PolicyFunction,
        value: PolicyFunction,
        spec: EnvSpec,
        config: Config,
        strata: int = 1,
        choices: tuple[int, ...] = (),
    ) -> Program:
        """Take it from a configuration, and from the spaces that it is for."""
        return cls(
            policy=policy,
            value=value,
            space=spec.observation,
            count=config.env.count,
            fragment=config.fragment,
            clip=config.observation_clip if config.normalise_observations else None,
            standardise_advantages=config.standardise_advantages,
            normalise_returns=config.value.normalise_returns,
            fisher_subsample=config.fisher_subsample,
            block=config.block_of(spec.observation),
            reward_sign=config.reward == "sign",
            strata=strata,
            choices=choices,
            vine=plan_of(config, spec, value),
        )

    @property
    def most_steps(self) -> int:
        """Environment steps that an iteration takes at the most."""
        branches = 0 if self.vine is None else self.vine.branch_steps(self.count, self.fragment)
        return self.count * self.fragment + branches

    def freeze(self, params: Params, statistics: PyTree[RunningStatistics]) -> Actor:
        """Return what acting needs: parameters, and statistics as they are now."""
        if self.clip is None:
            return Actor(params, None, self.space)
        clip = self.clip
        frozen = self.space.map(lambda leaf, s: None if s is None else s.freeze(clip), statistics)
        return Actor(params, frozen, self.space)

    def value_of(self, params: Params, seen: Any, carry: Any = (), reset: Any = None) -> Float[Array, "*batch"]:
        """Return the value network's output for what it is shown, with memory of sequences ``[…, env, time]``."""
        if jax.tree.leaves(carry):
            axes = reset.ndim - 1
            together = partial(_flat, axes=axes)
            carry, *observed = jax.tree.map(together, (carry, seen, reset))
            v, _ = unroll(self.value, params, carry, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tuple(observed)))
            return v.T.reshape(reset.shape)

        def of(params: Params, seen: Any) -> Any:
            return self.value(params, (), (seen, None))[0]

        split = Split.of(jax.eval_shape(of, params, seen).shape, self.block, self.strata)
        if split is None:
            return of(params, seen)
        return InBlocks(jax.tree_util.Partial(of), jax.tree.map(split.split, seen), split)(params)


class Hyper(eqx.Module):
    """Hyperparameters of an iteration; floats are traced, so changing one compiles nothing anew."""

    rule: Rule
    """Serves a whole batch, within one max_kl."""
    value_fit: ValueFit
    discount: float | Scalar
    final_discount: float | Scalar | None
    """Where γ goes, if anywhere."""
    discount_iterations: float | Scalar
    """After how many iterations it is there."""
    gae_lambda: float | Scalar
    branch_lambda: float | Scalar
    averaging: float | Scalar | None
    """The share of the iterations that the average of policies is over; None: no average."""

    @classmethod
    def of(cls, config: Config, rule: Rule | None = None) -> Hyper:
        """Take them from a configuration; ``rule`` is used instead of the configuration's."""
        return cls(
            rule=Repeated(config.rule.build(config.batch) if rule is None else rule, config.updates_per_batch),
            value_fit=config.value.build(),
            discount=config.discount,
            final_discount=config.final_discount,
            discount_iterations=config.discount_steps / config.batch,
            gae_lambda=config.gae_lambda,
            branch_lambda=config.vine.branch_lambda,
            averaging=config.policy.averaging or None,
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
    explained_variance: Float[Array, ""]
    """Of the λ-returns by the value function before its fit."""
    std: Float[Array, ""] | None
    """Mean σ of a Gaussian policy over the batch before the update; None for other distributions."""
    finite: Bool[Array, ""]
    """False if the batch had a NaN or infinity, or a state in which no action is allowed."""
    blocked: Bool[Array, ""] | None = None
    """Whether it had such a state; None where all actions always are."""


class Estimates(eqx.Module):
    """A trajectory with what was estimated from it, ``[time, env]``; whatever comes next of a batch reads this."""

    trajectory: Trajectory
    """With zeros where a step is not valid."""
    seen: PyTree[Shaped[Array, "time env ..."]]
    """Observations as policy and value function are shown them."""
    reset: Bool[Array, "time env"]
    """Whether an episode begins with a step."""
    value: Float[Array, "time env"]
    """V(s), in units of reward."""
    advantage: Float[Array, "time env"]
    target: Float[Array, "time env"]
    """λ-returns."""
    weight: Float[Array, "time env"]
    """1/N where a step is valid, else 0."""
    value_carry: Any = ()
    """The value function's memory after the last step."""
    roots: Roots | None = None
    """Of a vine."""


def prepare(program: Program, params: Params, statistics: Any, key: Any, iteration: Any) -> tuple[Actor, Any, Any]:
    """Steps 1 and 2 of an iteration, up to the first step: actor, noise of its fragment, key of its value fit.

    All randomness is a function of the run's key and the iteration's number, so it does not depend on what came
    before.
    """
    actor = program.freeze(params, statistics)
    noise_key, fit_key = jax.random.split(jax.random.fold_in(key, iteration))
    return actor, noise_of(program.policy, actor, program.count, (program.fragment,), noise_key), fit_key


def improve(
    program: Program,
    hyper: Hyper,
    learner: Learner,
    trajectory: Trajectory,
    iteration: Any = 0,
    branches: Branches | None = None,
) -> tuple[Learner, ValueBatch, IterationInfo]:
    """Steps 3 to 5 and 7 of an iteration: everything but the value function's fit.

    Pure: no key, no environment; ``iteration``, from 0, matters to γ and to the average of policies. Returns the
    learner with its old value function, and the data to refit that with.
    """
    estimates = estimate(program, hyper, learner, trajectory, iteration)
    if branches is not None and program.vine is not None:
        roots = roots_of(program.vine, branches, estimates.seen, estimates.weight)
        estimates = dataclasses.replace(estimates, roots=roots)
    problem = local_problem(program, learner, estimates)
    params, rule_state, update = hyper.rule.update(problem, learner.policy, learner.rule)
    new, finite = settle(program, hyper, learner, estimates, params, rule_state, iteration)
    no_action = _blocked(program, estimates)
    if no_action is not None:
        new, finite = tree_where(no_action, learner, new), finite & ~no_action
    info = IterationInfo(
        update=tree_where(finite, update, update.refused()),
        explained_variance=explained_variance(estimates.value, estimates.target, estimates.weight),
        std=_mean_std(problem.old),
        finite=finite,
        blocked=no_action,
    )
    data = value_batch(learner.value_carry, estimates, program.strata)
    if estimates.roots is not None and program.vine is not None and program.vine.fit_roots:
        data = with_roots(data, program.vine, estimates.roots, problem.old, partial(_rows, strata=program.strata))
    return new, dataclasses.replace(data, columns=program.count // program.strata), info


def _blocked(program: Program, estimates: Estimates) -> Bool[Array, ""] | None:
    """Return whether some state of a batch has no allowed action; None where no observation says."""
    if not program.choices:
        return None
    mask = estimates.trajectory.observation[MASK]
    return jnp.any(blocked(program.choices, mask) & (estimates.weight > 0))


def value_now(program: Program, learner: Learner) -> Any:
    """Return V of raw observations, in units of reward, as it is now."""
    see = program.freeze(learner.policy, learner.observations).see
    return lambda observation: predict(program.value_of, learner.value, see(observation), program.normalise_returns)


def estimate(program: Program, hyper: Hyper, learner: Learner, trajectory: Trajectory, iteration: Any) -> Estimates:
    """Estimate advantages and the value function's targets."""
    weight = trajectory.valid / jnp.maximum(jnp.sum(trajectory.valid), 1).astype(jnp.result_type(float))
    steps = jax.tree.map(lambda leaf: _where_valid(trajectory.valid, leaf), trajectory.steps())
    clean = dataclasses.replace(trajectory, **steps)
    see = program.freeze(learner.policy, learner.observations).see
    seen = see(clean.observation)
    # The step after an auto-reset is where the episode really begins.
    begins = clean.terminated | clean.truncated | ~clean.valid
    reset = jnp.concatenate([clean.reset[None], begins[:-1]])
    v, next_v, carry = _values(program, learner, seen, reset, clean.next_observation, see)
    discount = hyper.discount_at(iteration)
    reward = jnp.sign(clean.reward) if program.reward_sign else clean.reward
    advantage = gae(reward, v, next_v, clean.terminated, clean.truncated, discount, hyper.gae_lambda)
    return Estimates(
        trajectory=clean,
        seen=seen,
        reset=reset,
        value=v,
        advantage=advantage,
        target=lambda_returns(advantage, v),
        weight=weight,
        value_carry=carry,
    )


def _values(
    program: Program, learner: Learner, seen: Any, reset: Array, following: Any, see: Callable[[Any], Any]
) -> tuple[Array, Array, Any]:
    """Return V of a batch's states and of their true successors, in units of reward, and the memory after the last.

    Of a successor it is the memory after its step that counts: no episode begins there.
    """
    params, memory = learner.value.params, ()
    if jax.tree.leaves(learner.value_carry):
        v, memory = unroll(program.value, params, learner.value_carry, (seen, reset))
    else:
        v = program.value_of(params, seen)

    def after(carries: Any, observation: Any) -> Array:
        if not jax.tree.leaves(memory):
            return program.value_of(params, see(observation))
        return after_each(program.value, params, carries, see(observation))

    def row(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[None], tree)

    last = jax.tree.map(lambda x: x[-1], memory)
    if isinstance(following, Successors):
        next_v = jnp.concatenate([v[1:], after(row(last), row(following.last))])
        ended = jax.tree.map(lambda x: x[following.step, following.env], memory)
        final = after(row(ended), row(following.final))[0]
        next_v = next_v.at[following.step, following.env].set(final, mode="drop")
    else:
        next_v = after(memory, following)
    v, next_v = (in_reward(learner.value, x, program.normalise_returns) for x in (v, next_v))
    return v, next_v, last


def local_problem(program: Program, learner: Learner, estimates: Estimates) -> LocalProblem:
    """Build the trust-region problem of a batch, or of a vine, around the policy that sampled it."""
    steps, weight = estimates.trajectory, estimates.weight
    advantage = standardise(estimates.advantage, weight) if program.standardise_advantages else estimates.advantage
    if estimates.roots is not None and program.vine is not None:
        trunk = Trunk(estimates.seen, weight, steps.carry, estimates.reset) if program.vine.over_trunk else None
        unit, size = program.standardise_advantages, (program.fisher_subsample, program.block, program.strata)
        return vine_problem(program.policy, learner.policy, estimates.roots, trunk, unit, *size)
    batch = Batch(
        observation=estimates.seen,
        action=steps.action,
        advantage=advantage,
        weight=weight,
        carry=steps.carry,
        reset=estimates.reset,
    )
    how = program.fisher_subsample, program.block, program.strata
    return sampled_problem(program.policy, learner.policy, batch, *how)


def settle(
    program: Program,
    hyper: Hyper,
    learner: Learner,
    estimates: Estimates,
    params: Params,
    rule_state: Any,
    iteration: Any,
) -> tuple[Learner, Bool[Array, ""]]:
    """Update statistics and average; return the new learner, or the old one and False if a number is not finite."""
    steps, statistics = estimates.trajectory, learner.observations
    if program.clip is not None:
        statistics = program.space.map(
            lambda leaf, s, x: None if s is None else s.merge(leaf.to_numbers(x), estimates.weight),
            statistics,
            steps.observation,
        )
    # The statistics too: finite numbers at the very end of the type's range have sums that are not.
    met = steps.observation, steps.next_observation, steps.reward, estimates.roots and estimates.roots.q
    finite = all_finite((*met, estimates.target, statistics))
    average = averaged(learner.average, params, hyper.averaging, iteration + 1)
    new = Learner(params, rule_state, learner.value, statistics, average, estimates.value_carry)
    return tree_where(finite, new, learner), finite


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
    program: Program, hyper: Hyper, state: ValueState, batch: ValueBatch, key: Any
) -> tuple[ValueState, ValueInfo]:
    """Step 6 of an iteration: fit the value function to the λ-returns."""
    return fit_value(hyper.value_fit, program.value_of, state, batch, key, program.normalise_returns)


def value_batch(carry: Any, estimates: Estimates, strata: int) -> ValueBatch:
    """Return what the value function is to be fitted to; with a memory, from ``carry``, sequences are kept whole."""
    data = estimates.seen, estimates.target, estimates.weight
    if not jax.tree.leaves(carry):
        return ValueBatch(*jax.tree.map(partial(_rows, strata=strata), data))

    def columns(leaf: Array) -> Array:
        return leaf if strata == 1 else leaf.reshape(strata, -1, *leaf.shape[1:])

    seen, target, weight, reset = jax.tree.map(lambda x: columns(jnp.swapaxes(x, 0, 1)), (*data, estimates.reset))
    return ValueBatch(seen, target, weight, (jax.tree.map(columns, carry), reset))


def with_memory(program: Program, learner: Learner) -> Learner:
    """Return a learner whose value function's memory is of the program's environments: a new one where it is not."""
    new = program.value.start(program.count)
    fits = jax.tree.map(jnp.shape, learner.value_carry) == jax.tree.map(jnp.shape, new)
    return learner if fits else dataclasses.replace(learner, value_carry=new)


def _flat(leaf: Array, axes: int) -> Array:
    """Return a leaf with its first ``axes`` axes as one."""
    return leaf.reshape(-1, *leaf.shape[axes:])


def _rows(leaf: Shaped[Array, "time env ..."], strata: int) -> Shaped[Array, "..."]:
    """Flatten ``[time, env, …]`` to rows ``[n, …]``, or to ``[strata, n / strata, …]``, each from a block of envs."""
    if strata == 1:
        return leaf.reshape(-1, *leaf.shape[2:])
    blocks = leaf.reshape(leaf.shape[0], strata, -1, *leaf.shape[2:])
    return jnp.moveaxis(blocks, 1, 0).reshape(strata, -1, *leaf.shape[2:])


def _where_valid(valid: Array, leaf: Array) -> Array:
    if leaf.ndim > 3 and leaf.dtype in (jnp.uint8, jnp.bool_):
        return leaf  # an image has no NaN, and a copy of it takes memory
    return jnp.where(per_state(valid, leaf), leaf, jnp.zeros((), leaf.dtype))


def _mean_std(distribution: Any) -> Scalar | None:
    found = _log_stds(distribution)
    return jnp.mean(jnp.exp(found[0] if len(found) == 1 else jnp.concatenate(found, -1))) if found else None


def _log_stds(distribution: Any) -> list[Any]:
    if isinstance(distribution, Product):
        return [x for part in distribution.parts for x in _log_stds(part)]
    return [distribution.log_std] if hasattr(distribution, "log_std") else []
