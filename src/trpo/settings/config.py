"""Every setting of a training run, as plain data."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from trpo.policies.networks import Gain
from trpo.rules import TRPO, NaturalGradient, Penalty
from trpo.value_fits.adam import AdamFit
from trpo.value_fits.gauss_newton import GaussNewtonFit


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r}: must be {allowed}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_gain(name: str, gain: Any) -> None:
    _require(gain == "auto" or (_is_number(gain) and gain > 0), name, gain, "> 0, or auto; √2 is usual")


def _require_choices(config: Any, prefix: str = "") -> None:
    """Check the fields that are a choice between names."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            value = getattr(config, name)
            _require(value in choices, prefix + name, value, f"one of {', '.join(map(str, choices))}")


@dataclass(frozen=True)
class EnvConfig:
    """Which environments, and how many."""

    id: Annotated[str, tyro.conf.Suppress] = "Hopper-v5"
    """A Gymnasium id, module:Id-v0, envpool:ID, gymnax:ID, brax:NAME, playground:NAME or probe:NAME."""
    count: int = 16
    """Environments stepped together."""
    workers: int = 0
    """Other processes that step a share of them; 0 steps all in this one."""
    devices: int = 0
    """Environments in JAX: devices to spread them over; 0 takes all."""
    stagger: bool = False
    """On the host: cut first episodes at different times, so that environments do not stay in step."""
    rescale_actions: bool = True
    """Map [-1, 1] onto finite Box bounds."""
    flatten: bool = False
    """Make every observation one vector of numbers, whatever its space."""

    def __post_init__(self) -> None:
        _require(self.count >= 1, "env.count", self.count, "≥ 1; 16 is usual")
        _require(self.devices >= 0, "env.devices", self.devices, "≥ 0; 0 takes all there are")
        _require(0 <= self.workers <= self.count, "env.workers", self.workers, f"between 0 and env.count={self.count}")


@dataclass(frozen=True)
class RuleConfig:
    """The update rule. Fields that a rule does not have must keep their defaults."""

    name: Literal["trpo", "natural-gradient", "penalty"] = "trpo"
    max_kl: float = 0.01
    """δ: bound on the mean KL of a whole iteration, in nats (a target for the other two rules)."""
    damping: float = 0.1
    """λ, added to the Fisher matrix in the solve."""
    cg_iterations: int = 10
    """Fisher products for each solve."""
    cg_tolerance: float = 1e-10
    """Stop the solve earlier at this relative squared residual."""
    max_step_norm: float = 10.0
    """Bound on a step in parameter space, which only a saturated policy meets."""
    backtrack_ratio: float = 0.8
    """Factor between trials of the line search."""
    max_backtracks: int = 10
    """Trials after the first."""
    use_measured_kl: bool = False
    """TRPO: shrink a step whose KL is too large by what the measured KL says, not by the fixed factor."""
    initial_coefficient: float = 10.0
    """Penalty: first price of a nat of KL."""
    inner_steps: int = 3
    """Penalty: Newton steps for each update."""

    def __post_init__(self) -> None:
        _require_choices(self, "rule.")

    def build(self) -> TRPO | NaturalGradient | Penalty:
        """Return the rule; raises ValueError for values out of range."""
        kind: Any = {"trpo": TRPO, "natural-gradient": NaturalGradient, "penalty": Penalty}[self.name]
        used = {f.name for f in dataclasses.fields(kind)}
        for f in dataclasses.fields(self):
            if f.name not in used | {"name"} and getattr(self, f.name) != f.default:
                raise ValueError(f"rule.{f.name}={getattr(self, f.name)!r}: rule {self.name!r} does not use it")
        return kind(**{name: getattr(self, name) for name in used})


@dataclass(frozen=True)
class PolicyConfig:
    """The policy network."""

    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["tanh", "relu"] = "tanh"
    initial_std: float = 0.6
    """σ of a Gaussian policy at the start."""
    min_std: float | Literal["auto"] = 0.0
    """σ never falls below this. A policy without noise forgets every state that it no longer meets. auto: 0.25/√d
    with d elements of an action, so that the noise's length is at least 0.25 whatever d, and never below 0.1."""
    state_dependent_std: bool = False
    """Let the network output σ too."""
    last_layer_scale: float = 0.01
    """Gain of the last layer's initial weights."""
    hidden_layer_scale: Gain = 2**0.5
    """Gain of the hidden layers' initial weights; a small one starts nearly linear. auto: √2; 0.2 with more
    inputs than the first layer has units."""
    sees: str = ""
    """Parts of an observation that it sees, such as "joints[:7] goal", or ":27"; all if empty."""
    averaging: float = 0.05
    """The result is an average of training's policies over about this share of the iterations so far; 0: the last."""

    def __post_init__(self) -> None:
        _require_choices(self, "policy.")
        _require(all(h >= 1 for h in self.hidden), "policy.hidden", self.hidden, "positive widths, such as 64 64")
        _require(self.initial_std > 0, "policy.initial_std", self.initial_std, "> 0; 0.6 is usual")
        self._require_min_std(self.min_std if self.min_std != "auto" else 0.0)
        _require_gain("policy.hidden_layer_scale", self.hidden_layer_scale)
        _require(self.last_layer_scale >= 0, "policy.last_layer_scale", self.last_layer_scale, "≥ 0; 0.01 is usual")
        _require(0 <= self.averaging < 1, "policy.averaging", self.averaging, "in [0, 1); 0.05 is usual, 0 is none")

    def _require_min_std(self, bound: Any) -> None:
        allowed = f"≥ 0 and below policy.initial_std={self.initial_std}, or auto; 0 sets no bound"
        _require(_is_number(bound) and 0 <= bound < self.initial_std, "policy.min_std", bound, allowed)

    def std_bound(self, dimensions: int) -> float:
        """Return the bound on σ for actions of so many elements; raises ValueError if σ would begin below it."""
        bound = max(0.25 / dimensions**0.5, 0.1) if self.min_std == "auto" else self.min_std
        self._require_min_std(bound)
        return bound


@dataclass(frozen=True)
class ValueConfig:
    """The value network and its fit."""

    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["tanh", "relu"] = "tanh"
    hidden_layer_scale: Gain = 2**0.5
    """Gain of the hidden layers' initial weights; auto as for the policy's."""
    sees: str = ""
    """Parts of an observation that it sees, as for the policy; it may see more."""
    method: Literal["adam", "gauss-newton"] = "adam"
    learning_rate: float = 1e-3
    """Adam's."""
    epochs: int = 10
    """Adam's passes over each batch."""
    minibatch: int = 128
    """Adam's minibatch; 0 uses the whole batch at once."""
    steps: int = 5
    """Gauss-Newton steps for each batch."""
    max_change: float = 0.1
    """Gauss-Newton's trust region."""
    normalise_returns: bool = True
    """Train on returns divided by their running standard deviation."""

    def __post_init__(self) -> None:
        _require_choices(self, "value.")
        _require(all(h >= 1 for h in self.hidden), "value.hidden", self.hidden, "positive widths, such as 64 64")
        _require_gain("value.hidden_layer_scale", self.hidden_layer_scale)
        _require(self.max_change > 0, "value.max_change", self.max_change, "> 0; 0.1 is usual")

    def build(self) -> AdamFit | GaussNewtonFit:
        """Return the fit; raises ValueError for values out of range."""
        unused = ("steps", "max_change") if self.method == "adam" else ("learning_rate", "epochs", "minibatch")
        for f in dataclasses.fields(self):
            if f.name in unused and getattr(self, f.name) != f.default:
                raise ValueError(f"value.{f.name}={getattr(self, f.name)!r}: method {self.method!r} does not use it")
        if self.method == "adam":
            return AdamFit(self.learning_rate, self.epochs, self.minibatch)
        return GaussNewtonFit(max_change=self.max_change, steps=self.steps)


@dataclass(frozen=True)
class Config:
    """A training run."""

    env: EnvConfig = field(default_factory=EnvConfig)
    steps: int = 1_000_000
    """Environment steps to train for; the last iteration may go a little beyond."""
    seed: int = 0
    fragment: int = 64
    """Steps of every environment in one iteration; the batch is env.count times this."""
    rule: RuleConfig = field(default_factory=RuleConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    discount: float = 0.99
    """γ; with ``final_discount``, at the start."""
    final_discount: float | None = None
    """Where γ goes: 1 − γ falls geometrically, so that a fall beyond the first horizon begins to count."""
    discount_steps: int = 1_000_000
    """Environment steps until γ is ``final_discount``, however long the run."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation."""
    updates_per_batch: int = 1
    """Policy updates that one batch serves, all within one max_kl."""
    fisher_subsample: int = 1
    """k > 1: Fisher products use a fixed 1/k of the states."""
    standardise_advantages: bool = True
    normalise_observations: bool = True
    observation_clip: float = 10.0
    """Bound on normalised observations, in standard deviations."""
    on_nonfinite: Literal["stop", "continue"] = "stop"
    """What to do when a batch has a NaN or infinity; the old parameters are kept either way."""
    checkpoint_every: int = 50
    """Iterations between checkpoints."""
    keep_checkpoints: int = 3
    """Checkpoints to keep."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self.steps >= 1, "steps", self.steps, "≥ 1")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "between 0 and 2³² − 1")
        _require(self.fragment >= 1, "fragment", self.fragment, "≥ 1; 64 is usual")
        _require(0 <= self.discount <= 1, "discount", self.discount, "in [0, 1]; 0.99 is usual")
        if self.final_discount is not None:
            _require(0 <= self.final_discount < 1, "final_discount", self.final_discount, "in [0, 1); 0.998 is usual")
            _require(self.discount < 1, "discount", self.discount, "< 1 where there is a final_discount")
        _require(self.discount_steps >= 1, "discount_steps", self.discount_steps, "≥ 1; 1000000 is usual")
        _require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "in [0, 1]; 0.95 is usual")
        _require(self.updates_per_batch >= 1, "updates_per_batch", self.updates_per_batch, "≥ 1")
        _require(self.fisher_subsample >= 1, "fisher_subsample", self.fisher_subsample, "≥ 1; the paper used 10")
        _require(
            self.observation_clip > 0 and not math.isnan(self.observation_clip),
            "observation_clip",
            self.observation_clip,
            "> 0; 10 is usual",
        )
        _require(self.checkpoint_every >= 1, "checkpoint_every", self.checkpoint_every, "≥ 1; 50 is usual")
        _require(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "≥ 1; 3 is usual")
        self.rule.build()
        self.value.build()

    @property
    def batch(self) -> int:
        """Environment steps in one iteration."""
        return self.env.count * self.fragment

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Config:
        """Read what :meth:`to_json` wrote, here or in a run of the first format."""
        data = dict(data)
        first = data.pop("observed_elements", 0)
        if first:
            data |= {group: {**data.get(group, {}), "sees": f":{first}"} for group in ("policy", "value")}
        return merge(cls(), data)


def merge(config: Any, changes: dict[str, Any], prefix: str = "") -> Any:
    """Return ``config`` with nested ``changes`` applied; an unknown name is a ValueError that names the nearest."""
    hints = typing.get_type_hints(type(config))
    known = [f.name for f in dataclasses.fields(config)]
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"unknown setting {prefix}{name}; {hint}")
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            _require(isinstance(value, dict), prefix + name, value, "a group of settings")
            values[name] = merge(current, value, f"{prefix}{name}.")
        else:
            values[name] = _convert(value, hints[name], prefix + name)
    return dataclasses.replace(config, **values)


def _convert(value: Any, hint: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is Literal:
        _require(value in typing.get_args(hint), name, value, f"one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        _require(
            isinstance(value, list | tuple) and all(type(x) is int for x in value), name, value, "a list of integers"
        )
        return tuple(value)
    if hint is float and _is_number(value):
        return float(value)
    if isinstance(hint, types.UnionType) or not isinstance(hint, type):
        return value
    _require(type(value) is hint, name, value, f"of type {hint.__name__}")
    return value
