"""One iteration on real batches: what is learned, what must stay put, and whether what is reported is true."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from helpers import assert_same_bits

import trpo
from trpo.envs.names import make_envs
from trpo.rollout import HostPolicy, HostSource, Trajectory
from trpo.rules import Repeated
from trpo.rules.protocol import Result
from trpo.training import learner as stages
from trpo.training.agent import Agent
from trpo.training.learner import Hyper, IterationInfo, Learner, Program
from trpo.types import Params
from trpo.value_fits.fit import predict

COUNT, FRAGMENT = 4, 32
prepare, improve, refit = (jax.jit(f, static_argnums=0) for f in (stages.prepare, stages.improve, stages.refit))


def configure(env: str, **changes: Any) -> trpo.Config:
    small = {
        "env": trpo.EnvConfig(env, count=COUNT),
        "fragment": FRAGMENT,
        "policy": trpo.PolicyConfig(hidden=(8,), last_layer_scale=1.0),
        "value": trpo.ValueConfig(hidden=(8,), minibatch=32),
    }
    return trpo.Config(**(small | changes))


@dataclasses.dataclass
class Case:
    """A learner in the middle of a run, and the next batch that its policy collects."""

    config: trpo.Config
    agent: Agent
    program: Program
    hyper: Hyper
    learner: Learner
    trajectory: Trajectory

    def improve(self, learner: Learner | None = None, trajectory: Trajectory | None = None, **changes: Any) -> Any:
        hyper = dataclasses.replace(self.hyper, **changes)
        given = self.learner if learner is None else learner
        return improve(self.program, hyper, given, self.trajectory if trajectory is None else trajectory)

    def refit(self, batch: Any, learner: Learner | None = None) -> Any:
        state = (self.learner if learner is None else learner).value
        return refit(self.program, self.hyper, state, batch, jax.random.key(5))


def middle(config: trpo.Config, iterations: int = 2, seed: int = 0) -> Case:
    """Train for some iterations, so that statistics and parameters are not those of the start."""
    agent = trpo.make_agent(config.env.id, config)
    program, hyper = agent.program(), Hyper.of(config)
    source = HostSource(make_envs(config.env.id, config.env.count))
    source.restart([seed * 100 + i for i in range(config.env.count)])
    policy = HostPolicy(agent.policy, agent.actor())
    learner, trajectory = agent.learner, None
    for k in range(iterations + 1):
        actor, noise, _ = prepare(program, learner.policy, learner.observations, jax.random.key(seed), k)
        policy.load(actor)
        trajectory = source.collect(policy, np.asarray(noise))
        if k < iterations:
            learner, batch, info = improve(program, hyper, learner, trajectory)
            assert int(info.update.result) == Result.ACCEPTED
            value, _ = refit(program, hyper, learner.value, batch, jax.random.key(k))
            learner = dataclasses.replace(learner, value=value)
    source.close()
    assert trajectory is not None
    return Case(config, agent, program, hyper, learner, trajectory)


@pytest.fixture(scope="module")
def pendulum() -> Case:
    return middle(configure("Pendulum-v1"))


@pytest.fixture(scope="module")
def cartpole() -> Case:
    return middle(configure("CartPole-v1"))


def differs(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(np.asarray(x).tobytes() != np.asarray(y).tobytes() for x, y in pairs)


# ---------------------------------------------------------------- an independent account, in double precision


def network(module: Any, x: np.ndarray) -> np.ndarray:
    weights = [np.asarray(w, np.float64) for w in module.weights]
    biases = [np.asarray(b, np.float64) for b in module.biases]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = np.tanh(x @ weight + bias)
    return x @ weights[-1] + biases[-1]


@dataclasses.dataclass
class Account:
    """Everything about a batch that follows from its definition."""

    case: Case

    def __post_init__(self) -> None:
        statistics = self.case.learner.observations
        self.mean = np.asarray(statistics.mean, np.float64)
        deviations = np.asarray(statistics.deviations, np.float64) * np.asarray(statistics.unit, np.float64) ** 2
        self.std = np.sqrt(deviations / float(statistics.count))

    def seen(self, raw: np.ndarray) -> np.ndarray:
        return np.clip((raw.astype(np.float64) - self.mean) / self.std, -10, 10)

    def value(self, raw: np.ndarray) -> np.ndarray:
        state = self.case.learner.value
        scale = np.sqrt(float(state.returns.deviations) / float(state.returns.count)) * float(state.returns.unit)
        module = self.case.agent.value.bind(state.params)
        return scale * network(module.trunk, self.seen(raw))[..., 0]

    def advantages(self, gamma: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return Â, targets and V, by the double loop."""
        t, lam = self.case.trajectory, self.case.config.gae_lambda
        gamma = self.case.config.discount if gamma is None else gamma
        v, after = self.value(t.observation), self.value(t.next_observation)
        delta = t.reward + gamma * np.where(t.terminated, 0, after) - v
        advantage = np.zeros_like(delta)
        for i in range(delta.shape[1]):
            for start in range(delta.shape[0]):
                for k in range(start, delta.shape[0]):
                    advantage[start, i] += (gamma * lam) ** (k - start) * delta[k, i]
                    if t.terminated[k, i] or t.truncated[k, i]:
                        break
        return advantage, advantage + v, v

    def distribution(self, params: Params) -> dict[str, np.ndarray]:
        module = self.case.agent.policy.bind(params)
        outputs = network(module.trunk, self.seen(self.case.trajectory.observation))
        if isinstance(module.head, trpo.GaussianHead):
            log_std = np.broadcast_to(np.asarray(module.head.log_std, np.float64), outputs.shape)
            return {"mean": outputs, "std": module.head.min_std + np.exp(log_std)}
        return {"log_p": scipy.special.log_softmax(outputs, axis=-1)}

    def log_prob(self, params: Params) -> np.ndarray:
        p, action = self.distribution(params), self.case.trajectory.action
        if "mean" in p:
            return scipy.stats.norm.logpdf(action, p["mean"], p["std"]).sum(-1)
        return np.take_along_axis(p["log_p"], action[..., None], -1)[..., 0]

    def kl(self, old: Params, new: Params) -> np.ndarray:
        p, q = self.distribution(old), self.distribution(new)
        if "mean" in p:
            ratio = (p["std"] / q["std"]) ** 2
            return 0.5 * (ratio - 1 - np.log(ratio) + ((p["mean"] - q["mean"]) / q["std"]) ** 2).sum(-1)
        return (np.exp(p["log_p"]) * (p["log_p"] - q["log_p"])).sum(-1)

    def entropy(self, params: Params) -> np.ndarray:
        p = self.distribution(params)
        if "mean" in p:
            return scipy.stats.norm(p["mean"], p["std"]).entropy().sum(-1)
        return -(np.exp(p["log_p"]) * p["log_p"]).sum(-1)


every_env = pytest.mark.parametrize("name", ["pendulum", "cartpole"])


# ---------------------------------------------------------------- row 21: the log is true


@pytest.mark.parametrize(("name", "updates"), [("pendulum", 1), ("pendulum", 3), ("cartpole", 1)])
def test_reported_numbers_equal_an_independent_account(name: str, updates: int, request: pytest.FixtureRequest) -> None:
    case = request.getfixturevalue(name)
    account = Account(case)
    new, _, info = case.improve(rule=Repeated(case.hyper.rule.rule, updates))
    assert int(info.update.result) == Result.ACCEPTED
    old = case.learner.policy
    kl = account.kl(old, new.policy)
    advantage, target, v = account.advantages()
    standard = (advantage - advantage.mean()) / advantage.std()
    ratio = np.exp(account.log_prob(new.policy) - account.log_prob(old))
    update = info.update
    assert float(update.mean_kl) == pytest.approx(kl.mean(), rel=2e-3)
    assert float(update.max_state_kl) == pytest.approx(kl.max(), rel=2e-3)
    assert kl.mean() <= case.config.rule.max_kl * (1 + 1e-3)
    assert kl.mean() > case.config.rule.max_kl / 3
    assert float(update.surrogate_gain) == pytest.approx((ratio * standard).mean() - standard.mean(), rel=5e-3)
    assert float(update.entropy) == pytest.approx(account.entropy(new.policy).mean(), rel=1e-4)
    assert float(info.explained_variance) == pytest.approx(1 - (target - v).var() / target.var(), abs=2e-3)
    leaves = zip(jax.tree.leaves(new.policy), jax.tree.leaves(old), strict=True)
    moved = [np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in leaves]
    assert float(update.step_norm) == pytest.approx(np.sqrt(sum((x**2).sum() for x in moved)), rel=1e-3)
    assert all((x != 0).any() for x in moved)  # row 19: every leaf of the policy moves
    if name == "pendulum":
        assert float(info.std) == pytest.approx(account.distribution(old)["std"].mean(), rel=1e-5)
    else:
        assert info.std is None


@every_env
def test_value_targets_are_lambda_returns_of_the_batch(name: str, request: pytest.FixtureRequest) -> None:
    case = request.getfixturevalue(name)
    account = Account(case)
    _, batch, _ = case.improve()
    _, target, _ = account.advantages()
    np.testing.assert_allclose(batch.target, target.ravel(), rtol=2e-3, atol=2e-3 * np.abs(target).max())
    np.testing.assert_allclose(
        batch.observation, account.seen(case.trajectory.observation).reshape(len(batch.target), -1), atol=1e-4
    )
    np.testing.assert_allclose(batch.weight, 1 / (COUNT * FRAGMENT), rtol=1e-6)


@pytest.mark.parametrize("standard", [True, False])
def test_advantages_enter_as_they_are_unless_they_are_to_be_standardised(pendulum: Case, standard: bool) -> None:
    program = dataclasses.replace(pendulum.program, standardise_advantages=standard)

    @jax.jit
    def entering(learner: Learner, trajectory: Trajectory) -> Any:
        estimates = stages.estimate(program, pendulum.hyper, learner, trajectory, 0)
        return stages.local_problem(program, learner, estimates).objective.keywords["advantage"]

    advantage, _, _ = Account(pendulum).advantages()
    expected = (advantage - advantage.mean()) / advantage.std() if standard else advantage
    found = entering(pendulum.learner, pendulum.trajectory)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_memory_is_cleared_where_an_episode_begins(pendulum: Case) -> None:
    """After every end of either kind, after a step that is not valid, and in the first row as the rollout says."""
    random = np.random.default_rng(0)
    names = ("terminated", "truncated", "valid")
    flags = {name: random.random((FRAGMENT, COUNT)) < (0.8 if name == "valid" else 0.2) for name in names}
    trajectory = dataclasses.replace(pendulum.trajectory, **flags, reset=np.array([True, False, False, True]))

    @jax.jit
    def cleared(learner: Learner, trajectory: Trajectory) -> Any:
        estimates = stages.estimate(pendulum.program, pendulum.hyper, learner, trajectory, 0)
        return stages.local_problem(pendulum.program, learner, estimates).distributions.reset

    expected = [trajectory.reset, *(flags["terminated"] | flags["truncated"] | ~flags["valid"])[:-1]]
    np.testing.assert_array_equal(cleared(pendulum.learner, trajectory), expected)


@pytest.mark.parametrize(("iteration", "gamma"), [(0, 0.5), (5, 0.9), (10, 0.98), (99, 0.98)])
def test_the_horizon_grows_geometrically_to_the_final_discount(pendulum: Case, iteration: int, gamma: float) -> None:
    """Halfway from γ = 0.5 to 0.98 the horizon is 10, the geometric mean of 2 and 50."""
    hyper = dataclasses.replace(pendulum.hyper, discount=0.5, final_discount=0.98, discount_iterations=10.0)
    _, batch, _ = improve(pendulum.program, hyper, pendulum.learner, pendulum.trajectory, iteration)
    _, target, _ = Account(pendulum).advantages(gamma)
    np.testing.assert_allclose(batch.target, target.ravel(), rtol=2e-3, atol=2e-3 * np.abs(target).max())
    other = Account(pendulum).advantages(1 - (1 - gamma) * 1.1)[1]  # the horizon a tenth shorter
    assert np.abs(other - target).max() > 4e-3 * np.abs(target).max()


# ---------------------------------------------------------------- rows 2 and 16: nothing has moved before the step


@jax.jit
def batch_statistics(learner: Learner, trajectory: Trajectory) -> Any:
    return learner.observations.merge(trajectory.observation, jnp.ones(trajectory.reward.shape))


@every_env
def test_ratio_is_one_and_kl_zero_before_the_step(name: str, request: pytest.FixtureRequest) -> None:
    """The update's π_old is the π that acted, by the independent account of it."""
    case = request.getfixturevalue(name)

    @jax.jit
    def before_the_step(learner: Learner, trajectory: Trajectory) -> Any:
        estimates = stages.estimate(case.program, case.hyper, learner, trajectory, 0)
        problem = stages.local_problem(case.program, learner, estimates)
        return problem.old.log_prob(trajectory.action), problem.evaluate(learner.policy)

    log_prob, start = before_the_step(case.learner, case.trajectory)
    sampled = Account(case).log_prob(case.learner.policy)
    np.testing.assert_allclose(np.exp(np.asarray(log_prob, np.float64) - sampled), 1, atol=2e-4)
    assert float(start.mean_kl) == float(start.max_state_kl) == 0.0
    assert float(start.surrogate) == pytest.approx(0, abs=1e-6)
    # The test can tell: with this batch in the statistics, ratios would be off by far more.
    late = dataclasses.replace(case.learner, observations=batch_statistics(case.learner, case.trajectory))
    log_prob, _ = before_the_step(late, case.trajectory)
    assert np.abs(np.exp(np.asarray(log_prob, np.float64) - sampled) - 1).max() > 0.02


def test_observation_statistics_are_those_of_all_raw_observations_so_far() -> None:
    config = configure("Pendulum-v1")
    seen = []
    agent = trpo.make_agent("Pendulum-v1", config)
    program, hyper = agent.program(), Hyper.of(config)
    source = HostSource(make_envs("Pendulum-v1", COUNT))
    source.restart(list(range(COUNT)))
    learner = agent.learner
    for k in range(3):
        actor, noise, _ = prepare(program, learner.policy, learner.observations, jax.random.key(0), k)
        trajectory = source.collect(HostPolicy(agent.policy, actor), np.asarray(noise))
        learner, _, _ = improve(program, hyper, learner, trajectory)
        seen.append(trajectory.observation.reshape(-1, 3).astype(np.float64))
    everything = np.concatenate(seen)
    assert float(learner.observations.count) == len(everything)
    np.testing.assert_allclose(learner.observations.mean, everything.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(learner.observations.variance, everything.var(0), rtol=1e-4)
    source.close()


# ---------------------------------------------------------------- row 8: one budget for all updates of a batch


class Recording(eqx.Module):
    """TRPO that tells the bound it was given and the exact KL, from the sampling policy, of what it returns."""

    enforces_max_kl: ClassVar[bool] = True
    max_kl: Any
    tell: Callable = eqx.field(static=True)

    def init(self, params: Params) -> tuple[()]:
        return ()

    def update(self, problem: Any, params: Params, state: tuple[()]) -> Any:
        new, state, info = trpo.TRPO(max_kl=self.max_kl).update(problem, params, state)
        jax.debug.callback(self.tell, self.max_kl, problem.mean_kl(new), info.mean_kl, info.result, ordered=True)
        return new, state, info


@pytest.mark.parametrize("updates", [1, 2, 4])  # 1 compiles a branch of its own
def test_cumulative_kl_is_within_the_bound_at_every_update(pendulum: Case, updates: int) -> None:
    told: list[tuple[float, ...]] = []
    rule = Recording(0.02, lambda *numbers: told.append(tuple(float(x) for x in numbers)))
    new, _, info = pendulum.improve(rule=Repeated(rule, updates))
    jax.block_until_ready(new)
    jax.effects_barrier()
    assert len(told) == updates
    for k, (bound, exact, reported, result) in enumerate(told):
        assert bound == pytest.approx(0.02 * (k + 1) / updates, rel=1e-5)
        assert exact <= bound * (1 + 1e-5)
        assert reported == pytest.approx(exact, rel=1e-4)
        assert result == Result.ACCEPTED
    final = Account(pendulum).kl(pendulum.learner.policy, new.policy).mean()
    assert final == pytest.approx(told[-1][1], rel=2e-3)
    assert final > 0.01
    assert int(info.update.accepted_updates) == updates
    assert float(info.update.mean_kl) == pytest.approx(final, rel=2e-3)


# ---------------------------------------------------------------- what an iteration is made of


def test_every_iteration_and_every_run_has_randomness_of_its_own() -> None:
    """For a rollout and for a value fit; and asked for again it is the same."""
    agent = trpo.make_agent("Pendulum-v1", configure("Pendulum-v1"))
    program, learner = agent.program(), agent.learner

    def draw(seed: int, iteration: int) -> tuple[bytes, bytes, bytes]:
        key = jax.random.key(seed)
        _, noise, key = prepare(program, learner.policy, learner.observations, key, jnp.asarray(iteration))
        assert noise.shape == (FRAGMENT, COUNT, 1)
        of_the_fit = jax.random.normal(key, noise.shape)
        return np.asarray(noise).tobytes(), np.asarray(of_the_fit).tobytes(), jax.random.key_data(key).tobytes()

    drawn = [draw(seed, k) for seed in (0, 1) for k in range(4)]
    assert len({x for each in drawn for x in each}) == 3 * 8
    assert draw(1, 2) == drawn[6]


SETTINGS = trpo.Config(
    env=trpo.EnvConfig("Pendulum-v1", count=5),
    fragment=7,
    rule=trpo.RuleConfig(max_kl=0.03, damping=0.2),
    policy=trpo.PolicyConfig(averaging=0.25),
    value=trpo.ValueConfig(epochs=3, normalise_returns=False),
    discount=0.75,
    final_discount=0.9,
    discount_steps=70,
    gae_lambda=0.625,
    vine=trpo.VineConfig(branch_lambda=0.125),
    updates_per_batch=2,
    fisher_subsample=4,
    standardise_advantages=False,
    observation_clip=3.0,
)


def test_an_iteration_is_compiled_from_its_settings() -> None:
    agent = trpo.make_agent("Pendulum-v1", SETTINGS)
    hyper = {
        "rule": Repeated(trpo.TRPO(max_kl=0.03, damping=0.2), 2),
        "value_fit": trpo.AdamFit(epochs=3),
        "discount": 0.75,
        "final_discount": 0.9,
        "discount_iterations": 2.0,  # 70 steps, 5 · 7 at a time
        "gae_lambda": 0.625,
        "branch_lambda": 0.125,
        "averaging": 0.25,
    }
    program = {
        "policy": agent.policy,
        "value": agent.value,
        "space": agent.spec.observation,
        "count": 5,
        "fragment": 7,
        "clip": 3.0,
        "standardise_advantages": False,
        "normalise_returns": False,
        "fisher_subsample": 4,
        "block": 0,
        "reward_sign": False,
        "strata": 3,
        "choices": (),
        "vine": None,
    }
    for made, expected in ((Hyper.of(SETTINGS), hyper), (agent.program(3), program)):
        assert {field.name: getattr(made, field.name) for field in dataclasses.fields(made)} == expected
    assert agent.program().strata == 1
    without = dataclasses.replace(SETTINGS, normalise_observations=False, policy=trpo.PolicyConfig(averaging=0.0))
    assert Program.of(agent.policy, agent.value, agent.spec, without).clip is None
    assert Hyper.of(without).averaging is None
    own = trpo.NaturalGradient(max_kl=0.5)
    assert Hyper.of(SETTINGS, own).rule == Repeated(own, 2)


def test_averaged_is_the_recurrence_of_its_weights() -> None:
    """θ_j has the weight j (j + 1) with s = 1/3, where η = 2; all the same with s = 1."""
    policies = np.random.default_rng(0).normal(size=(6, 3))
    for share, weights in ((1 / 3, np.arange(1, 7) * np.arange(2, 8)), (1.0, np.ones(6))):
        average = jnp.full(3, 8.0)  # the first policy replaces it
        for k, params in enumerate(policies, start=1):
            average = stages.averaged(average, jnp.asarray(params), share, k)
        np.testing.assert_allclose(average, np.average(policies, axis=0, weights=weights), atol=1e-5)
    assert stages.averaged(None, jnp.ones(3), 0.5, 1) is None
    assert stages.averaged(jnp.zeros(3), jnp.ones(3), None, 1).tolist() == [0, 0, 0]


def test_an_iteration_moves_the_average_by_its_share(pendulum: Case) -> None:
    """Counted from 0: the first iteration's policy is the average, the fourth's enters with 1 / (1 + 3 s)."""
    share = pendulum.config.policy.averaging
    for iteration, step in ((0, 1.0), (3, 1 / (1 + 3 * share))):
        new, _, _ = improve(pendulum.program, pendulum.hyper, pendulum.learner, pendulum.trajectory, iteration)
        leaves = map(jax.tree.leaves, (new.average, pendulum.learner.average, new.policy))
        for after, before, policy in zip(*leaves, strict=True):
            np.testing.assert_allclose(after, before + step * (policy - before), rtol=1e-5, atol=1e-7)


def test_strata_are_blocks_of_environments() -> None:
    """Rows of three strata of two environments each, whichever leaf it is."""
    time, env = np.divmod(np.arange(5 * 6).reshape(5, 6), 6)
    for strata in (1, 3):
        rows, times = (stages._rows(jnp.asarray(leaf), strata).reshape(strata, -1) for leaf in (env, time))
        for i in range(strata):
            found = sorted(zip(rows[i].tolist(), times[i].tolist(), strict=True))
            block = range(i * 6 // strata, (i + 1) * 6 // strata)
            assert found == [(e, t) for e in block for t in range(5)]
        wide = jnp.stack([jnp.asarray(env), jnp.asarray(time)], axis=-1)
        np.testing.assert_array_equal(stages._rows(wide, strata).reshape(strata, -1, 2)[..., 0], rows)


def test_an_agent_begins_from_its_settings() -> None:
    agent = trpo.make_agent("Pendulum-v1", SETTINGS)
    assert_same_bits(agent.learner.average, agent.learner.policy)
    assert agent.learner.deployed is agent.learner.average
    for statistics in (agent.learner.observations, agent.learner.value.returns):
        assert statistics.count == 0
    again, other = (trpo.make_agent("Pendulum-v1", dataclasses.replace(SETTINGS, seed=seed)) for seed in (0, 1))
    assert_same_bits(agent.learner, again.learner)
    for name in ("policy", "value"):
        assert differs(getattr(agent.learner, name), getattr(other.learner, name))
    small, rule = trpo.ValueConfig(hidden=(5,), method="gauss-newton"), trpo.Penalty(initial_coefficient=3.0)
    config = dataclasses.replace(SETTINGS, policy=trpo.PolicyConfig(hidden=(5,), averaging=0.0), value=small)
    whole = trpo.make_agent("Pendulum-v1", config, rule=rule)
    assert (whole.config, whole.rule) == (config, rule)
    made = whole.learner
    assert made.average is None
    # The first layers have 5 units for 3 numbers, with weights of their own.
    (first,), (of_value,) = (
        [leaf for leaf in jax.tree.leaves(params) if leaf.size == 15] for params in (made.policy, made.value.params)
    )
    assert differs(first, of_value)
    assert_same_bits(made.rule, rule.init(made.policy))
    assert_same_bits(made.value.optimiser, small.build().init(made.value.params))
    assert jax.tree.structure(made.value.optimiser) != jax.tree.structure(agent.learner.value.optimiser)


# ---------------------------------------------------------------- row 12: no signal


def test_constant_reward_gives_no_step() -> None:
    case = middle(probing("probe:constant", "adam"), iterations=0)
    new, batch, info = case.improve()
    assert int(info.update.result) == Result.NO_SIGNAL
    assert_same_bits(new.policy, case.learner.policy)
    assert int(info.update.accepted_updates) == 0
    assert float(info.update.step_norm) == float(info.update.step_fraction) == float(info.update.mean_kl) == 0.0
    assert bool(info.finite)
    value, _ = case.refit(batch)
    assert differs(value.params, case.learner.value.params)  # there is something to learn for V


def test_a_batch_without_a_single_valid_step_changes_no_policy(pendulum: Case) -> None:
    """As when every environment resets at once, in fragments of one step."""
    nothing = dataclasses.replace(pendulum.trajectory, valid=np.zeros((FRAGMENT, COUNT), bool))
    new, batch, info = pendulum.improve(trajectory=nothing)
    assert int(info.update.result) == Result.NO_SIGNAL
    assert_same_bits(new.policy, pendulum.learner.policy)
    assert_same_bits(new.observations, pendulum.learner.observations)
    value, fitted = pendulum.refit(batch, new)
    assert bool(fitted.finite)
    assert_same_bits(value.returns, new.value.returns)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new, value)))


# ---------------------------------------------------------------- row 13: NaN and infinity


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("field", ["reward", "observation", "next_observation"])
def test_a_nonfinite_batch_changes_nothing(pendulum: Case, field: str, bad: float) -> None:
    array = getattr(pendulum.trajectory, field).copy()
    array[3, 1] = bad
    assert_refused(pendulum, pendulum.learner, dataclasses.replace(pendulum.trajectory, **{field: array}))


def test_a_nonfinite_value_function_changes_nothing(pendulum: Case) -> None:
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, pendulum.learner.value.params)
    broken = eqx.tree_at(lambda learner: learner.value.params, pendulum.learner, params)
    assert_refused(pendulum, broken, pendulum.trajectory)


@pytest.mark.parametrize("size", [1e18, 1e25])
@pytest.mark.parametrize("field", ["observation", "reward"])
def test_numbers_whose_squares_overflow_are_numbers(pendulum: Case, field: str, size: float) -> None:
    """Finite in float32 though their squares are not: the run goes on, and statistics are those of the data."""
    array = getattr(pendulum.trajectory, field).copy()
    array[3, 1] = size
    new, batch, info = pendulum.improve(trajectory=dataclasses.replace(pendulum.trajectory, **{field: array}))
    value, fitted = pendulum.refit(batch, new)
    assert bool(info.finite)
    assert bool(fitted.finite)
    assert int(info.update.result) == Result.ACCEPTED
    count = float(new.observations.count)
    one = size * np.sqrt(1 / count - 1 / count**2)
    if field == "observation":
        np.testing.assert_allclose(new.observations.std, one, rtol=1e-4)
    else:
        assert 0.1 * one < float(value.scale) < 100 * one
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new, value)))


@pytest.mark.parametrize("fit", ["adam", "gauss-newton"])
def test_the_unit_of_reward_does_not_matter(pendulum: Case, fit: str) -> None:
    """PITFALLS row 36: from the first batch on, for powers of two (which round nothing) bit for bit."""
    config = configure("Pendulum-v1", value=trpo.ValueConfig(method=fit, hidden=(8,)))
    agent = trpo.make_agent(config.env.id, config)
    program, hyper = agent.program(), Hyper.of(config)

    def learned(c: float) -> tuple[Learner, list[IterationInfo]]:
        learner, infos = agent.learner, []
        rewards = pendulum.trajectory.reward * np.float32(c)
        for reward in (rewards, rewards[::-1]):
            trajectory = dataclasses.replace(pendulum.trajectory, reward=reward)
            learner, batch, info = improve(program, hyper, learner, trajectory)
            value, fitted = refit(program, hyper, learner.value, batch, jax.random.key(1))
            assert bool(fitted.finite)
            learner = dataclasses.replace(learner, value=value)
            infos.append(info)
        return learner, infos

    one, infos = learned(1.0)
    assert float(infos[1].explained_variance) != 0
    for c in (2.0**-100, 2.0**-27, 2.0**27, 2.0**80):
        other, others = learned(c)
        assert_same_bits((other.policy, other.value.params), (one.policy, one.value.params))
        assert float(other.value.scale) == float(one.value.scale) * c
        assert_same_bits(others, infos)
    for c in (1e-12, 1e-8, 1e8, 1e12):
        other, others = learned(c)
        np.testing.assert_allclose(other.value.scale, float(one.value.scale) * c, rtol=1e-2)
        got, expected = ([float(info.explained_variance) for info in each] for each in (others, infos))
        np.testing.assert_allclose(got, expected, atol=2e-2)


def test_what_is_learned_from_signs_is_learned_from_rewards_that_are_signs(pendulum: Case) -> None:
    reward = pendulum.trajectory.reward + np.float32(6.0)  # of either sign
    assert len(set(np.sign(reward).ravel())) > 1
    signs = dataclasses.replace(pendulum, program=dataclasses.replace(pendulum.program, reward_sign=True))
    found = signs.improve(trajectory=dataclasses.replace(pendulum.trajectory, reward=reward))
    expected = pendulum.improve(trajectory=dataclasses.replace(pendulum.trajectory, reward=np.sign(reward)))
    assert_same_bits(found, expected)


@pytest.mark.parametrize("env", ["probe:continuous", "jax-probe:continuous"])
def test_returns_are_raw_whatever_is_learned_from(env: str) -> None:
    """Every reward is negative: their signs are all the same, and there is nothing to learn."""
    results = {}
    for reward in ("raw", "sign"):
        config = configure(env, reward=reward, steps=COUNT * FRAGMENT)
        for _, metrics in trpo.iterations(env, trpo.make_agent(env, config), config):
            results[reward] = metrics["result"], metrics["episode_return"]
    assert {reward: result for reward, (result, _) in results.items()} == {"raw": "accepted", "sign": "no_signal"}
    assert -1 < results["raw"][1] == results["sign"][1] < 0


def test_before_a_reward_was_seen_values_are_zero(pendulum: Case) -> None:
    """Else the first targets would be in the network's unit, not in that of the rewards to come."""
    learner = pendulum.agent.learner
    nothing = dataclasses.replace(pendulum.trajectory, reward=np.zeros_like(pendulum.trajectory.reward))
    for _ in range(2):
        learner, batch, info = pendulum.improve(learner, nothing)
        assert int(info.update.result) == Result.NO_SIGNAL
        np.testing.assert_array_equal(batch.target, 0)
        value, fitted = pendulum.refit(batch, learner)
        assert bool(fitted.finite)
        learner = dataclasses.replace(learner, value=value)
        assert float(value.scale) == 0


def assert_refused(case: Case, learner: Learner, trajectory: Trajectory) -> None:
    new, batch, info = case.improve(learner, trajectory)
    assert int(info.update.result) == Result.NONFINITE_BATCH
    assert not bool(info.finite)
    assert int(info.update.accepted_updates) == 0
    assert_same_bits(new, learner)
    assert float(info.update.mean_kl) == float(info.update.step_norm) == 0.0
    if not np.isfinite(batch.target).all():  # an infinite observation is only clipped, and V there may be finite
        value, fitted = case.refit(batch, learner)
        assert not bool(fitted.finite)
        assert_same_bits(value, learner.value)


# ---------------------------------------------------------------- row 15: what weight 0 hides


@every_env
def test_content_of_invalid_steps_does_not_matter(name: str, request: pytest.FixtureRequest) -> None:
    """Bit for bit: other numbers, other ends, NaN."""
    case = request.getfixturevalue(name)
    random = np.random.default_rng(0)
    valid = random.random((FRAGMENT, COUNT)) < 0.8
    shown = dataclasses.replace(case.trajectory, valid=valid)

    def spoil(leaf: np.ndarray, content: Any) -> np.ndarray:
        leaf = leaf.copy()
        leaf[~valid] = content(leaf[~valid])
        return leaf

    def noise(part: np.ndarray) -> np.ndarray:
        if part.dtype.kind == "f":
            return random.normal(size=part.shape) * 1e3
        return random.integers(0, 2, part.shape)

    def nothing(part: np.ndarray) -> np.ndarray:
        return np.full_like(part, np.nan) if part.dtype.kind == "f" else np.zeros_like(part)

    first = case.improve(trajectory=shown)
    assert int(first[2].update.result) == Result.ACCEPTED
    for content in (noise, nothing):
        fields = {name: spoil(x, content) for name, x in shown.steps().items() if name not in ("valid", "info")}
        second = case.improve(trajectory=dataclasses.replace(shown, **fields))
        assert_same_bits(second[0], first[0])
        assert_same_bits(second[2], first[2])
        assert_same_bits(case.refit(second[1]), case.refit(first[1]))
    np.testing.assert_allclose(first[1].weight, valid.ravel() / valid.sum(), rtol=1e-6)
    # And what is valid does matter.
    assert differs(case.improve()[0].policy, first[0].policy)
    assert float(first[0].observations.count - case.learner.observations.count) == valid.sum()


# ---------------------------------------------------------------- row 18: separate parameters


def last_layer_zero(learner: Learner) -> Learner:
    """V = 0 whatever the hidden layers are."""

    def last(one: Learner) -> Any:
        network = one.value.params.trunk
        return network.weights[-1], network.biases[-1]

    return eqx.tree_at(last, learner, jax.tree.map(jnp.zeros_like, last(learner)))


def test_the_policy_sees_the_value_function_only_through_advantages(pendulum: Case) -> None:
    flat = last_layer_zero(pendulum.learner)
    other = eqx.tree_at(lambda one: one.value.params.trunk.weights[0], flat, replace_fn=lambda x: 5 * x + 1)
    assert differs(flat.value.params, other.value.params)
    (a, _, one), (b, _, two) = pendulum.improve(flat), pendulum.improve(other)
    assert_same_bits(a.policy, b.policy)
    assert_same_bits(one, two)
    assert differs(a.policy, pendulum.improve()[0].policy)  # other predictions, other advantages


def test_improving_the_policy_leaves_the_value_function_alone(pendulum: Case) -> None:
    new, _, _ = pendulum.improve()
    assert_same_bits(new.value, pendulum.learner.value)


def test_the_value_fit_does_not_know_the_policy(pendulum: Case) -> None:
    """Row 18 the other way: another policy, the same batch, the same fit."""
    other = eqx.tree_at(lambda one: jax.tree.leaves(one.policy), pendulum.learner, replace_fn=lambda x: x + 0.1)
    (_, one, _), (_, two, _) = pendulum.improve(), pendulum.improve(other)
    assert_same_bits(one, two)
    assert_same_bits(pendulum.refit(one), pendulum.refit(two, other))


# ---------------------------------------------------------------- options


def test_a_subsample_of_states_for_fisher_products_keeps_the_bound(pendulum: Case) -> None:
    whole, _, _ = pendulum.improve()
    program = dataclasses.replace(pendulum.program, fisher_subsample=4)
    part, _, info = dataclasses.replace(pendulum, program=program).improve()
    assert differs(whole.policy, part.policy)
    assert int(info.update.result) == Result.ACCEPTED
    kl = Account(pendulum).kl(pendulum.learner.policy, part.policy).mean()
    assert 0.002 < kl <= 0.01 * (1 + 1e-3)
    assert float(info.update.mean_kl) == pytest.approx(kl, rel=2e-3)  # over all states


# ---------------------------------------------------------------- row 3: truncation is not an end

GAMMA = 0.9
ANSWERS: dict[str, dict[float, float]] = {
    "probe:constant": {0: 1.0},
    "probe:observation": {-1: -1.0, 1: 1.0},
    "probe:delayed": {0: GAMMA, 1: 1.0},
    "probe:endless": {0: 1 / (1 - GAMMA)},
}
FITS = {
    "adam": trpo.ValueConfig(hidden=(16,), learning_rate=0.01, minibatch=32),
    "gauss-newton": trpo.ValueConfig(hidden=(16,), method="gauss-newton"),
}


def probing(env: str, fit: str) -> trpo.Config:
    return configure(env, steps=60 * COUNT * 20, fragment=20, discount=GAMMA, value=FITS[fit])


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("env", ANSWERS)
def test_values_of_the_probes(env: str, fit: str) -> None:
    """None of these rewards depends on actions, so V is all there is to learn; ``endless`` has only time limits."""
    config = probing(env, fit)
    agent = trpo.make_agent(env, config)
    learner = [state for state, _ in trpo.iterations(env, agent, config)][-1].learner
    program = agent.program()
    actor = program.freeze(learner.policy, learner.observations)
    for observation, answer in ANSWERS[env].items():
        seen = actor.see(jnp.full((1, 1), observation, jnp.float32))
        value = predict(program.value_of, learner.value, seen, config.value.normalise_returns)
        assert float(value[0]) == pytest.approx(answer, abs=0.03 * max(1.0, answer))
