"""The parameter-ball claim holds, and plausible bugs make it fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from trpo.distributions import DiagGaussian
from trpo.problem import LocalModel
from trpo.rules import natural_gradient
from trpo.theory.claims.parameter_ball import checks, claim, known, measure
from trpo.theory.records import Outcome

SIZE = 24
NATURAL = "natural gradient, two coordinate systems"


@pytest.fixture
def fresh_caches() -> Iterator[None]:
    jax.clear_caches()
    yield
    jax.clear_caches()


def failed(outcome: Outcome) -> set[str]:
    return {check.name for check in outcome.checks if not check.passed}


def test_the_claim_holds(fresh_caches: None, x64: None) -> None:
    outcome = claim.run(SIZE, seed=1)
    assert not failed(outcome), [check for check in outcome.checks if not check.passed]
    assert all(jnp.isfinite(check.worst) for check in outcome.checks)


def _averaged(self: DiagGaussian, other: DiagGaussian) -> jax.Array:
    return _right_kl(self, other) / self.mean.shape[-1]


def _with_the_first_sigma(self: DiagGaussian, other: DiagGaussian) -> jax.Array:
    twice_gap = 2 * (self.log_std - other.log_std)
    z = (self.mean - other.mean) * jnp.exp(-self.log_std)
    return 0.5 * jnp.sum(jnp.expm1(twice_gap) - twice_gap + z * z, axis=-1)


def _swapped(self: DiagGaussian, other: DiagGaussian) -> jax.Array:
    return _right_kl(other, self)


_right_kl = DiagGaussian.kl_to


@pytest.mark.parametrize(
    ("wrong", "finds"),
    [
        (_averaged, {"Gaussian, moved mean", "Gaussians in general"}),
        (_with_the_first_sigma, {"Gaussians in general"}),
        (_swapped, {"Gaussians in general"}),
    ],
)
def test_a_wrong_gaussian_kl_is_found(
    wrong: Callable[..., jax.Array], finds: set[str], x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiagGaussian, "kl_to", wrong)
    # The MDPs have no Gaussians: their part of the claim need not run.
    verdicts = checks.gaussian_checks(known.gaussians(measure.generator(0), SIZE))
    assert {check.name for check in verdicts if not check.passed} == finds


def test_the_plain_gradient_in_the_natural_ones_place_is_found(
    fresh_caches: None, x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalModel, "fisher_vp", lambda self, vector: vector)
    broken = failed(claim.run(SIZE))
    assert {NATURAL, "its coefficient", "natural step of a soft-max table"} <= broken
    assert not {"plain gradient, two coordinate systems", "the same by dense algebra"} & broken


def test_large_damping_is_found(fresh_caches: None, x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = natural_gradient.natural_direction

    def damped(model: Any, gradient: Any, damping: Any, iterations: int, tolerance: Any) -> Any:
        return right(model, gradient, damping + 0.1, iterations, tolerance)

    monkeypatch.setattr(natural_gradient, "natural_direction", damped)
    assert {NATURAL, "its coefficient", "natural step of a soft-max table"} <= failed(claim.run(SIZE))
