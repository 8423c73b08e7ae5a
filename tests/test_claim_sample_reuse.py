"""The claim about sample reuse holds, and plausible bugs make it fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from trpo import problem
from trpo.rules import TRPO, Repeated
from trpo.theory.claims.sample_reuse import claim
from trpo.theory.records import Outcome

SIZE = 24


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    jax.clear_caches()
    yield
    jax.clear_caches()


def failed(outcome: Outcome) -> set[str]:
    return {check.name for check in outcome.checks if not check.passed}


def test_the_claim_holds(x64: None, tmp_path: Any) -> None:
    outcome = claim.run(SIZE, tmp_path, seed=1)
    assert outcome.passed, [check for check in outcome.checks if not check.passed]
    assert all(np.isfinite(check.worst) for check in outcome.checks)
    assert outcome.pictures
    assert all((tmp_path / picture.file).exists() for picture in outcome.pictures)


def _before_each_update(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[problem.LocalProblem, Any], problem.LocalProblem]
) -> None:
    right = TRPO.update
    monkeypatch.setattr(
        TRPO, "update", lambda self, local, params, state: right(self, change(local, params), params, state)
    )


def test_a_moving_anchor_is_found(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _before_each_update(monkeypatch, lambda local, params: dataclasses.replace(local, old=local.distributions(params)))
    assert "within δ of the sampling policy" in failed(claim.run(SIZE))


def test_ratios_to_the_present_policy_are_found(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def present(local: problem.LocalProblem, params: Any) -> problem.LocalProblem:
        terms = dict(local.objective.keywords)
        terms["old_log_prob"] = local.distributions(params).log_prob(terms["action"])
        return dataclasses.replace(local, objective=jax.tree_util.Partial(local.objective.func, **terms))

    _before_each_update(monkeypatch, present)
    assert "one straight line" in failed(claim.run(SIZE))


def test_a_swapped_kl_is_found(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = problem.mean_kl
    monkeypatch.setattr(problem, "mean_kl", lambda old, new, weight: right(new, old, weight))
    assert "within δ of the sampling policy" in failed(claim.run(SIZE))


def test_a_budget_of_k_deltas_is_found(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Repeated.update

    def generous(self: Repeated, *arguments: Any) -> Any:
        rule = dataclasses.replace(self.rule, max_kl=self.rule.max_kl * self.times)
        return right(Repeated(rule, self.times), *arguments)

    monkeypatch.setattr(Repeated, "update", generous)
    assert failed(claim.run(SIZE)) == {"as the learner does it"}
