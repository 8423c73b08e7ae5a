"""Every setting of a training run, as plain data."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from trpo.envs.host.wrappers import is_name
from trpo.envs.images import image_of
from trpo.envs.spaces import Space
from trpo.policies.encoders import Encoding
from trpo.policies.recurrent import TrunkName
from trpo.policies.trunks import Activation, Gain
from trpo.rules import PPO, TRPO, NaturalGradient, Penalty
from trpo.settings.files import read_toml
from trpo.settings.values import converted, require
from trpo.spelling import did_you_mean
from trpo.trees import single
from trpo.value_fits.adam import AdamFit
from trpo.value_fits.gauss_newton import GaussNewtonFit

RULES: dict[str, Any] = {"trpo": TRPO, "natural-gradient": NaturalGradient, "penalty": Penalty, "ppo": PPO}
PIXELS = 2**23
"""Pixels that a block has if nothing else is said."""
FITS: dict[str, Any] = {"adam": AdamFit, "gauss-newton": GaussNewtonFit}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_RANGES: dict[str, Callable[[Any], bool]] = {
    "≥ 0": lambda x: 0 <= single(x) < math.inf,
    "≥ 1": lambda x: 1 <= x < math.inf,
    "> 0": lambda x: 0 < single(x) < math.inf,
    "> 0, inf for none": lambda x: single(x) > 0,
    "finite": lambda x: abs(single(x)) < math.inf,
    "in [0, 1]": lambda x: 0 <= x <= 1,
    "in [0, 1)": lambda x: 0 <= x < 1,
    "≥ 0, or auto": lambda x: x == "auto" or 0 <= x < 2**63,
    "> 0, or auto": lambda x: x == "auto" or (_is_number(x) and 0 < single(x) < math.inf),
    "positive widths, such as 64 64": lambda x: all(width >= 1 for width in x),
}
"""What numbers may be, as it is said to the user; a field's annotation adds advice, in which {} is its default.

All but those with ``inf`` must be finite, in single precision too."""
Widths = Annotated[tuple[int, ...], "positive widths, such as 64 64"]
LayerGain = Annotated[Gain, "> 0, or auto; √2 is usual"]


@functools.cache
def _hints(kind: Any, include_extras: bool = False) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=include_extras)


def _check(config: Any, group: str) -> None:
    """Convert every field, then check that numbers are in the ranges with which the fields are annotated."""
    kind: Any = type(config)
    ranges = {}
    for f in dataclasses.fields(config):
        default = f"{f.default:.10g}" if _is_number(f.default) else ""
        texts = getattr(_hints(kind, True)[f.name], "__metadata__", ())
        ranges[f.name] = allowed = next((text.format(default) for text in texts if isinstance(text, str)), "")
        value = converted(getattr(config, f.name), _hints(kind)[f.name], group + f.name, allowed)
        object.__setattr__(config, f.name, value)
    for name, allowed in ranges.items():
        value = getattr(config, name)
        if allowed and value is not None:
            require(_RANGES[allowed.partition(";")[0]](value), group + name, value, allowed)


def _require_seed(name: str, seed: int) -> None:
    require(0 <= seed < 2**32, name, seed, "between 0 and 2³² − 1")


def _build(config: Any, group: str, what: str, chosen: str, kinds: dict[str, Any]) -> Any:
    """Make the chosen kind from the fields that ``config`` has for it; others' fields must have their defaults."""
    used = {f.name for f in dataclasses.fields(kinds[chosen])}
    unused = {f.name for kind in kinds.values() for f in dataclasses.fields(kind)} - used
    for f in dataclasses.fields(config):
        if f.name in unused and (value := getattr(config, f.name)) != f.default:
            raise ValueError(f"{group}.{f.name}={value!r}: {what} {chosen!r} does not use it")
    return kinds[chosen](**{name: value for name, value in vars(config).items() if name in used})


def _require_memory_used(config: Any, group: str) -> None:
    if config.trunk == "mlp" and config.memory != PolicyConfig.memory:
        raise ValueError(f"{group}memory={config.memory}: {group}trunk 'mlp' has none; use gru or lstm")


@dataclass(frozen=True)
class EnvConfig:
    """Which environments, and how many."""

    id: Annotated[str, tyro.conf.Suppress] = "Hopper-v5"
    """A Gymnasium id, module:Id-v0, envpool:ID, gymnax:ID, brax:NAME, playground:NAME or probe:NAME."""
    count: Annotated[int, "≥ 1; {} is usual"] = 16
    """Environments stepped together."""
    workers: int = 0
    """Other processes that step a share of them; 0 steps all in this one."""
    devices: Annotated[int, "≥ 0; 0 takes all there are"] = 0
    """Environments in JAX: devices to spread them over; 0 takes all."""
    stagger: bool = False
    """On the host: cut first episodes at different times, so that environments do not stay in step."""
    rescale_actions: bool = True
    """Map [-1, 1] onto finite Box bounds."""
    flatten: bool = False
    """Make every observation one vector of numbers, whatever its space."""
    drop: tuple[str, ...] = ()
    """Parts of a Dict observation that are left out at the environment's door, such as mission."""
    wrappers: tuple[str, ...] = ()
    """Gymnasium wrappers around each environment, as module:Class, the first next to it; screens and stacks of frames
    come after them."""
    info: tuple[str, ...] = ()
    """Keys of what info tells where an episode ends, numbers or truth values such as is_success: their means are
    metrics, of training and of evaluation."""
    frame_stack: Annotated[int, "≥ 1; 4 is usual for games"] = 1
    """On the host: so many of the latest observations are shown together, the newest last; 1 stacks none."""
    screen: Annotated[int, "≥ 0; 84 is usual"] = 0
    """Atari: width and height of a grey screen, the maximum of the last two frames; 0: frames as the game has them."""
    frame_skip: Annotated[int, "≥ 1; {} is usual"] = 4
    """Atari with ``screen``: frames that an action lasts."""
    noops: Annotated[int, "≥ 1; {} is usual"] = 30
    """Atari with ``screen``: a game begins with up to so many frames without action, by chance."""
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    """What is passed to the environment when it is made by name, such as ctrl_cost_weight=0.2; values are JSON."""

    def __post_init__(self) -> None:
        _check(self, "env.")
        require(0 <= self.workers <= self.count, "env.workers", self.workers, f"between 0 and env.count={self.count}")
        require(all(map(is_name, self.wrappers)), "env.wrappers", self.wrappers, "names of the form module:Class")
        for name, usual in (("frame_skip", EnvConfig.frame_skip), ("noops", EnvConfig.noops)):
            allowed = f"{usual} without env.screen, which is what uses it"
            require(bool(self.screen) or getattr(self, name) == usual, f"env.{name}", getattr(self, name), allowed)


@dataclass(frozen=True)
class RuleConfig:
    """The update rule. Fields that a rule does not have must keep their defaults."""

    name: Literal["trpo", "natural-gradient", "penalty", "ppo"] = "trpo"
    max_kl: float = float(TRPO.max_kl)
    """δ: bound on the mean KL of a whole iteration, in nats (a target for the next two rules, and nothing for ppo)."""
    damping: float = float(TRPO.damping)
    """λ, added to the Fisher matrix in the solve."""
    cg_iterations: int = TRPO.cg_iterations
    """Fisher products for each solve."""
    cg_tolerance: float = float(TRPO.cg_tolerance)
    """Stop the solve earlier at this relative squared residual."""
    max_step_norm: float = float(TRPO.max_step_norm)
    """Bound on a step in parameter space, which only a saturated policy meets."""
    backtrack_ratio: float = float(TRPO.backtrack_ratio)
    """Factor between trials of the line search."""
    max_backtracks: int = TRPO.max_backtracks
    """Trials after the first."""
    use_measured_kl: bool = TRPO.use_measured_kl
    """TRPO: shrink a step whose KL is too large by what the measured KL says, not by the fixed factor."""
    initial_coefficient: float = float(Penalty.initial_coefficient)
    """Penalty: first price of a nat of KL."""
    inner_steps: int = Penalty.inner_steps
    """Penalty: Newton steps for each update."""
    clip: float = float(PPO.clip)
    """PPO: ratios gain nothing beyond 1 ± this."""
    learning_rate: float = float(PPO.learning_rate)
    """PPO: Adam's, at the start."""
    decay_steps: Annotated[int, "≥ 0; the run's steps are usual, 0 is never"] = 0
    """PPO: environment steps over which the learning rate falls to 0; 0: it stays."""
    max_gradient_norm: float = float(PPO.max_gradient_norm)
    """PPO: longer gradients are shortened to this."""
    entropy_bonus: float = float(PPO.entropy_bonus)
    """PPO: what a nat of entropy is worth."""
    epochs: int = PPO.epochs
    """PPO: passes over a batch."""
    minibatch: int = PPO.minibatch
    """PPO: states of a step."""

    def __post_init__(self) -> None:
        _check(self, "rule.")
        allowed = "0, as the rule is not ppo"
        require(self.name == "ppo" or not self.decay_steps, "rule.decay_steps", self.decay_steps, allowed)

    def build(self, batch: int = 1) -> TRPO | NaturalGradient | Penalty | PPO:
        """Return the rule for batches of so many steps; raises ValueError for values out of range."""
        rule = _build(self, "rule", "rule", self.name, RULES)
        return dataclasses.replace(rule, decay_updates=self.decay_steps / batch) if self.decay_steps else rule


@dataclass(frozen=True)
class PolicyConfig:
    """The policy network."""

    hidden: Widths = (64, 64)
    """Widths of the hidden layers."""
    activation: Activation = "tanh"
    trunk: TrunkName = "mlp"
    """What follows the hidden layers: outputs at once (mlp), or a memory (gru, lstm) for what one observation hides."""
    memory: Annotated[int, "≥ 1; {} is usual"] = 64
    """Units of the memory of a gru or lstm."""
    initial_std: Annotated[float, "> 0; {} is usual"] = 0.6
    """σ of a Gaussian policy at the start."""
    min_std: float | Literal["auto"] = 0.0
    """σ never falls below this. A policy without noise forgets every state that it no longer meets. auto: 0.25/√d
    with d elements of an action, so that the noise's length is at least 0.25 whatever d, and never below 0.1."""
    state_dependent_std: bool = False
    """Let the network output σ too."""
    distribution: Literal["auto", "beta", "squashed"] = "auto"
    """Of actions in a Box: auto is a Gaussian, clipped where it is beyond the bounds; the others stay within them: a
    Beta, whose initial σ is initial_std but at most 0.48, or a Gaussian squashed by tanh."""
    last_layer_scale: Annotated[float, "≥ 0; {} is usual"] = 0.01
    """Gain of the last layer's initial weights."""
    hidden_layer_scale: LayerGain = 2**0.5
    """Gain of the hidden layers' initial weights; a small one starts nearly linear. auto: √2; 0.2 with more
    inputs than the first layer has units."""
    sees: str = ""
    """Parts of an observation that it sees, such as "joints[:7] goal", or ":27"; all if empty."""
    encoder: Encoding = "auto"
    """What images go through: auto gives each a convolutional network, cnn asks for one, flat flattens them."""
    averaging: Annotated[float, "in [0, 1); {} is usual, 0 is none"] = 0.05
    """The result is an average of training's policies over about this share of the iterations so far; 0: the last."""

    def __post_init__(self) -> None:
        _check(self, "policy.")
        _require_memory_used(self, "policy.")
        self._require_min_std(self.min_std if self.min_std != "auto" else 0.0)
        for name, value in (("min_std", self.min_std), ("state_dependent_std", self.state_dependent_std)):
            allowed = "left as it is with policy.distribution=beta, whose σ always depends on the state"
            require(self.distribution != "beta" or not value, f"policy.{name}", value, allowed)

    def _require_min_std(self, bound: Any) -> None:
        allowed = f"≥ 0 and below policy.initial_std={self.initial_std}, or auto; 0 sets no bound"
        require(_is_number(bound) and 0 <= bound < self.initial_std, "policy.min_std", bound, allowed)

    def std_bound(self, dimensions: int) -> float:
        """Return the bound on σ for actions of so many elements; raises ValueError if σ would begin below it."""
        bound = max(0.25 / dimensions**0.5, 0.1) if self.min_std == "auto" else self.min_std
        self._require_min_std(bound)
        return bound


@dataclass(frozen=True)
class ValueConfig:
    """The value network and its fit."""

    hidden: Widths = PolicyConfig.hidden
    """Widths of the hidden layers."""
    activation: Activation = PolicyConfig.activation
    trunk: TrunkName = PolicyConfig.trunk
    """As for the policy; its memory is its own."""
    memory: Annotated[int, "≥ 1; {} is usual"] = PolicyConfig.memory
    """Units of the memory of a gru or lstm."""
    hidden_layer_scale: LayerGain = PolicyConfig.hidden_layer_scale
    """Gain of the hidden layers' initial weights; auto as for the policy's."""
    sees: str = ""
    """Parts of an observation that it sees, as for the policy; it may see more."""
    encoder: Encoding = "auto"
    """What images go through, as for the policy; each network has an encoder of its own."""
    method: Literal["adam", "gauss-newton"] = "adam"
    learning_rate: float = float(AdamFit.learning_rate)
    """Adam's."""
    epochs: int = AdamFit.epochs
    """Adam's passes over each batch."""
    minibatch: int = AdamFit.minibatch
    """Adam's minibatch; 0 uses the whole batch at once."""
    steps: int = GaussNewtonFit.steps
    """Gauss-Newton steps for each batch."""
    max_change: Annotated[float, "> 0, inf for none; {} is usual"] = float(GaussNewtonFit.max_change)
    """Gauss-Newton's trust region."""
    normalise_returns: bool = True
    """Train on returns divided by their running standard deviation; without it the unit of reward matters."""

    def __post_init__(self) -> None:
        _check(self, "value.")
        _require_memory_used(self, "value.")

    def build(self) -> AdamFit | GaussNewtonFit:
        """Return the fit; raises ValueError for values out of range."""
        return _build(self, "value", "method", self.method, FITS)


@dataclass(frozen=True)
class VineConfig:
    """Branching rollouts, where ``rollout`` is vine."""

    every: Annotated[int, "≥ 1; {} is usual"] = 8
    """One of so many states of a trajectory is a root, from which branches begin."""
    actions: Annotated[int, "≥ 1; {} is usual"] = 8
    """Branches of a root: all actions where there are no more choices than this, else so many samples."""
    length: Annotated[int, "≥ 1; {} is usual"] = 16
    """Steps of a branch, at most; the value function stands for what comes later."""
    proposal: Literal["auto", "all", "policy", "uniform"] = "auto"
    """Where a root's actions come from. auto: all there are, else samples of the policy."""
    branch_lambda: Annotated[float, "in [0, 1]; {} is the paper's"] = 1.0
    """λ of returns inside a branch; less trusts the value function earlier."""
    kl: Literal["roots", "trunk"] = "trunk"
    """Over which states the KL and the Fisher matrix are averaged."""
    targets: Literal["trunk", "both"] = "both"
    """What the value function is fitted to: λ-returns of the trunk, or the values of roots too."""

    def __post_init__(self) -> None:
        _check(self, "vine.")


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on the side of training, in environments of its own."""

    every: Annotated[int, "≥ 0; 50000 is usual, 0 is never"] = 0
    """Environment steps between two evaluations; the best policy's checkpoint is kept. 0: none."""
    episodes: Annotated[int, "≥ 1; {} is usual"] = 10
    """Episodes of each, the same every time."""
    deterministic: bool = True
    """Take the distribution's mode; otherwise sample."""
    seed: int = 0
    """Of its environments and samples."""
    max_steps: Annotated[int, "≥ 1"] = 30_000
    """Steps after which an episode that has not ended is cut."""
    stop_return: Annotated[float | None, "finite"] = None
    """Stop training at this mean return."""
    stop_success: Annotated[float | None, "finite"] = None
    """Stop training at this success rate: the mean of is_success, or else of the first key of env.info."""
    patience: Annotated[int | None, "≥ 1"] = None
    """Stop training after so many evaluations in a row without a better one."""

    def __post_init__(self) -> None:
        _check(self, "evaluate.")
        _require_seed("evaluate.seed", self.seed)
        for name in ("stop_return", "stop_success", "patience"):
            allowed = "None where nothing is evaluated; add evaluate.every=50000"
            require(bool(self.every) or getattr(self, name) is None, f"evaluate.{name}", getattr(self, name), allowed)


@dataclass(frozen=True)
class VideoConfig:
    """Videos of the policy while it is trained, in an environment of its own."""

    every: Annotated[int, "≥ 0; 250000 is usual, 0 is never"] = 0
    """Environment steps between two videos, which go to videos/ in the run's directory. 0: none."""
    episodes: Annotated[int, "≥ 1; {} is usual"] = 1
    """Episodes of each, the same every time."""
    max_steps: Annotated[int, "≥ 1"] = 1_000
    """Steps after which an episode that has not ended is cut."""

    def __post_init__(self) -> None:
        _check(self, "video.")


@dataclass(frozen=True)
class LogConfig:
    """Where metrics go besides metrics.jsonl and TensorBoard."""

    csv: bool = False
    """Write metrics.csv, too, with a line an iteration."""
    wandb: str = ""
    """Project of Weights & Biases to log to (needs the extra wandb); none if empty."""

    def __post_init__(self) -> None:
        _check(self, "log.")


@dataclass(frozen=True)
class ProblemConfig:
    """The trust-region problem of a batch."""

    block: Annotated[int | Literal["auto"], "≥ 0, or auto; 0 is one block"] = "auto"
    """States of a batch that are worked on at a time, so that memory is that of a block; 0: all at once. auto: as many
    as have 2²³ pixels (297 stacks of four Atari frames) where there are images, else all."""

    def __post_init__(self) -> None:
        _check(self, "problem.")


@dataclass(frozen=True)
class Config:
    """A training run."""

    env: EnvConfig = field(default_factory=EnvConfig)
    steps: Annotated[int, "≥ 1"] = 1_000_000
    """Environment steps to train for; the last iteration may go a little beyond."""
    seed: int = 0
    """Of all that is random: the same seed gives the same run."""
    fragment: Annotated[int, "≥ 1; {} is usual"] = 64
    """Steps of every environment in one iteration; the batch is env.count times this."""
    rollout: Literal["single-path", "vine"] = "single-path"
    """How data is collected: one action in each state, or branches of several from some of them."""
    vine: VineConfig = field(default_factory=VineConfig)
    rule: RuleConfig = field(default_factory=RuleConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    problem: ProblemConfig = field(default_factory=ProblemConfig)
    discount: Annotated[float, "in [0, 1]; {} is usual"] = 0.99
    """γ; with ``final_discount``, at the start."""
    final_discount: Annotated[float | None, "in [0, 1); 0.998 is usual"] = None
    """Where γ goes: 1 − γ falls geometrically, so that a fall beyond the first horizon begins to count."""
    discount_steps: Annotated[int, "≥ 1; {} is usual"] = 1_000_000
    """Environment steps until γ is ``final_discount``, however long the run."""
    gae_lambda: Annotated[float, "in [0, 1]; {} is usual"] = 0.95
    """λ of generalised advantage estimation."""
    updates_per_batch: Annotated[int, "≥ 1"] = 1
    """Policy updates that one batch serves, all within one max_kl."""
    fisher_subsample: Annotated[int, "≥ 1; the paper used 10"] = 1
    """k > 1: Fisher products use a fixed 1/k of the states."""
    standardise_advantages: bool = True
    reward: Literal["raw", "sign"] = "raw"
    """What is learned from: rewards as they are, or their signs; the returns that are reported are raw."""
    normalise_observations: bool = True
    observation_clip: Annotated[float, "> 0, inf for none; {} is usual"] = 10.0
    """Bound on normalised observations, in standard deviations."""
    normalise_all: Annotated[bool, tyro.conf.Suppress] = False
    """Normalise integers, truth values and images too, as runs did that were begun before images had encoders."""
    on_nonfinite: Literal["stop", "continue"] = "stop"
    """What to do when a batch has a NaN or infinity; the old parameters are kept either way."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint_every: Annotated[int, "≥ 1; {} is usual"] = 50
    """Iterations between checkpoints."""
    keep_checkpoints: Annotated[int, "≥ 1; {} is usual"] = 3
    """Checkpoints to keep."""

    def __post_init__(self) -> None:
        _check(self, "")
        _require_seed("seed", self.seed)
        if self.final_discount is not None:
            require(self.discount < 1, "discount", self.discount, "< 1 where there is a final_discount")
        if not self.env.info:
            stop, allowed = self.evaluate.stop_success, "None where env.info names no key; add env.info=('is_success',)"
            require(stop is None, "evaluate.stop_success", stop, allowed)
        self.rule.build(self.batch)
        self.value.build()
        if self.rule.name == "ppo":
            require(self.rollout == "single-path", "rollout", self.rollout, "single-path with rule.name=ppo")

    def block_of(self, observation: Space) -> int:
        """Return how many states of this space a block has; 0: all."""
        if self.problem.block != "auto":
            return self.problem.block
        pixels = sum(leaf.size for _, leaf in observation.leaves() if image_of(leaf))
        return max(1, PIXELS // pixels) if pixels else 0

    @property
    def batch(self) -> int:
        """Environment steps in one iteration."""
        return self.env.count * self.fragment

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_toml(cls, file: str | Path) -> Config:
        """Return the defaults with the settings of a TOML file, whose groups are tables."""
        return with_file(cls(), file)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Config:
        """Read what :meth:`to_json` wrote."""
        return merge(cls(), data)


def merge(config: Any, changes: dict[str, Any], prefix: str = "") -> Any:
    """Return ``config`` with nested ``changes`` applied; an unknown name is a ValueError that names the nearest."""
    kind: Any = type(config)
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in hints:
            raise ValueError(f"unknown setting {prefix}{name}; {did_you_mean(name, list(hints), prefix)}")
        if dataclasses.is_dataclass(hints[name]):
            require(isinstance(value, dict), prefix + name, value, "a group of settings")
            values[name] = merge(getattr(config, name), value, f"{prefix}{name}.")
        else:
            values[name] = converted(value, hints[name], prefix + name)
    return dataclasses.replace(config, **values)


def with_file(config: Config, file: str | Path) -> Config:
    """Return ``config`` with the settings of a TOML file; ValueError, which names the file, if one cannot be."""
    settings = read_toml(file)
    try:
        return merge(config, settings)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def of_setting(name: str, value: Any) -> Any:
    """Return ``value`` as the setting of a dotted name, such as ``rule.max_kl``, keeps it."""
    known = settings_of(Config)
    require(not any(one.startswith(f"{name}.") for one in known), name, value, "a setting, not a group of settings")
    if name not in known:
        raise ValueError(f"unknown setting {name}; {did_you_mean(name, list(known))}")
    return converted(value, known[name], name)


def settings_of(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Return the types of all settings by dotted name."""
    found: dict[str, Any] = {}
    for name, hint in _hints(kind).items():
        group = dataclasses.is_dataclass(hint)
        found |= settings_of(hint, f"{prefix}{name}.") if group else {prefix + name: hint}
    return found
