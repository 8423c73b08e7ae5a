"""Trunks with memory: a GRU or an LSTM between the layers of an MLP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from trpo.policies.trunks import MLP, Activation, Gain, mlp, orthogonal, tanh
from trpo.trees import namespace
from trpo.types import AnyArray

Cell = Literal["gru", "lstm"]
TrunkName = Literal["mlp", "gru", "lstm"]
GATES = {"gru": 3, "lstm": 4}
"""Numbers that a cell computes for each unit of its memory."""


def _sigmoid(x: Any) -> Any:
    return 0.5 + 0.5 * tanh(0.5 * x)  # overflows nowhere, in NumPy either


def gru(p: Any, q: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return z h + (1 − z) n with z, r = σ(p + q) and n = tanh(p + r q), for p = x W + b and q = h U (Cho et al. 2014).

    As in cuDNN, r multiplies the product with U, not h before it: one product for all three.
    """
    m = q.shape[-1] // 3
    gates = _sigmoid(p[..., : 2 * m] + q[..., : 2 * m])
    z, r = gates[..., :m], gates[..., m:]
    n = tanh(p[..., 2 * m :] + r * q[..., 2 * m :])
    return {"h": n + z * (state["h"] - n)}


def lstm(p: Any, q: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return c' = f c + i n and h' = o tanh c', with i, f, o = σ(p + q) and n = tanh(p + q)."""
    m = q.shape[-1] // 4
    a = p + q
    gates = _sigmoid(a[..., : 3 * m])
    i, f, o = gates[..., :m], gates[..., m : 2 * m], gates[..., 2 * m :]
    c = f * state["c"] + i * tanh(a[..., 3 * m :])
    return {"h": o * tanh(c), "c": c}


CELLS = {"gru": gru, "lstm": lstm}


def cleared(state: Any, reset: Any) -> Any:
    """Return a memory that starts anew where ``reset``."""
    return {name: namespace(x).where(reset[:, None], 0.0, x) for name, x in state.items()}


class Gated(eqx.Module):
    """x ↦ h' V + c, with h' the memory of a GRU or an LSTM after it was shown an MLP of x.

    The MLP's last layer is the cell's product with its input, so that whatever does not depend on memory is done for a
    whole fragment at once; only the product with h, and what follows in the cell, is done step by step.
    """

    before: MLP
    """x ↦ p: hidden layers, and the gates' part that is of x."""
    weight: Float[AnyArray, "_memory _gates"]
    """U."""
    after: MLP
    cell: Cell = eqx.field(static=True)
    memory: int = eqx.field(static=True)
    """Units of h."""

    def start(self, count: int) -> dict[str, Any]:
        names = ("h",) if self.cell == "gru" else ("h", "c")
        return {name: jnp.zeros((count, self.memory), jnp.result_type(float)) for name in names}

    def __call__(self, carry: dict[str, Any], x: Any, reset: Any) -> tuple[Any, dict[str, Any]]:
        state = cleared(carry, reset)
        state = CELLS[self.cell](self.before(x), state["h"] @ self.weight, state)
        return self.after(state["h"]), state

    def unroll(self, carry: dict[str, Any], x: Any, reset: Any) -> tuple[Any, dict[str, Any]]:
        """Return outputs and memory after each step of a fragment ``[time, env, …]``."""
        cell = CELLS[self.cell]

        def step(state: Any, now: Any) -> tuple[Any, Any]:
            p, reset = now
            state = cleared(state, reset)
            state = cell(p, state["h"] @ self.weight, state)
            return state, state

        _, states = jax.lax.scan(step, carry, (self.before(x), reset))
        return self.after(states["h"]), states


def gated(
    key: PRNGKeyArray,
    sizes: tuple[int, ...],
    activation: Activation,
    last_scale: float,
    hidden_scale: Gain,
    dtype: Any,
    memory: int,
    cell: Cell,
) -> Gated:
    """Make a trunk with ``memory`` units after the hidden layers of ``sizes``; the rest is as :func:`~trpo.mlp` has it.

    Each gate has orthogonal weights of its own, and biases of zero, but for the gate that keeps what is remembered: 1
    (Gers, Schmidhuber and Cummins 2000; Jozefowicz, Zaremba and Sutskever 2015).
    """
    *rest, outputs = sizes
    before_key, gate_key, after_key = jax.random.split(key, 3)
    before = mlp(before_key, (*rest, memory), activation, 1.0, hidden_scale, dtype)
    random = np.random.default_rng(np.asarray(jax.random.key_data(gate_key)))

    def blocks(inputs: int) -> Any:
        drawn = [orthogonal(random, (inputs, memory)) for _ in range(GATES[cell])]
        return jnp.asarray(np.concatenate(drawn, 1), dtype)

    keeps = {"gru": 0, "lstm": 1}[cell]
    bias = np.zeros(memory * GATES[cell])
    bias[keeps * memory : (keeps + 1) * memory] = 1.0
    weights, biases = (*before.weights[:-1], blocks(rest[-1])), (*before.biases[:-1], jnp.asarray(bias, dtype))
    after = mlp(after_key, (memory, outputs), activation, last_scale, hidden_scale, dtype)
    return Gated(MLP(weights, biases, activation), blocks(memory), after, cell, memory)


TRUNKS: dict[str, Callable[..., Any]] = {
    "mlp": lambda *arguments: mlp(*arguments[:-1]),
    "gru": partial(gated, cell="gru"),
    "lstm": partial(gated, cell="lstm"),
}
"""What makes a trunk, by name: called as :func:`gated` is."""
