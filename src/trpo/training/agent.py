"""An agent: policy and value function with everything needed to act."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo.capacity import require_room
from trpo.envs.images import is_normalised
from trpo.envs.masks import MASK, choices
from trpo.envs.meeting import observed, require_same_spaces
from trpo.envs.names import EnvLike, resolve
from trpo.envs.spaces import Leaf
from trpo.envs.spec import EnvSpec
from trpo.policies.function import as_policy
from trpo.policies.make import make_policy, make_value
from trpo.policies.protocol import PolicyFunction, PolicyLike, require_memory
from trpo.programs import keep_programs, require_no_fork
from trpo.rollout import Actor, HostPolicy, noise_of
from trpo.rollout.whole_episodes import MAX_STEPS, EvaluationResult, drawn_noise, whole_episodes
from trpo.rules.protocol import Rule
from trpo.running_statistics import RunningStatistics
from trpo.settings.config import Config
from trpo.training.learner import Learner, Program
from trpo.training.sizes import check_networks, size_of
from trpo.training.state import TrainingState
from trpo.value_fits import ValueState


@dataclasses.dataclass(frozen=True)
class Agent:
    """A policy for one kind of environment, with its value function, its settings and what it has learned."""

    spec: EnvSpec
    config: Config
    policy: PolicyFunction
    value: PolicyFunction
    learner: Learner
    rule: Rule | None = None
    """An update rule of your own; None means that of the configuration."""
    env: EnvLike | None = None
    """The environment id or function it was made for; None means ``spec.id``."""
    own: frozenset[str] = frozenset()
    """Which of ``policy``, ``value`` and ``env`` are of your own, and not kept here."""

    @classmethod
    def create(
        cls,
        spec: EnvSpec,
        config: Config,
        policy: PolicyLike | None = None,
        env: EnvLike | None = None,
        rule: Rule | None = None,
        value: PolicyLike | None = None,
    ) -> Agent:
        """Make an untrained agent.

        ``policy`` may be any callable pytree that maps observations to distributions, ``value`` one that maps them to
        numbers in units of the returns' running deviation, and ``rule`` anything that follows
        :class:`~trpo.rules.protocol.Rule`.
        """
        own = frozenset(name for name, module in (("policy", policy), ("value", value)) if module is not None)
        check_networks(spec, config, own)
        require_no_fork()
        policy_key, value_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0x7290))
        scaled = not (config.normalise_observations and config.normalise_all)
        policy = make_policy(spec, config.policy, policy_key, scaled) if policy is None else policy
        value = make_value(spec, config.value, value_key, scaled) if value is None else value
        (function, params), (value_function, value_params) = as_policy(policy), as_policy(value)
        memory = size_of(jax.eval_shape(lambda: value_function.start(config.env.count)))
        what = f"env.count={config.env.count}: the value function's memory of so many takes"
        require_room(what, memory, "use fewer environments, or a smaller value.memory")
        dtype = jnp.result_type(float)

        def statistics(leaf: Leaf) -> RunningStatistics | None:
            normalised = config.normalise_all or is_normalised(leaf)
            return RunningStatistics.zeros(leaf.number_shape, dtype) if normalised else None

        observations = spec.observation.map(statistics)
        if spec.masked:
            observations[MASK] = None
        learner = Learner(
            policy=params,
            rule=(config.rule.build() if rule is None else rule).init(params),
            value=ValueState(value_params, config.value.build().init(value_params), RunningStatistics.zeros((), dtype)),
            observations=observations,
            average=params if config.policy.averaging else None,
            value_carry=value_function.start(config.env.count),
        )
        return cls(spec, config, function, value_function, learner, rule, env, own)

    @property
    def custom(self) -> dict[str, bool]:
        """What code of one's own it needs to be loaded again."""
        env = "env" in self.own or not isinstance(self.env, str | None)
        return {"policy": "policy" in self.own, "value": "value" in self.own, "rule": self.rule is not None, "env": env}

    def program(self, strata: int = 1) -> Program:
        """Return what an iteration of this agent is compiled from."""
        masked = choices(self.spec.action) if self.spec.masked else ()
        return Program.of(self.policy, self.value, self.spec, self.config, strata, masked)

    def at(self, state: TrainingState) -> Agent:
        """Return the same agent with what ``state`` (of :func:`trpo.iterations`) has learned."""
        return dataclasses.replace(self, learner=state.learner)

    @property
    def module(self) -> Any:
        """The policy as one callable module, parameters included: the average of training's where there is one."""
        function: Any = getattr(self.policy, "function", self.policy)
        return function.bind(self.learner.deployed)

    def actor(self) -> Actor:
        """Return what acting needs, with statistics frozen."""
        require_no_fork()
        return self.program().freeze(self.learner.deployed, self.learner.observations)

    def start(self, count: int | None = None) -> Any:
        """Return the policy's memory at the start of an episode, or of ``count`` together; ``()`` if it has none."""
        carry = self._host_policy.start(count or 1)
        return carry if count is not None else jax.tree.map(lambda x: x[0], carry)

    def act(
        self,
        observation: Any,
        carry: Any = None,
        *,
        deterministic: bool = True,
        seed: int | None = None,
        action_mask: Any = None,
    ) -> Any:
        """Choose an action for one observation, or a batch ``[N, …]`` of them: NumPy in, NumPy out.

        Observations are taken as the environment gives them, in the form of ``spec.observation``: see
        :func:`~trpo.envs.meeting.taken`, which refuses any other with a ValueError, and NaN and infinity too. Parts
        that training left out (``env.drop``) may be there.
        The action is ready for the environment: clipped, rescaled, of its shape and type. ``deterministic`` takes the
        distribution's mode, otherwise a sample (from ``seed``, or fresh randomness). With the ``carry`` of a policy
        with memory, from :meth:`start` or the call before, ``(action, carry)`` is returned.
        Where the environment tells in ``info`` or by a method which actions are allowed, ``action_mask`` is what it
        tells, in any of the forms that :func:`~trpo.envs.masks.flat_mask` takes.
        """
        if isinstance(carry, bool):
            raise TypeError("act: the second argument is the memory; write deterministic=… for the other")
        x, single = observed(self.spec, observation, action_mask, self.config.env.drop)
        host, count = self._host_policy, len(jax.tree.leaves(x)[0])
        memory = host.start(count)
        if carry is not None:
            require_memory("carry", carry, jax.tree.map(lambda leaf: leaf[0], memory) if single else memory)
            memory = jax.tree.map(lambda leaf: np.asarray(leaf)[None] if single else np.asarray(leaf), carry)
        noise = None
        if not deterministic:
            key = jax.random.key(np.random.SeedSequence().generate_state(1)[0] if seed is None else seed)
            noise = jax.tree.map(np.asarray, noise_of(self.policy, self.actor(), count, (), key))
        action, memory = host(x, memory, np.full(count, carry is None), noise)
        action = self.spec.action.to_env(action)
        if single:
            action, memory = jax.tree.map(lambda leaf: np.asarray(leaf[0]), (action, memory))
        return action if carry is None else (action, memory)

    @property
    def _host_policy(self) -> HostPolicy:
        cached = self.__dict__.get("_host")
        if cached is None:
            cached = HostPolicy(self.policy, self.actor())
            object.__setattr__(self, "_host", cached)  # a cache on a frozen record: same inputs, same outputs
        return cached

    def evaluate(
        self, episodes: int = 10, deterministic: bool = True, seed: int = 0, max_steps: int = MAX_STEPS
    ) -> EvaluationResult:
        """Run whole episodes, cut after ``max_steps``, and return their returns and lengths."""
        return evaluate(self, episodes=episodes, deterministic=deterministic, seed=seed, max_steps=max_steps)

    def save(self, out: str | Path) -> None:
        """Write it to a new directory: a run without iterations, for ``trpo.load`` and the commands that take a RUN."""
        import trpo  # what writes files is in a room above

        trpo.save(self, out)


def require_trust(agent: Agent) -> None:
    """Raise ValueError where the agent's wrappers are of a run that is not trusted, whatever environment is given."""
    if agent.config.env.wrappers and getattr(agent.env, "modules", None):
        agent.env()  # type: ignore[operator, misc]


EPISODE = 48
"""Bytes of an episode's return and length, in lists of Python's numbers."""


def check_evaluation(episodes: int, max_steps: int, seed: int, group: str = "") -> None:
    """Raise ValueError for an evaluation that cannot be; the message has the argument's name in its ``group``."""
    for name, value, usual in (("episodes", episodes, 10), ("max_steps", max_steps, MAX_STEPS)):
        if value < 1:
            raise ValueError(f"{group}{name}={value}: must be ≥ 1; {usual} is usual")
    require_seed(seed, group)
    what = f"{group}episodes={episodes}: their returns alone take"
    require_room(what, episodes * EPISODE, "use fewer; 10 is usual")


def require_seed(seed: int, group: str = "") -> None:
    """Raise ValueError for a seed that environments do not take."""
    if seed < 0:
        raise ValueError(f"{group}seed={seed}: must be ≥ 0")


def evaluate(
    agent: Agent,
    env: EnvLike | None = None,
    episodes: int = 10,
    deterministic: bool = True,
    seed: int = 0,
    count: int = 32,
    max_steps: int = MAX_STEPS,
) -> EvaluationResult:
    """Run exactly ``episodes`` whole episodes with frozen statistics.

    Up to ``count`` environments are stepped together. Environment i runs a share of episodes that is fixed beforehand:
    taking whichever end first would favour short episodes. ``env`` is by default what the agent was made for;
    environments that are handed in are stepped as they are, all of them, and stay open. Episodes that have not ended
    after ``max_steps`` are cut, and counted in the result's ``cut``.

    Raises:
        ValueError: the environment's spaces are not the agent's.
        EnvironmentFailure: the environment raised, or an observation to act on is not finite.
    """
    keep_programs()
    require_no_fork()
    check_evaluation(episodes, max_steps, seed)
    if count < 1:
        raise ValueError(f"count={count}: must be ≥ 1; 32 is usual")
    count = -(-episodes // -(-episodes // count))  # no more than shares of equal size need
    require_trust(agent)
    origin = resolve(
        env if env is not None else agent.env if agent.env is not None else agent.spec.id, agent.config.env
    )
    envs = origin.open(count)
    try:
        require_same_spaces(agent.spec, envs.spec)
        actor = agent.actor()
        noise = None if deterministic else drawn_noise(agent.policy, actor, envs.count, seed)
        return whole_episodes(envs, HostPolicy(agent.policy, actor), episodes, seed, noise, max_steps)
    finally:
        if origin.ours:
            envs.close()
