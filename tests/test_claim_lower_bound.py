"""The lower-bound claim holds, and plausible mistakes in the bounds make it fail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from trpo.tabular import bounds, exact
from trpo.theory.claims.lower_bound import claim, measure
from trpo.theory.claims.lower_bound.adversary import CONTROL, DISCOUNTS, Cases, search
from trpo.theory.claims.lower_bound.nearby import by_hand
from trpo.theory.records import Outcome

SIZE = 40


def failed(outcome: Outcome) -> set[str]:
    return {check.name for check in outcome.checks if not check.passed}


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only known pairs instead of a search, for mistakes that other checks must notice."""

    def known(targets: Any, penalties: Any, restarts: int, rng: np.random.Generator) -> dict[str, Cases]:
        return dict.fromkeys(targets, by_hand(DISCOUNTS, np.array([0.01, 0.1]), penalties).cases)

    monkeypatch.setattr(measure, "search", known)


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search against two bounds only, which compiles faster."""

    def short(targets: Any, penalties: Any, restarts: int, rng: np.random.Generator) -> dict[str, Cases]:
        some = {name: targets[name] for name in ("theorem_1", "average_tv", CONTROL)}
        return search(some, penalties, restarts, rng)

    monkeypatch.setattr(measure, "search", short)


def test_the_claim_holds(x64: None, tmp_path: Any) -> None:
    outcome = claim.run(SIZE, tmp_path, seed=1)
    assert outcome.passed, [check for check in outcome.checks if not check.passed]
    assert all(math.isfinite(check.worst) for check in outcome.checks)
    assert outcome.pictures
    assert all((tmp_path / picture.file).exists() for picture in outcome.pictures)
    assert len(outcome.checks) == 15


def test_a_constant_that_is_too_small_is_refuted(
    x64: None, short_search: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bounds.penalty_coefficient
    monkeypatch.setattr(bounds, "penalty_coefficient", lambda mdp, old: right(mdp, old) / 100)
    broken = failed(claim.run(SIZE))
    assert {f"{name}: search" for name in ("theorem_1", "theorem_1_kl", "pinsker")} <= broken
    # The others have a constant of their own.
    assert not broken & {"average_tv: search", "average_kl: search", "touches to second order"}


def test_a_mean_epsilon_is_refuted(x64: None, short_search: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def epsilon(mdp: Any, old: Any) -> Any:
        return abs(exact.advantage(mdp, old)).mean(axis=(-2, -1))

    monkeypatch.setattr(bounds, "epsilon", epsilon)
    assert {"theorem_1: search", "by hand"} <= failed(claim.run(SIZE))


def test_a_mean_of_the_new_epsilon_is_found(x64: None, no_search: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def epsilon_new(mdp: Any, old: Any, new: Any) -> Any:
        return abs(exact.expected_advantage(exact.advantage(mdp, old), new)).mean(axis=-1)

    monkeypatch.setattr(bounds, "epsilon_new", epsilon_new)
    # With two states, as the search has them, a mean over states is still a bound; known values tell the difference.
    assert "by hand" in failed(claim.run(SIZE))


def test_total_variation_without_its_square_is_found(
    x64: None, no_search: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def linear(mdp: Any, old: Any, new: Any) -> Any:
        return bounds.penalty_coefficient(mdp, old) * exact.total_variation(old, new).max(axis=-1)

    monkeypatch.setitem(bounds.BOUNDS, "theorem_1", linear)
    broken = failed(claim.run(SIZE))
    # TV ≥ TV², so this is a bound as well: only its order gives it away, and that it is loose.
    assert broken == {"touches to second order", "by hand", "no smaller constant"}


def test_a_swapped_kl_is_found(x64: None, no_search: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "kl", lambda p, q: exact.kl(q, p))
    # Pinsker's inequality holds in both directions, and so do the bounds: it takes a known value to see the difference.
    assert failed(claim.run(SIZE)) == {"by hand"}


def test_the_wrong_visitation_is_found(x64: None, no_search: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def average_tv(mdp: Any, old: Any, new: Any) -> Any:
        mean = (exact.state_weight(mdp, new) * exact.total_variation(old, new)).sum(axis=-1)
        return 2 * bounds.epsilon_new(mdp, old, new) * mdp.discount / (1 - mdp.discount) ** 2 * mean

    monkeypatch.setitem(bounds.BOUNDS, "average_tv", average_tv)
    assert failed(claim.run(SIZE)) == {"by hand"}


def test_a_surrogate_on_the_new_visitation_is_found(
    x64: None, no_search: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surrogate(mdp: Any, old: Any, new: Any) -> Any:
        return exact.expected_return(mdp, old) + exact.performance_difference(mdp, old, new)

    monkeypatch.setattr(exact, "surrogate", surrogate)
    assert {"by hand", "no smaller constant", "coefficient of L − η", "touches to second order"} <= failed(
        claim.run(SIZE)
    )
