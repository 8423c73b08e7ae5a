"""Vine rollouts: branches against exact values; the same on device, host and in processes; what is refused."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bits, same_bits, untimed
from test_memory import Recall, recalling

import trpo
from trpo.cli.main import main
from trpo.distributions import Categorical, DiagGaussian
from trpo.envs import Box, Choice, EnvSpec
from trpo.envs.device import Step
from trpo.rollout import HostPolicy, HostSource
from trpo.rollout.device import DeviceSource
from trpo.rollout.vine import Start, chosen_times, follow
from trpo.rollout.vine_host import collect_vine
from trpo.tabular import exact, garnet
from trpo.tabular.bridge import exact_problem
from trpo.training.host import prepare_vine
from trpo.vine import Roots, Trunk, branch_returns, vine_problem, vine_surrogate

S, A, GAMMA = 5, 3, 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class Tabular:
    """An MDP as an environment: observations are the state and time; state 0 ends an episode, ``limit`` cuts it."""

    mdp: Any
    limit: int = 10**6
    cheap_reset: bool = True

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec("tabular", Box((2,)), Choice(A))

    def look(self, state: Any) -> Any:
        return jnp.stack([state[0], state[1]]).astype(jnp.result_type(float))

    def reset(self, key: Any) -> tuple[Any, Any]:
        state = jax.random.randint(key, (), 1, S), jnp.zeros((), jnp.int32)
        return state, self.look(state)

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        s, time = state
        after = jax.random.choice(key, S, p=jnp.asarray(self.mdp.transition)[s, action])
        state = after.astype(s.dtype), time + 1
        return state, Step(
            self.look(state), jnp.asarray(self.mdp.reward)[s, action], after == 0, state[1] >= self.limit
        )


def random_mdp(seed: int) -> Any:
    return garnet(np.random.default_rng(seed), S, A, 3, GAMMA)


def table_act(logits: Any) -> Any:
    def act(observation: Any, carry: Any, reset: Any, noise: Any) -> tuple[Any, Any]:
        return Categorical(logits[observation[..., 0].astype(int)]).transform(noise), carry

    return act


@partial(jax.jit, static_argnums=(0, 3))
def gradient_of(policy: Any, params: Any, roots: Roots, unit: bool = False) -> Any:
    """∇L of a vine's problem, compiled: as many small operations would take longer."""
    return vine_problem(policy, params, roots, unit=unit).linearise(params).gradient


def expected_q(mdp: Any, logits: Any, v: np.ndarray, length: int, lam: float, left: int) -> np.ndarray:
    """E[Q̂(s, a)] by enumeration, with ``left`` steps to the limit of time; state 0 is absorbing and worth nothing."""
    policy = exact.softmax(np.asarray(logits, float))
    live = np.arange(S) > 0
    q = np.zeros((S, A))
    for t in reversed(range(length)):
        closes = t == length - 1 or t + 1 == left
        onward = v if closes else (1 - lam) * v + lam * (policy * q).sum(axis=-1)
        if t < left:
            q = mdp.reward + GAMMA * mdp.transition @ np.where(live, onward, 0.0)
    return q


@pytest.mark.parametrize(("lam", "limit"), [(1.0, 10**6), (1.0, 4), (0.7, 10**6), (0.7, 4), (0.0, 10**6), (None, 4)])
def test_branches_are_unbiased(lam: float | None, limit: int, x64: None) -> None:
    """Mean of many branches against enumeration over all paths; within 5 of its standard errors."""
    mdp, length, copies = random_mdp(1), 6, 4000
    rng = np.random.default_rng(0)
    logits, v = jnp.asarray(rng.normal(size=(S, A))), rng.normal(size=S)
    env = Tabular(mdp, limit)
    roots = jnp.repeat(jnp.arange(1, S), copies)
    state = roots, jnp.zeros_like(roots)
    start = Start(state, jax.vmap(env.look)(state), (), jnp.ones(roots.size, bool))
    noise = Categorical(jnp.zeros((roots.size, A))).noise(jax.random.key(1), (length,))
    keys = jax.random.split(jax.random.key(2), roots.size)
    first = jnp.broadcast_to(jnp.arange(A), (roots.size, A))
    run = jax.jit(lambda: follow(
        DeviceSource(env, env.spec), table_act(logits), lambda x: jnp.asarray(v)[x[..., 0].astype(int)],
        start, first, noise, keys, GAMMA, lam,
    ))  # fmt: skip
    q, steps = run()
    q = np.asarray(q).reshape(S - 1, copies, A)
    expected = expected_q(mdp, logits, v, length, 1.0 if lam is None else lam, limit)[1:]
    error = np.abs(q.mean(axis=1) - expected) / (q.std(axis=1) / np.sqrt(copies) + 1e-12)
    assert error.max() < 5, error
    assert 0 < int(steps) < roots.size * A * min(length, limit)  # some end before


def test_common_random_numbers(x64: None) -> None:
    """Where actions are all the same Q̂ is too, exactly; elsewhere differences vary less than independent branches'."""
    mdp, length, copies = random_mdp(2), 6, 3000
    same = dataclasses.replace(
        mdp, transition=np.repeat(mdp.transition[:, :1], A, 1), reward=np.repeat(mdp.reward[:, :1], A, 1)
    )
    logits = jnp.zeros((S, A))

    def branches(of: Any, first: Any, key: int) -> np.ndarray:
        env = Tabular(of)
        state = jnp.full(copies, 2), jnp.zeros(copies, jnp.int32)
        start = Start(state, jax.vmap(env.look)(state), (), jnp.ones(copies, bool))
        noise = Categorical(jnp.zeros((copies, A))).noise(jax.random.key(key), (length,))
        keys = jax.random.split(jax.random.key(key + 1), copies)
        v = lambda x: jnp.zeros(x.shape[:-1])  # noqa: E731
        source = DeviceSource(env, env.spec)
        return np.asarray(follow(source, table_act(logits), v, start, first, noise, keys, GAMMA, None)[0])

    every = jnp.broadcast_to(jnp.arange(A), (copies, A))
    equal = branches(same, every, 5)
    assert (equal == equal[:, :1]).all()
    assert equal.std() > 0.1
    common = branches(mdp, every, 5)
    alone = np.concatenate([branches(mdp, every[:, a : a + 1], 11 * a + 7) for a in range(A)], axis=1)
    assert (common[:, 1] - common[:, 0]).var() < 0.9 * (alone[:, 1] - alone[:, 0]).var()


@pytest.mark.parametrize("shared", [False, True])
def test_with_exact_values_the_problem_is_the_exact_one(shared: bool, x64: None) -> None:
    """Surrogate, gradient, KL and Fisher product; with the states as roots of a trunk that lists some twice, too."""
    mdp, rng = random_mdp(3), np.random.default_rng(1)
    theta, other = (jnp.asarray(rng.normal(size=(S, A))) for _ in range(2))
    policy = exact.softmax(np.asarray(theta))
    weight = jnp.asarray(exact.state_weight(mdp, policy))
    q = jnp.asarray(exact.action_value(mdp, policy))
    everything = {"action": jnp.broadcast_to(jnp.arange(A), (S, A)), "q": q, "weight": weight, "complete": True}
    function = lambda params, state: Categorical(params[state])  # noqa: E731
    trunk, roots = None, Roots(observation=jnp.arange(S), **everything)
    if shared:
        times, columns = np.unravel_index(rng.permutation(2 * S), (2, S))
        seen = jnp.zeros((2, S), int).at[times, columns].set(jnp.arange(2 * S) % S)
        trunk = Trunk(seen, weight[seen] / 2)
        place = jnp.asarray(times[:S]), jnp.asarray(columns[:S])
        roots = Roots(observation=jnp.arange(S), place=place, **everything)
    ours, oracle = vine_problem(function, theta, roots, trunk), exact_problem(mdp, theta)
    for params in (theta, other):
        a, b = ours.evaluate(params), oracle.evaluate(params)
        np.testing.assert_allclose(a.surrogate, b.surrogate, atol=1e-12)
        np.testing.assert_allclose(a.mean_kl, b.mean_kl, atol=1e-12)
        np.testing.assert_allclose(a.entropy, b.entropy, atol=1e-12)
        x, y = ours.linearise(params), oracle.linearise(params)
        np.testing.assert_allclose(x.gradient, y.gradient, atol=1e-12)
        np.testing.assert_allclose(x.fisher_vp(other), y.fisher_vp(other), atol=1e-12)
    assert float(ours.surrogate(theta)) == pytest.approx(0, abs=1e-14)


def test_self_normalised_surrogate_and_uniform_weights(x64: None) -> None:
    """Against its formula, summed by NumPy; a number added to a root's Q̂ changes nothing."""
    rng, roots, k = np.random.default_rng(4), 7, 5
    old, new = (DiagGaussian(jnp.asarray(rng.normal(size=(roots, 2))), jnp.zeros((roots, 2))) for _ in range(2))
    action, q = rng.normal(size=(roots, k, 2)), rng.normal(size=(roots, k))
    w = rng.dirichlet(np.ones(roots))

    def log_density(d: Any) -> np.ndarray:
        return -0.5 * ((action - np.asarray(d.mean)[:, None]) ** 2).sum(-1)

    for proposal in (log_density(old), np.zeros((roots, k))):
        rho = np.exp(log_density(new) - proposal)
        expected = (w * (rho * q).sum(-1) / rho.sum(-1)).sum()
        rows = Roots(jnp.zeros(roots), jnp.asarray(action), jnp.asarray(q), jnp.asarray(w), jnp.asarray(proposal))
        assert float(vine_surrogate(new, rows)) == pytest.approx(expected, rel=1e-12)
    function = lambda params, x: DiagGaussian(x + params[None], jnp.zeros(x.shape))  # noqa: E731
    rows = Roots(old.mean, jnp.asarray(action), jnp.asarray(q), jnp.asarray(w))
    shifted = dataclasses.replace(rows, q=rows.q + 1e3 * rng.normal(size=(roots, 1)))
    gradients = [gradient_of(function, jnp.zeros(2), r) for r in (rows, shifted)]
    np.testing.assert_allclose(*gradients, atol=1e-10)
    rho = np.full((roots, k), 1 / k)
    score = action - np.asarray(old.mean)[:, None]
    advantage = q - (rho * q).sum(-1, keepdims=True)
    expected = np.einsum("r,rk,rki->i", w, rho * advantage, score)
    np.testing.assert_allclose(gradients[0], expected, atol=1e-12)


def test_no_signal_is_no_step() -> None:
    """Equal Q̂, or Q̂ that differ in their last bits, give advantages of 0, not of noise brought to deviation 1."""
    rows = Roots(
        observation=jnp.zeros((4, 1)),
        action=jnp.broadcast_to(jnp.arange(2), (4, 2)),
        q=jnp.float32(1e4) + jnp.asarray([[0, 0], [0, 1e-3], [1e-3, 0], [0, 0]], jnp.float32),
        weight=jnp.full(4, 0.25),
        complete=True,
    )
    function = lambda params, x: Categorical(jnp.broadcast_to(params, (*x.shape[:-1], 2)))  # noqa: E731
    theta = jnp.array([0.3, 0.0])
    for q, differs in ((rows.q, False), (rows.q.at[1, 1].add(1), True)):
        gradient = gradient_of(function, theta, dataclasses.replace(rows, q=q), unit=True)
        assert bool(jnp.any(gradient)) is differs


def test_rows_of_weight_0_count_for_nothing() -> None:
    function = lambda params, x: Categorical(params[None] * x)  # noqa: E731
    rows = Roots(
        observation=jnp.array([[1.0], [2.0]]),
        action=jnp.broadcast_to(jnp.arange(2), (2, 2)),
        q=jnp.array([[1.0, 2.0], [jnp.nan, jnp.nan]]),
        weight=jnp.array([1.0, 0.0]),
        complete=True,
    )
    one = jax.tree.map(lambda x: x[:1], rows)
    theta = jnp.array([0.3, 0.0])
    for unit in (False, True):
        both, alone = (gradient_of(function, theta, r, unit) for r in (rows, one))
        np.testing.assert_allclose(both, alone, rtol=1e-6)
        assert jnp.isfinite(both).all()


def test_branch_returns_against_the_recursion(x64: None) -> None:
    rng, n, length = np.random.default_rng(5), 50, 7
    ends, terminated = rng.integers(1, length + 1, n), rng.random(n) < 0.4
    reward, v = rng.normal(size=(2, length, n))
    alive = np.arange(length)[:, None] < ends
    for lam in (1.0, 0.6, 0.0):
        expected = []
        for i in range(n):
            last = ends[i] - 1
            g = reward[last, i] + GAMMA * (0.0 if terminated[i] else v[last, i])
            for t in reversed(range(last)):
                g = reward[t, i] + GAMMA * ((1 - lam) * v[t, i] + lam * g)
            expected.append(g)
        found = branch_returns(*map(jnp.asarray, (reward, alive, terminated, v)), GAMMA, lam)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_roots_are_one_of_every_few_states() -> None:
    times = np.asarray(chosen_times(jax.random.key(0), 22, 5, 400))
    assert (times // 5 == np.arange(4)[:, None]).all()
    assert {tuple(np.unique(row % 5)) for row in times} == {(0, 1, 2, 3, 4)}


# ---------------------------------------------------------------- whole iterations


class Counting(gym.Env):
    """A walk on a line with noise: reward −x² + a; ends beyond 2, cut after seven steps. Counts all steps taken."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)
    taken = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x, self.time = float(self.np_random.normal()), 0
        return self._look(), {}

    def _look(self) -> np.ndarray:
        return np.array([self.x, self.time], np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        Counting.taken += 1
        self.time += 1
        self.x += 0.5 * (int(action) - 1) + 0.5 * float(self.np_random.normal())
        return self._look(), -(self.x**2) + 0.1 * int(action), abs(self.x) > 2, self.time == 7, {}

    def snapshot(self) -> dict[str, Any]:
        return {"x": self.x, "time": self.time, "random": copy.deepcopy(self.np_random.bit_generator.state)}

    def restore(self, state: dict[str, Any]) -> None:
        self.x, self.time = state["x"], state["time"]
        self.np_random.bit_generator.state = state["random"]


def configure(env: str = "counting", iterations: int = 2, workers: int = 0, **vine: Any) -> trpo.Config:
    vine = {"every": 4, "length": 5, **vine}
    return trpo.Config(
        steps=iterations * 10**4,
        fragment=11,
        env=trpo.EnvConfig(env, count=4, workers=workers),
        rollout="vine",
        vine=trpo.VineConfig(**vine),
        policy=trpo.PolicyConfig(hidden=(8,)),
        value=trpo.ValueConfig(hidden=(8,), epochs=2),
    )


def trained(env: Any, config: trpo.Config, iterations: int, state: Any = None, **own: Any) -> tuple[list, list]:
    agent = trpo.make_agent(env, config, **own)
    found = []
    for each in trpo.iterations(env, agent, config, state):
        found.append(each)
        if len(found) == iterations:
            break
    return [s for s, _ in found], [m for _, m in found]


@pytest.mark.parametrize(
    "vine", [{}, {"branch_lambda": 0.5}, {"actions": 2, "proposal": "policy"}, {"proposal": "uniform"}]
)
def test_branches_on_the_host_are_those_of_copied_environments(vine: dict[str, Any]) -> None:
    """A plain loop over deep copies of the environments, made when the trunk passes a root."""
    config = configure(**vine)
    agent = trpo.make_agent(Counting, config)
    program = agent.program()
    plan = program.vine
    drawn = jax.tree.map(np.asarray, prepare_vine(program, agent.actor(), jax.random.key(3), 0))
    noise = np.asarray(Categorical(jnp.zeros((4, 3))).noise(jax.random.key(9), (11,)))
    policy = HostPolicy(agent.policy, agent.actor())

    envs = [Counting() for _ in range(4)]
    here = np.stack([env.reset(seed=i)[0] for i, env in enumerate(envs)])
    copies: dict[Any, Any] = {}
    for t in range(11):
        for s, i in np.argwhere(drawn.time == t):
            copies[s, i] = copy.deepcopy(envs[i]), here[i]
        action, _ = policy(here, (), np.zeros(4, bool), noise[t])
        for i, env in enumerate(envs):
            here[i], _, ended, cut, _ = env.step(action[i])
            if ended or cut:
                here[i] = env.reset()[0]
    expected = {}
    for (s, i), (env, seen) in copies.items():
        for k in range(plan.actions):
            branch, at, rewards = copy.deepcopy(env), seen, []
            for t in range(plan.length):
                own = policy(at[None], (), np.zeros(1, bool), drawn.noise[t, s, i][None])[0][0]
                if t == 0 and drawn.first is None:
                    own = policy(at[None], (), np.zeros(1, bool), drawn.first_noise[k, s, i][None])[0][0]
                elif t == 0:
                    own = drawn.first[s, i, k]
                at, gained, ended, cut, _ = branch.step(own)
                rewards.append((gained, at, ended))
                if ended or cut:
                    break
            expected[s, i, k] = rewards

    source = HostSource(trpo.make_envs(Counting, 4))
    source.restart([0, 1, 2, 3])
    _, met = collect_vine(source, policy, noise, drawn, not plan.monte_carlo)
    np.testing.assert_array_equal(source.seat.observation, here)  # the trunk's own environments are where they were
    for place, rewards in expected.items():
        assert met.alive[:, *place].sum() == len(rewards)
        assert met.terminated[place] == rewards[-1][2]
        np.testing.assert_array_equal(met.reward[: len(rewards), *place], np.float32([r for r, _, _ in rewards]))
        seen = np.stack([x for _, x, _ in rewards])
        found = met.following[: len(rewards), *place] if not plan.monte_carlo else met.following[0][place]
        np.testing.assert_array_equal(found, seen if not plan.monte_carlo else seen[-1])


def test_all_steps_are_counted() -> None:
    Counting.taken = 0
    states, metrics = trained(Counting, configure(), 3)
    assert metrics[-1]["steps"] == states[-1].steps == Counting.taken
    steps = np.diff([m["steps"] for m in metrics])
    assert (steps > 11 * 4).all()
    assert (steps <= 11 * 4 + 2 * 4 * 3 * 5).all()


def test_processes_give_the_same_run() -> None:
    (alone, one), (spread, two) = (trained(Counting, configure(workers=w), 3) for w in (0, 2))
    assert [untimed(m) for m in one] == [untimed(m) for m in two]
    assert_same_bits(alone[-1].learner, spread[-1].learner)


@pytest.mark.parametrize("env", [Counting, "gymnax:CartPole-v1"])
def test_a_run_resumes_bit_for_bit(env: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(configure("x", proposal="auto", actions=3), checkpoint_every=1)
    steps = trained(env, config, 4)[1][1]["steps"]
    out, long = tmp_path / "run", dataclasses.replace(config, steps=steps + 300)
    whole = trpo.train(env, config=long, quiet=True)
    trpo.train(env, config=dataclasses.replace(config, steps=steps), out=out, quiet=True)
    resumed = trpo.resume(out, steps=long.steps, quiet=True, **({} if isinstance(env, str) else {"env": env}))
    assert same_bits(whole.learner, resumed.learner)


def test_policies_with_memory() -> None:
    """Roots are inside episodes: the branches' memory is that of the trunk there."""
    _, metrics = trained(Recall, configure(every=3, length=2), 3, policy=recalling())
    assert all(m["result"] == "accepted" and 0 < m["mean_kl"] <= m["max_kl"] for m in metrics)


@pytest.mark.parametrize(
    ("env", "vine"),
    [
        ("gymnax:CartPole-v1", {"kl": "roots", "targets": "trunk", "branch_lambda": 0.9}),
        ("Pendulum-v1", {"proposal": "uniform", "actions": 4}),
    ],
)
def test_the_bound_holds(env: str, vine: dict[str, Any]) -> None:
    _, metrics = trained(env, configure(env, **vine), 3)
    first, *others = metrics
    assert all(m["result"] == "accepted" and 0 < m["mean_kl"] <= m["max_kl"] for m in others)
    # Where no branch falls within its steps and V is 0 yet, all actions are the same, exactly.
    assert first["result"] == ("no_signal" if "CartPole" in env else "accepted")


@pytest.mark.parametrize(
    ("env", "changes", "said"),
    [
        ("probe:both", {"every": 12}, r"vine\.every=12: leaves no root in a fragment of 11 steps"),
        ("probe:both", {"proposal": "policy", "actions": 1}, r"vine\.actions=1: one sampled action is compared"),
        ("probe:continuous", {"proposal": "all"}, r"vine\.proposal='all': actions of .* cannot be listed; use policy"),
        ("probe:continuous", {"proposal": "uniform"}, r"vine\.proposal='uniform': .* have no uniform distribution"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(env: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        trained(env, configure(env, **changes), 1)
    assert "\n" not in str(caught.value)


class Unsavable(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), 1.0, True, False, {}


@pytest.mark.parametrize(
    ("env", "workers", "part"),
    [(Unsavable, 0, "Unsavable"), (Unsavable, 1, "Unsavable"), ("envpool:CartPole-v1", 0, "EnvPoolEnvs")],
)
def test_environments_that_cannot_be_saved_are_refused(env: Any, workers: int, part: str) -> None:
    if env != Unsavable:
        pytest.importorskip("envpool")
    with pytest.raises(ValueError, match=rf"rollout='vine': .*{part} cannot be saved.*use rollout=") as caught:
        trained(env, configure("x", workers=workers), 1)
    assert "\n" not in str(caught.value)


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [
        "--policy.hidden",
        "8",
        "--value.hidden",
        "8",
        "--env.count",
        "4",
        "--fragment",
        "16",
        "--quiet",
        "--rollout",
        "vine",
    ]
    vine = "--vine.every 16 --vine.length 4 --steps 300".split()  # noqa: SIM905
    assert main(["train", "CartPole-v1", "--out", "r", *flags, *vine]) == 0
    agent = trpo.load(tmp_path / "r")
    assert (agent.config.rollout, agent.config.vine.every) == ("vine", 16)
    assert main(["resume", "r", "--steps", "600", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["train", "probe:continuous", *flags, *vine, "--vine.proposal", "all"]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


class Masked(Counting):
    """Moves that lead away from 0 are forbidden; who makes one all the same breaks it."""

    def action_masks(self) -> np.ndarray:
        return np.array([self.x > -1, True, self.x < 1], np.int8)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_masks()[action], "forbidden"
        return super().step(action)


def test_forbidden_actions_are_not_followed() -> None:
    Counting.taken = 0
    states, metrics = trained(Masked, configure(kl="roots"), 3)
    assert all(m["result"] == "accepted" and 0 < m["mean_kl"] <= m["max_kl"] for m in metrics)
    assert states[-1].steps == Counting.taken
    with pytest.raises(ValueError, match=r"vine\.proposal='uniform': environment .* forbids actions"):
        trained(Masked, configure(proposal="uniform"), 1)


def test_settings_of_no_use_are_refused() -> None:
    config = configure()
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, stagger=True))
    with pytest.raises(ValueError, match=r"env\.stagger=True: rollout='vine' does not use it; leave it at False"):
        trained(Counting, config, 1)


@pytest.mark.parametrize("over_trunk", [False, True])
def test_products_over_fewer_states(over_trunk: bool, x64: None) -> None:
    """Those of a single-path batch of the same states, which has the same share of them; the gradient is over all."""
    rng, count = np.random.default_rng(2), 3
    seen = jnp.asarray(rng.normal(size=(6, count, 2)))
    place = jnp.asarray([[0, 1, 0], [3, 2, 4]]), jnp.broadcast_to(jnp.arange(count), (2, count))
    states = seen if over_trunk else seen[place]
    weight = jnp.full(states.shape[:2], 1 / (len(states) * count))
    theta, v = (jnp.asarray(rng.normal(size=(2, A))) for _ in range(2))
    action, q = jnp.broadcast_to(jnp.arange(A), (2, count, A)), jnp.asarray(rng.normal(size=(2, count, A)))
    roots = Roots(seen[place], action, q, jnp.full((2, count), 1 / (2 * count)), place=place, complete=True)
    trunk = Trunk(seen, weight) if over_trunk else None
    function = lambda params, x: Categorical(x @ params)  # noqa: E731
    batch = trpo.Batch(states, jnp.zeros(weight.shape, int), jnp.zeros(weight.shape), weight)

    @jax.jit
    def found() -> Any:
        ours = [vine_problem(function, theta, roots, trunk, fisher_subsample=k).linearise(theta) for k in (1, 2)]
        others = [trpo.sampled_problem(function, theta, batch, k).linearise(theta) for k in (1, 2)]
        return [m.gradient for m in ours], [m.fisher_vp(v) for m in ours], [m.fisher_vp(v) for m in others]

    gradients, ours, others = found()
    np.testing.assert_array_equal(*gradients)
    np.testing.assert_allclose(ours, others, atol=1e-12)
    assert not np.allclose(*ours)


@pytest.mark.parametrize("env", ["probe:both", "gymnax:CartPole-v1"])
def test_more_branches_than_memory_holds_are_refused(env: str) -> None:
    with pytest.raises(ValueError, match=r"vine\.every=1, vine\.length=1000000000: 88 branches of .* steps take"):
        trained(env, configure(env, every=1, length=10**9), 1)
