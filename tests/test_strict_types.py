"""Annotations are checked under test: in each test, the first calls of every function."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError
from strict_types import CALLS

from trpo.advantages import standardise


@pytest.mark.parametrize("again", [False, True])
def test_the_first_calls_in_each_test_are_checked(again: bool) -> None:
    right = jnp.arange(3.0), jnp.ones(3) / 3
    for _ in range(CALLS - 1):
        standardise(*right)
    with pytest.raises(TypeCheckError, match="weight"):
        standardise(right[0], 1.0)
    standardise(right[0], 1.0)  # no longer
