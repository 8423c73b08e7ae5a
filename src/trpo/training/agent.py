"""An agent: policy and value function with everything needed to act."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo.envs import EnvSpec, to_env_action
from trpo.envs.names import make_envs
from trpo.policies.function import ModuleFunction, as_function
from trpo.policies.heads import (
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianPolicy,
    MultiCategoricalPolicy,
    StateDependentGaussianPolicy,
    ValueFunction,
)
from trpo.policies.networks import mlp
from trpo.rollout import Actor, HostPolicy
from trpo.rollout.whole_episodes import EvaluationResult, drawn_noise, whole_episodes
from trpo.running_statistics import RunningStatistics
from trpo.settings.config import Config, PolicyConfig, ValueConfig
from trpo.training.learner import Learner, freeze_actor
from trpo.value_fits.fit import ValueState


def make_policy(spec: EnvSpec, config: PolicyConfig, key: Any, first: int | None = None) -> Any:
    """Make the policy module that ``spec``'s action space calls for, in the default floating-point type.

    With ``first`` it sees so many first elements of an observation, otherwise all.
    """
    action = spec.action
    dtype = jnp.result_type(float)

    def network(outputs: int) -> Any:
        sizes = (spec.observation_size, *config.hidden, outputs)
        return mlp(key, sizes, config.activation, config.last_layer_scale, config.hidden_layer_scale, dtype, first)

    match action.kind:
        case "box":
            min_std = config.std_bound(action.size)
            log_std = jnp.full((action.size,), math.log(config.initial_std - min_std), dtype)
            if config.state_dependent_std:
                return StateDependentGaussianPolicy(network(2 * action.size), log_std, min_std)
            return GaussianPolicy(network(action.size), log_std, min_std)
        case "discrete":
            return CategoricalPolicy(network(action.sizes[0]))
        case "multi_discrete":
            return MultiCategoricalPolicy(network(sum(action.sizes)), action.sizes)
        case "multi_binary":
            return BernoulliPolicy(network(action.size))


def make_value(spec: EnvSpec, config: ValueConfig, key: Any, first: int | None = None) -> ValueFunction:
    """Make the value function: a network of its own. ``first`` as for :func:`make_policy`."""
    sizes = (spec.observation_size, *config.hidden, 1)
    dtype = jnp.result_type(float)
    return ValueFunction(mlp(key, sizes, config.activation, 1.0, config.hidden_layer_scale, dtype, first))


@dataclasses.dataclass(frozen=True)
class Agent:
    """A policy for one kind of environment, with its value function, its settings and what it has learned."""

    spec: EnvSpec
    config: Config
    policy: ModuleFunction
    value: ModuleFunction
    learner: Learner
    rule: Any = None
    """An update rule of your own; None means that of the configuration."""
    env: Any = None
    """The environment id or function it was made for; None means ``spec.id``."""

    @classmethod
    def create(cls, spec: EnvSpec, config: Config, policy: Any = None, env: Any = None, rule: Any = None) -> Agent:
        """Make an untrained agent.

        ``policy`` may be any callable pytree that maps observations to distributions, ``rule`` anything that follows
        :class:`~trpo.rules.protocol.Rule`.
        """
        policy_key, value_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0x7290))
        if config.observed_elements > spec.observation_size:
            raise ValueError(
                f"observed_elements={config.observed_elements}: must be ≤ {spec.observation_size}, "
                f"the size of an observation of {spec.id}; 0 is all"
            )
        first = config.observed_elements or None
        module = make_policy(spec, config.policy, policy_key, first) if policy is None else policy
        function, params = as_function(module)
        value, value_params = as_function(make_value(spec, config.value, value_key, first))
        dtype = jnp.result_type(float)
        learner = Learner(
            policy=params,
            rule=(config.rule.build() if rule is None else rule).init(params),
            value=ValueState(value_params, config.value.build().init(value_params), RunningStatistics.zeros((), dtype)),
            observations=RunningStatistics.zeros((spec.observation_size,), dtype),
            average=params if config.policy.averaging else None,
        )
        return cls(spec, config, function, value, learner, rule, env)

    def at(self, state: Any) -> Agent:
        """Return the same agent with what ``state`` (of :func:`trpo.iterations`) has learned."""
        return dataclasses.replace(self, learner=state.learner)

    @property
    def module(self) -> Any:
        """The policy as one callable module, parameters included: the average of training's where there is one."""
        return self.policy.bind(self.learner.deployed)

    def actor(self) -> Actor:
        """Return what acting needs, with statistics frozen."""
        clip = self.config.observation_clip if self.config.normalise_observations else None
        return freeze_actor(self.learner.deployed, self.learner.observations, clip)

    def act(self, observation: Any, deterministic: bool = True, seed: int | None = None) -> np.ndarray:
        """Choose an action for one observation, or a batch ``[N, …]`` of them: NumPy in, NumPy out.

        The action is ready for the environment: clipped, rescaled, of its shape and type. ``deterministic`` takes the
        distribution's mode, otherwise a sample (from ``seed``, or fresh randomness).
        """
        x = np.asarray(observation, np.float32)
        size, shape = self.spec.observation_size, self.spec.observation_shape
        if shape is not None and (x.shape == shape or x.shape[1:] == shape):
            single = x.shape == shape
        else:
            single = x.size == size and (x.ndim <= 1 or x.shape[0] != 1)
        if x.size % size:
            raise ValueError(f"observation of shape {x.shape}: must have {size} numbers, or a batch of that")
        x = x.reshape(-1, size)
        host = self._host_policy
        noise = None
        if not deterministic:
            key = jax.random.key(np.random.SeedSequence().generate_state(1)[0] if seed is None else seed)
            _, distribution = host(x, None)
            noise = np.asarray(distribution.noise(key))
        action, _ = host(x, noise)
        result = to_env_action(self.spec.action, action, self.config.env.rescale_actions)
        return np.asarray(result[0]) if single else result

    @property
    def _host_policy(self) -> HostPolicy:
        cached = self.__dict__.get("_host")
        if cached is None:
            cached = HostPolicy(self.policy, self.actor(), self.spec.observation_size)
            object.__setattr__(self, "_host", cached)  # a cache on a frozen record: same inputs, same outputs
        return cached

    def evaluate(self, episodes: int = 10, deterministic: bool = True, seed: int = 0) -> EvaluationResult:
        """Run whole episodes and return their returns and lengths."""
        return evaluate(self, episodes=episodes, deterministic=deterministic, seed=seed)


def evaluate(
    agent: Agent, env: Any = None, episodes: int = 10, deterministic: bool = True, seed: int = 0, count: int = 32
) -> EvaluationResult:
    """Run exactly ``episodes`` whole episodes with frozen statistics.

    Up to ``count`` environments are stepped together. Environment i runs a share of episodes that is fixed beforehand:
    taking whichever end first would favour short episodes. ``env`` is by default what the agent was made for.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: must be ≥ 1; 10 is usual")
    count = -(-episodes // -(-episodes // count))  # no more than shares of equal size need
    env = env if env is not None else agent.env if agent.env is not None else agent.spec.id
    envs = make_envs(env, count, 0, agent.config.env.rescale_actions)
    try:
        actor = agent.actor()
        policy = HostPolicy(agent.policy, actor, agent.spec.observation_size)
        noise = None if deterministic else drawn_noise(agent.policy, actor, count, agent.spec.observation_size, seed)
        return whole_episodes(envs, policy, episodes, seed, noise)
    finally:
        envs.close()
