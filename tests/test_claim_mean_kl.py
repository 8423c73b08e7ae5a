"""The claim about the mean KL holds, and plausible bugs make it fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo import problem
from trpo.rules import trpo as rule
from trpo.tabular import bridge
from trpo.theory.claims.mean_kl import claim, measure
from trpo.theory.records import Outcome

SIZE = 32


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One shape: enough to notice a bug."""
    shape = measure.SHAPES[0]
    monkeypatch.setattr(measure, "SHAPES", (shape,))
    monkeypatch.setattr(measure, "TABLE_SHAPE", shape)


def failed(outcome: Outcome) -> set[str]:
    return {check.name for check in outcome.checks if not check.passed}


def test_holds(x64: None, tmp_path: Path) -> None:
    outcome = claim.run(SIZE, tmp_path)
    assert not failed(outcome), [check for check in outcome.checks if not check.passed]
    assert all(np.isfinite(check.worst) for check in outcome.checks)
    assert outcome.pictures
    assert all((tmp_path / picture.file).exists() for picture in outcome.pictures)


def test_swapped_kl_is_noticed(x64: None, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = problem.mean_kl
    monkeypatch.setattr(problem, "mean_kl", lambda old, new, weight: right(new, old, weight))
    assert {"accepted ⇒ D̄ ≤ δ", "the library's D̄ and D_max"} <= failed(claim.run(SIZE))


def test_dropped_weights_are_noticed(x64: None, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bridge.state_weight
    monkeypatch.setattr(bridge, "state_weight", lambda mdp, policy: jnp.full_like(right(mdp, policy), 1 / mdp.states))
    assert {"accepted ⇒ D̄ ≤ δ", "the library's D̄ and D_max"} <= failed(claim.run(SIZE))


def test_search_that_ignores_the_bound_is_noticed(x64: None, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = rule.line_search

    def loose(evaluate: Any, params: Any, step: Any, max_kl: Any, *rest: Any) -> Any:
        return right(evaluate, params, step, 1.5 * max_kl, *rest)

    monkeypatch.setattr(rule, "line_search", loose)
    assert "accepted ⇒ D̄ ≤ δ" in failed(claim.run(SIZE))


def test_step_kept_after_rejection_is_noticed(x64: None, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = rule.line_search

    def sloppy(evaluate: Any, params: Any, step: Any, *rest: Any) -> Any:
        new, info = right(evaluate, params, step, *rest)
        return jnp.where(info.accepted, new, params + 1e-9 * step), info

    monkeypatch.setattr(rule, "line_search", sloppy)
    assert "rejected ⇒ θ unchanged" in failed(claim.run(SIZE))
