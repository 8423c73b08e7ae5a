"""One conversion for every setting: whatever is given is refused by name, or kept as what its file gives back."""

from __future__ import annotations

import dataclasses
import enum
import fractions
import inspect
import json
import typing
from decimal import Decimal
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trpo
from trpo.runs.files import read_config
from trpo.settings.config import Config, merge, of_setting, settings_of
from trpo.settings.values import LARGEST, converted

SETTINGS = settings_of(Config)
SMALL = trpo.Config(
    steps=16, fragment=4, env=trpo.EnvConfig(count=2), policy=trpo.PolicyConfig((4,)), value=trpo.ValueConfig((4,))
)


class Text(str, enum.Enum):  # noqa: UP042 - the older form, whose str() is another text
    TANH = "tanh"


NUMBERS = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.decimals(), st.fractions(), st.complex_numbers(),
    st.sampled_from([0, 1, 2, 16, 64, 0.5, 1e3, 1e400, 10**400, 2**63, -(2**63), 0.01, Decimal("1E+999999")]),
)  # fmt: skip
SCALARS = st.builds(
    lambda number, kind: kind(number),
    st.integers(0, 100),
    st.sampled_from([np.int8, np.int64, np.uint16, np.float16, np.float32, np.float64, np.longdouble, np.bool_,
                     np.array, np.str_, jnp.asarray, lambda n: np.timedelta64(n, "ns")]),
)  # fmt: skip
TEXTS = st.one_of(st.text(), st.sampled_from(["auto", "tanh", "adam", "trpo", "1", "", "true", Text.TANH]))
LISTS = st.one_of(
    st.lists(NUMBERS | SCALARS, max_size=3), st.lists(NUMBERS, max_size=2).map(tuple),
    st.lists(st.integers(1, 99), max_size=3).map(np.array), st.builds(range, st.integers(0, 3)),
)  # fmt: skip
OBJECTS = st.dictionaries(st.text(max_size=3) | st.integers(), NUMBERS | TEXTS | LISTS, max_size=3)
ANYTHING = st.one_of(st.none(), NUMBERS, SCALARS, TEXTS, LISTS, OBJECTS, st.binary(), st.just(object()))


def leaf(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def plain(value: Any) -> bool:
    """Whether a value is of the very types that JSON gives, lists being tuples where they are settings."""
    if isinstance(value, dict):
        return type(value) is dict and all(type(k) is str and plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return type(value) in (int, float, str, bool, type(None))


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(value=ANYTHING)
def test_a_setting_is_refused_by_name_or_read_again_as_it_was(name: str, value: Any) -> None:
    *groups, last = name.split(".")
    changes: dict[str, Any] = {last: value}
    for group in groups:
        changes = {group: changes}
    said, config = "", Config()
    try:
        config = merge(config, changes)
    except ValueError as error:
        said = str(error)
    assert not said or (last in said and "\n" not in said)
    kept = leaf(config, name)
    assert plain(kept)
    text = json.dumps(config.to_json())
    read = Config.from_json(json.loads(text))
    assert read == config
    assert hash(read) == hash(config)
    assert json.dumps(read.to_json()) == text


@pytest.mark.parametrize("kind", [Config, trpo.EnvConfig, trpo.RuleConfig, trpo.PolicyConfig, trpo.ValueConfig])
def test_the_conversion_is_in_the_records_themselves(kind: Any) -> None:
    """Not only where files are read: without the annotations that tests enforce, a record converts what it is given."""
    made, given_fields = object.__new__(kind), {}
    for f in dataclasses.fields(kind):
        value = f.default if f.default is not dataclasses.MISSING else f.default_factory()  # type: ignore[misc]
        given_fields[f.name] = value
        if type(value) in (int, float, bool, str):
            value = np.asarray(value)[()]
        object.__setattr__(made, f.name, list(value) if isinstance(value, tuple) else value)
    inspect.unwrap(kind.__post_init__)(made)
    for name, value in given_fields.items():
        assert getattr(made, name) == value
        assert type(getattr(made, name)) is type(value)


@pytest.mark.parametrize(
    ("hint", "value", "kept"),
    [
        (int, 1e3, 1000),
        (int, np.float32(64), 64),
        (int, Decimal("1e6"), 10**6),
        (int, fractions.Fraction(6, 2), 3),
        (int, np.array(7), 7),
        (float, 1, 1.0),
        (float, np.int64(2), 2.0),
        (float, Decimal("0.01"), 0.01),
        (float | None, None, None),
        (bool, np.True_, True),
        (str, np.str_("Hopper-v5"), "Hopper-v5"),
        (typing.Literal["tanh", "relu"], Text.TANH, "tanh"),
        (float | typing.Literal["auto"], "auto", "auto"),
        (tuple[int, ...], np.array([64.0, 32.0]), (64, 32)),
        (tuple[int, ...], [], ()),
        (dict[str, Any], {"a": np.True_, "b": jnp.asarray(2), "c": "text"}, {"a": True, "b": 2, "c": "text"}),
        (dict[str, Any], {"a": (1, np.float64(0.5)), "b": {"c": np.arange(2)}}, {"a": [1, 0.5], "b": {"c": [0, 1]}}),
    ],
)
def test_what_means_the_same_is_taken(hint: Any, value: Any, kept: Any) -> None:
    found = converted(value, hint, "x")
    assert found == kept
    assert type(found) is type(kept)
    assert plain(found)
    assert json.dumps(found) == json.dumps(kept)  # 2 is not 2.0


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, True), (int, 1.5), (int, "64"), (int, np.nan), (int, LARGEST), (int, None), (int, [1]), (int, 1j),
        (int, np.timedelta64(3, "ns")), (float, "0.1"), (float, np.True_), (float, 10**400), (bool, 1), (bool, "true"),
        (str, 3), (str, b"x"), (tuple[int, ...], "64"), (tuple[int, ...], 64), (tuple[int, ...], [[64]]),
        (tuple[int, ...], {64: 1}), (dict[str, Any], {1: 2}), (dict[str, Any], {"a": np.nan}),
        (dict[str, Any], {"a": object()}), (dict[str, Any], [("a", 1)]), (trpo.RuleConfig, {"max_kl": 0.1}),
        (tuple[int, ...], b"@"), (typing.Literal["tanh", "relu"], "sine"),
    ],
    ids=lambda x: getattr(x, "__name__", None) or type(x).__name__,
)  # fmt: skip
def test_what_does_not_is_refused(hint: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^x=.*: must be"):
        converted(value, hint, "x")


class Shaped:
    """Of a scalar's shape, and none."""

    shape = ()

    def __repr__(self) -> str:
        return "a\nb"


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        (int, "1", "x='1': must be of type int"),
        (float | None, Shaped(), "x=a b: must be of type float, or None"),
        (float | typing.Literal["auto"], "best", "x='best': must be of type float, or auto"),
        (typing.Literal["tanh", "relu"], 3, "x=3: must be one of tanh, relu"),
        (tuple[int, ...], "y" * 300, f"x='{'y' * 198}…: must be a list of integers"),
        (trpo.RuleConfig, 1, "x=1: must be a trpo.RuleConfig"),
    ],
    ids=["one type", "or none", "or a word", "words", "long", "a record"],
)
def test_what_is_refused_is_shown_in_a_line_with_what_is_allowed(hint: Any, value: Any, said: str) -> None:
    for advice in ("", "so"):
        with pytest.raises(ValueError, match=r"^x=") as caught:
            converted(value, hint, "x", advice)
        assert str(caught.value) == said + ("; so" if advice else "")


# ---------------------------------------------------------------- runs


def unchecked(function: Any) -> Any:
    return inspect.unwrap(function)  # in tests, annotations would refuse some values first


@pytest.mark.parametrize("steps", [3.2e1, np.int64(32), np.float32(32), Decimal(32)], ids=lambda x: type(x).__name__)
def test_what_train_wrote_is_loaded_and_resumed(steps: Any, tmp_path: Path) -> None:
    out = tmp_path / "r"
    agent = unchecked(trpo.train)("probe:action", steps=steps, seed=np.int64(3), config=SMALL, out=out, quiet=True)
    assert trpo.load(out).config == agent.config
    assert (agent.config.steps, agent.config.seed) == (32, 3)
    assert type(read_config(out)["config"]["steps"]) is int
    assert unchecked(trpo.resume)(out, steps=2 * steps, quiet=True).config.steps == 64
    assert trpo.load(out).config.steps == 64


@pytest.mark.parametrize("steps", [True, 33.5, "40", np.nan, 0, np.array([40, 40])], ids=str)
def test_a_good_run_stays_good_and_nothing_is_left(steps: Any, tmp_path: Path) -> None:
    out, before = tmp_path / "r", trpo.train("probe:action", config=SMALL, out=tmp_path / "r", quiet=True)
    text = (out / "config.json").read_bytes()
    with pytest.raises(ValueError, match="steps="):
        unchecked(trpo.resume)(out, steps=steps, quiet=True)
    assert (out / "config.json").read_bytes() == text
    assert trpo.load(out).config == before.config
    for start in (trpo.train, trpo.sweep):
        with pytest.raises(ValueError, match="steps="):
            unchecked(start)("probe:action", steps=steps, config=SMALL, out=tmp_path / "s", quiet=True)
        assert not (tmp_path / "s").exists()


def test_sweeps_keep_seeds_and_values_as_files_do(tmp_path: Path) -> None:
    vary = {"rule.max-kl": np.array([0.01, 0.5], np.float32), "fragment": [np.int64(4), 8.0]}
    sweep = unchecked(trpo.sweep)
    agents = sweep("probe:action", seeds=np.arange(2), vary=vary, config=SMALL, out=tmp_path / "s", quiet=True)
    runs = json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [0, 1] * 4
    assert [run["changes"]["fragment"] for run in runs] == [4, 4, 8, 8] * 2
    for run, agent in zip(runs, agents, strict=True):
        assert trpo.load(tmp_path / "s" / run["name"]).config == agent.config
    for seeds in (True, 1.5, "2", [1, 2.5], [np.nan]):
        with pytest.raises(ValueError, match="seeds="):
            sweep("probe:action", seeds=seeds, config=SMALL, out=tmp_path / "t", quiet=True)
    for values in (0.1, "auto", [1, 1.0], [object()]):
        with pytest.raises(ValueError, match=r"vary 'discount'|discount="):
            sweep("probe:action", vary={"discount": values}, config=SMALL, out=tmp_path / "t", quiet=True)
    assert not (tmp_path / "t").exists()


def test_settings_by_dotted_name() -> None:
    assert of_setting("policy.hidden", [8.0]) == (8,)
    with pytest.raises(ValueError, match=r"did you mean rule\.max_kl"):
        of_setting("rule.max_kll", 1)
    with pytest.raises(ValueError, match="not a group of settings"):
        of_setting("rule", 1)
