"""The Fisher claim holds, and plausible bugs make it fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from trpo import problem
from trpo.distributions import Categorical
from trpo.distributions.categorical import log_softmax
from trpo.tabular import bridge
from trpo.theory.claims.fisher import claim
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
    assert not failed(outcome), [check for check in outcome.checks if not check.passed]
    assert all(jnp.isfinite(check.worst) for check in outcome.checks)
    assert outcome.pictures
    assert all((tmp_path / picture.file).exists() for picture in outcome.pictures)


def _swapped_mean_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    right = problem.mean_kl
    monkeypatch.setattr(problem, "mean_kl", lambda old, new, weight: right(new, old, weight))


def _swapped_kl_to(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Categorical.kl_to
    monkeypatch.setattr(Categorical, "kl_to", lambda self, other: right(other, self))


@pytest.mark.parametrize("swap", [_swapped_mean_kl, _swapped_kl_to])
def test_a_swapped_kl_is_found(
    swap: Callable[[pytest.MonkeyPatch], None], x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap(monkeypatch)
    broken = failed(claim.run(SIZE))
    assert "its coefficient" in broken
    # To second order the direction does not matter, so these must not see it.
    assert not broken & {"F in six ways", "flat at θ_old", "the remainder is cubic"}


def test_lost_visitation_weights_are_found(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "state_weight", lambda mdp, policy: jnp.full(policy.shape[:-1], 1 / policy.shape[-2]))
    assert {"F in six ways", "its coefficient", "slope of the KL nearby"} <= failed(claim.run(SIZE))


def test_a_fisher_product_without_its_mean_is_found(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mean(self: Categorical, tangent: Categorical) -> Categorical:
        return Categorical(jnp.exp(log_softmax(self.logits)) * tangent.logits)

    monkeypatch.setattr(Categorical, "fisher_product", without_mean)
    assert failed(claim.run(SIZE)) == {"F in six ways"}
