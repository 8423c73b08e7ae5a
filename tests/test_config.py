"""Settings: mistakes are answered with the argument, its value, what is allowed and the cure."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import textwrap
import typing
from collections.abc import Callable
from typing import Any

import pytest

import trpo
from tests.helpers import run_process
from trpo.settings.config import FITS, RULES, merge

NAN, INF = math.nan, math.inf

MISTAKES: list[tuple[Callable[[], Any], list[str]]] = [
    (lambda: trpo.EnvConfig(count=0), ["env.count=0", "≥ 1", "16 is usual"]),
    (lambda: trpo.EnvConfig(count=4, workers=5), ["env.workers=5", "between 0 and env.count=4"]),
    (lambda: trpo.EnvConfig(workers=-1), ["env.workers=-1", "between 0"]),
    (lambda: trpo.Config(steps=0), ["steps=0", "≥ 1"]),
    (lambda: trpo.Config(seed=-1), ["seed=-1", "between 0 and 2³²"]),
    (lambda: trpo.Config(seed=2**32), ["seed=4294967296", "2³²"]),
    (lambda: trpo.Config(fragment=0), ["fragment=0", "≥ 1", "64 is usual"]),
    (lambda: trpo.Config(discount=1.01), ["discount=1.01", "[0, 1]", "0.99 is usual"]),
    (lambda: trpo.Config(discount=NAN), ["discount=nan", "[0, 1]"]),
    (lambda: trpo.Config(gae_lambda=-0.1), ["gae_lambda=-0.1", "[0, 1]", "0.95 is usual"]),
    (lambda: trpo.Config(updates_per_batch=0), ["updates_per_batch=0", "≥ 1"]),
    (lambda: trpo.Config(fisher_subsample=0), ["fisher_subsample=0", "≥ 1", "10"]),
    (lambda: trpo.Config(observation_clip=0.0), ["observation_clip=0.0", "> 0", "10 is usual"]),
    (lambda: trpo.Config(observation_clip=NAN), ["observation_clip=nan"]),
    (lambda: trpo.Config(checkpoint_every=0), ["checkpoint_every=0", "50 is usual"]),
    (lambda: trpo.Config(keep_checkpoints=0), ["keep_checkpoints=0", "3 is usual"]),
    (lambda: trpo.PolicyConfig(hidden=(64, 0)), ["policy.hidden=(64, 0)", "64 64"]),
    (lambda: trpo.PolicyConfig(initial_std=0.0), ["policy.initial_std=0.0", "> 0", "0.6 is usual"]),
    (lambda: trpo.PolicyConfig(initial_std=NAN), ["policy.initial_std=nan"]),
    (lambda: trpo.PolicyConfig(min_std=-0.1), ["policy.min_std=-0.1", "≥ 0", "0 sets no bound"]),
    (lambda: trpo.PolicyConfig(min_std=0.6), ["policy.min_std=0.6", "below policy.initial_std=0.6"]),
    (lambda: trpo.PolicyConfig(min_std=NAN), ["policy.min_std=nan"]),
    (lambda: trpo.PolicyConfig(min_std=True), ["policy.min_std=True", "or auto"]),
    (lambda: trpo.PolicyConfig(min_std=False), ["policy.min_std=False", "or auto"]),
    (lambda: trpo.PolicyConfig(last_layer_scale=-1.0), ["policy.last_layer_scale=-1.0", "0.01 is usual"]),
    (lambda: trpo.PolicyConfig(hidden_layer_scale=0.0), ["policy.hidden_layer_scale=0.0", "or auto", "√2 is usual"]),
    (lambda: trpo.ValueConfig(hidden_layer_scale=NAN), ["value.hidden_layer_scale=nan", "> 0"]),
    (lambda: trpo.ValueConfig(hidden_layer_scale=True), ["value.hidden_layer_scale=True", "> 0"]),
    (lambda: trpo.ValueConfig(hidden=(-1,)), ["value.hidden=(-1,)"]),
    (lambda: trpo.ValueConfig(max_change=0.0), ["value.max_change=0.0", "> 0", "0.1 is usual"]),
    (lambda: trpo.Config(value=trpo.ValueConfig(learning_rate=0.0)), ["value.learning_rate=0.0", "1e-3 is usual"]),
    (lambda: trpo.Config(value=trpo.ValueConfig(epochs=0)), ["value.epochs=0", "10 is usual"]),
    (lambda: trpo.Config(value=trpo.ValueConfig(minibatch=-1)), ["value.minibatch=-1", "128 is usual"]),
    (
        lambda: trpo.Config(value=trpo.ValueConfig(method="gauss-newton", steps=0)),
        ["value.steps=0", "≥ 1"],
    ),
    (lambda: trpo.Config(rule=trpo.RuleConfig(max_kl=0.0)), ["max_kl=0.0", "(0, ∞)", "0.01"]),
    (lambda: trpo.Config(rule=trpo.RuleConfig(max_kl=NAN)), ["max_kl=nan"]),
    (lambda: trpo.Config(rule=trpo.RuleConfig(damping=-0.1)), ["damping=-0.1", "[0, ∞)", "0.1 is usual"]),
    (lambda: trpo.Config(rule=trpo.RuleConfig(cg_iterations=0)), ["cg_iterations=0", "10"]),
    (lambda: trpo.Config(rule=trpo.RuleConfig(cg_tolerance=2.0)), ["cg_tolerance=2.0", "[0, 1]"]),
    (lambda: trpo.Config(rule=trpo.RuleConfig(backtrack_ratio=1.0)), ["backtrack_ratio=1.0", "(0, 1)", "0.8"]),
    (lambda: trpo.Config(rule=trpo.RuleConfig(max_backtracks=-1)), ["max_backtracks=-1", "10 is usual"]),
    (lambda: trpo.Config(final_discount=1.0), ["final_discount=1.0", "in [0, 1)"]),
    (lambda: trpo.Config(discount=1.0, final_discount=0.99), ["discount=1.0", "< 1"]),
]


@pytest.mark.parametrize(("make", "words"), MISTAKES, ids=lambda x: x[0] if isinstance(x, list) else "")
def test_a_mistake_is_named_with_what_is_allowed(make: Callable[[], Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says is checked below
        make()
    for word in words:
        assert word in str(caught.value)


FLOATS = {
    f"{group}.{name}" if group else name: (kind, name)
    for group, kind in (
        ("", trpo.Config),
        ("rule", trpo.RuleConfig),
        ("policy", trpo.PolicyConfig),
        ("value", trpo.ValueConfig),
    )
    for name, hint in typing.get_type_hints(kind).items()
    if float in (hint, *typing.get_args(hint))
}
NEEDS: dict[str, dict[str, Any]] = {
    "rule.initial_coefficient": {"name": "penalty"},
    **{f"rule.{name}": {"name": "ppo"} for name in ("clip", "learning_rate", "max_gradient_norm", "entropy_bonus")},
    "value.max_change": {"method": "gauss-newton"},
}
POSSIBLE: dict[str, set[float]] = {
    "observation_clip": {INF, 1e300},  # no bound
    "value.max_change": {INF, 1e300},
    "policy.min_std": {0.0, 1e-60},
    "policy.last_layer_scale": {0.0, 1e-60},
    "rule.damping": {0.0, 1e-60},
    "rule.entropy_bonus": {0.0, 1e-60},
    "rule.cg_tolerance": {0.0, 1e-60},
    "discount": {0.0, 1e-60},
    "final_discount": {0.0, 1e-60},
    "gae_lambda": {0.0, 1e-60},
    "policy.averaging": {0.0, 1e-60},
}


@pytest.mark.parametrize("value", [NAN, INF, -INF, -1.0, -1e-9, 0.0, 1e300, -1e300, 1e-60], ids=str)
@pytest.mark.parametrize("setting", FLOATS)
def test_numbers_that_are_none_are_refused_by_name(setting: str, value: float) -> None:
    """All settings that are floats: not finite, negative, 0, and what single precision makes infinite or 0."""
    kind, name = FLOATS[setting]

    def make() -> Any:
        made = kind(**NEEDS.get(setting, {}), **{name: value})
        return made.build() if hasattr(made, "build") else made

    if value in POSSIBLE.get(setting, ()):
        make()
        return
    with pytest.raises(ValueError, match=re.escape(f"{setting.removeprefix('rule.')}={value!r}: must be")) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_choices_are_checked_without_a_type_checker() -> None:
    """In a process of its own: here, the annotations themselves are enforced before the code runs."""
    program = """
        import trpo
        makers = [
            lambda: trpo.Config(on_nonfinite="ignore"), lambda: trpo.PolicyConfig(activation="gelu"),
            lambda: trpo.ValueConfig(activation="gelu"), lambda: trpo.ValueConfig(method="sgd"),
            lambda: trpo.RuleConfig(name="vpg"),
        ]
        for make in makers:
            try:
                make()
            except ValueError as error:
                print(error)
    """
    done = run_process([sys.executable, "-c", textwrap.dedent(program)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "on_nonfinite='ignore': must be one of stop, continue",
        "policy.activation='gelu': must be one of tanh, relu",
        "value.activation='gelu': must be one of tanh, relu",
        "value.method='sgd': must be one of adam, gauss-newton",
        "rule.name='vpg': must be one of trpo, natural-gradient, penalty, ppo",
    ]


UNUSED = [
    ("trpo", {"initial_coefficient": 3.0}),
    ("trpo", {"inner_steps": 5}),
    ("natural-gradient", {"backtrack_ratio": 0.5}),
    ("natural-gradient", {"max_backtracks": 5}),
    ("natural-gradient", {"inner_steps": 5}),
]


@pytest.mark.parametrize(("rule", "field"), UNUSED, ids=str)
def test_settings_that_the_rule_does_not_have_are_refused(rule: str, field: dict[str, Any]) -> None:
    """Row 22: an option that would do nothing is a mistake."""
    ((name, value),) = field.items()
    with pytest.raises(ValueError, match=rf"rule\.{name}={value!r}: rule '{rule}' does not use it"):
        trpo.Config(rule=trpo.RuleConfig(rule, **field))


@pytest.mark.parametrize("group", ["policy", "value"])
def test_a_memory_that_the_trunk_does_not_have_is_refused(group: str) -> None:
    kind = {"policy": trpo.PolicyConfig, "value": trpo.ValueConfig}[group]
    with pytest.raises(ValueError, match=rf"{group}\.memory=32: {group}\.trunk 'mlp' has none; use gru or lstm"):
        kind(memory=32)


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("adam", {"steps": 3}),
        ("adam", {"max_change": 0.2}),
        ("gauss-newton", {"learning_rate": 0.1}),
        ("gauss-newton", {"epochs": 3}),
        ("gauss-newton", {"minibatch": 64}),
    ],
    ids=str,
)
def test_settings_that_the_value_fit_does_not_have_are_refused(method: str, field: dict[str, Any]) -> None:
    ((name, value),) = field.items()
    with pytest.raises(ValueError, match=rf"value\.{name}={value!r}: method '{method}' does not use it"):
        trpo.Config(value=trpo.ValueConfig(method=method, **field))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_built_with_its_settings(rule: str) -> None:
    solve = {} if rule == "ppo" else {"damping": 0.2, "cg_iterations": 7, "cg_tolerance": 1e-3}
    built = trpo.RuleConfig(rule, max_kl=0.02, **solve).build()
    assert type(built) is RULES[rule]
    assert {"max_kl": 0.02, **solve}.items() <= vars(built).items()


@pytest.mark.parametrize(("group", "field", "kind"), [
    *((trpo.RuleConfig, "name", name) for name in RULES), *((trpo.ValueConfig, "method", name) for name in FITS),
])  # fmt: skip
def test_every_setting_of_a_rule_or_fit_arrives(group: Any, field: str, kind: str) -> None:
    """One after the other; none is left out, exchanged with another, or replaced by its default."""
    made = {**RULES, **FITS}[kind]
    names = {f.name for f in dataclasses.fields(made)} & {f.name for f in dataclasses.fields(group)}
    assert len(names) >= (5 if group is trpo.RuleConfig else 2)
    for name in names:
        default = getattr(group(), name)
        other = (
            not default
            if isinstance(default, bool)
            else default + 1
            if isinstance(default, int)
            else default / 2 or 0.5
        )
        assert group(**{field: kind, name: other}).build() == made(**{name: other}) != made(), name


EDGES: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    # a group, its settings at the ends of their ranges, and just beyond where that is not among the mistakes above
    (trpo.EnvConfig, {"count": 1, "devices": 0, "workers": 1}, {"devices": -1}),
    (trpo.Config, {"steps": 1, "seed": 2**32 - 1, "discount": 0.0, "gae_lambda": 0.0}, {"gae_lambda": 1.1}),
    (trpo.Config, {"seed": 0, "discount": 1.0, "gae_lambda": 1.0, "updates_per_batch": 1}, {"discount": -0.1}),
    (trpo.Config, {"fragment": 1, "fisher_subsample": 1, "keep_checkpoints": 1}, {"discount_steps": 0}),
    (trpo.Config, {"final_discount": 0.0, "discount_steps": 1, "checkpoint_every": 1}, {"final_discount": -0.1}),
    (trpo.PolicyConfig, {"hidden": (1,), "min_std": 0.0, "last_layer_scale": 0.0}, {"averaging": 1.0}),
    (trpo.PolicyConfig, {"hidden": (), "averaging": 0.0, "hidden_layer_scale": 1e-9}, {"averaging": -0.1}),
    (trpo.PolicyConfig, {"trunk": "gru", "memory": 1}, {"memory": 0}),
    (trpo.ValueConfig, {"trunk": "lstm", "memory": 1}, {"memory": -1}),
    (trpo.ValueConfig, {"epochs": 1, "minibatch": 0}, {"hidden_layer_scale": -1.0}),
    (trpo.ValueConfig, {"method": "gauss-newton", "steps": 1, "max_change": 1e-9}, {"max_change": -1.0}),
    (trpo.RuleConfig, {"damping": 0.0, "cg_iterations": 1, "cg_tolerance": 0.0}, {"max_step_norm": 0.0}),
    (trpo.RuleConfig, {"cg_tolerance": 1.0, "max_backtracks": 0}, {"backtrack_ratio": 0.0}),
    (trpo.RuleConfig, {"name": "penalty", "inner_steps": 1}, {"initial_coefficient": 0.0}),
    (trpo.RuleConfig, {"name": "ppo", "epochs": 1, "minibatch": 1, "decay_steps": 0}, {"minibatch": 0}),
    (trpo.RuleConfig, {"name": "ppo", "entropy_bonus": 0.0, "decay_steps": 1}, {"epochs": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("group", "inside", "outside"), EDGES, ids=str)
def test_the_ends_of_a_range_are_where_they_are_said_to_be(
    group: Any, inside: dict[str, Any], outside: dict[str, Any]
) -> None:
    def build(settings: dict[str, Any]) -> None:
        made = group(**settings)
        if group in (trpo.RuleConfig, trpo.ValueConfig):
            made.build()

    build(inside)
    ((name, value),) = outside.items()
    with pytest.raises(ValueError, match=rf"{name}={value!r}"):
        build({key: given for key, given in inside.items() if key in ("name", "method")} | outside)


def test_rules_and_fits_are_those_of_the_tables_with_their_own_defaults() -> None:
    for group, field, table in ((trpo.RuleConfig, "name", RULES), (trpo.ValueConfig, "method", FITS)):
        assert typing.get_args(typing.get_type_hints(group)[field]) == tuple(table)
        for name, kind in table.items():
            assert group(**{field: name}).build() == kind()


def test_defaults_are_the_paper_s() -> None:
    config = trpo.Config()
    assert (config.rule.name, config.rule.max_kl, config.rule.cg_iterations) == ("trpo", 0.01, 10)
    assert config.batch == config.env.count * config.fragment


# ---------------------------------------------------------------- files


def test_json_round_trip() -> None:
    config = trpo.Config(
        env=trpo.EnvConfig("Pendulum-v1", count=3, workers=2, rescale_actions=False),
        seed=7,
        rule=trpo.RuleConfig("penalty", inner_steps=2),
        policy=trpo.PolicyConfig(hidden=(), state_dependent_std=True),
        value=trpo.ValueConfig(hidden=(3, 4), method="gauss-newton", max_change=0.5),
        on_nonfinite="continue",
        discount=1,
    )
    for each in (config, trpo.Config()):
        read = trpo.Config.from_json(json.loads(json.dumps(each.to_json(), allow_nan=False)))
        assert read == each
        assert hash(read) == hash(each)


def test_missing_settings_have_their_defaults() -> None:
    assert trpo.Config.from_json({}) == trpo.Config()
    read = trpo.Config.from_json({"rule": {"max_kl": 0.5}})
    assert read == trpo.Config(rule=trpo.RuleConfig(max_kl=0.5))


def test_merging_changes_only_what_is_named() -> None:
    config = trpo.Config(seed=3, rule=trpo.RuleConfig(damping=0.5))
    assert merge(config, {"rule": {"max_kl": 0.5}, "steps": 9}) == dataclasses.replace(
        config, steps=9, rule=trpo.RuleConfig(damping=0.5, max_kl=0.5)
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"discont": 0.9}, ["discont", "did you mean discount?"]),
        ({"rule": {"maxkl": 0.9}}, ["rule.maxkl", "did you mean rule.max_kl?"]),
        ({"value": {"qqq": 1}}, ["value.qqq", "known are", "learning_rate"]),
        ({"rule": 3}, ["rule=3", "a group of settings"]),
        ({"steps": 1.5}, ["steps=1.5", "of type int"]),
        ({"steps": True}, ["steps=True", "of type int"]),
        ({"discount": "0.9"}, ["discount='0.9'", "of type float"]),
        ({"normalise_observations": 1}, ["normalise_observations=1", "of type bool"]),
        ({"env": {"id": 3}}, ["env.id=3", "of type str"]),
        ({"policy": {"hidden": 64}}, ["policy.hidden=64", "a list of integers"]),
        ({"policy": {"hidden": [64.5]}}, ["policy.hidden=[64.5]", "a list of integers"]),
        ({"policy": {"hidden": ["wide"]}}, ["policy.hidden=['wide']", "a list of integers"]),
        ({"policy": {"activation": "gelu"}}, ["policy.activation='gelu'", "tanh, relu"]),
        ({"discount": 2}, ["discount=2.0", "[0, 1]"]),
    ],
    ids=str,
)
def test_mistakes_in_a_file(data: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says is checked below
        trpo.Config.from_json(data)
    for word in words:
        assert word in str(caught.value)


def test_a_whole_number_is_a_float_and_a_list_a_tuple() -> None:
    read = trpo.Config.from_json({"discount": 1, "policy": {"hidden": [8, 8]}})
    assert read.discount == 1.0
    assert isinstance(read.discount, float)
    assert read.policy.hidden == (8, 8)
