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
State = dict[str, Any]
GATES = {"gru": 3, "lstm": 4}
"""Numbers that a cell computes for each unit of its memory."""


def _sigmoid(x: Any) -> Any:
    return 0.5 + 0.5 * tanh(0.5 * x)  # overflows nowhere, in NumPy either


def gru(p: Any, q: Any, state: State) -> State:
    """Return z h + (1 − z) n with z, r = σ(p + q) and n = tanh(p + r q), for p = x W + b and q = h U (Cho et al. 2014).

    As in cuDNN, r multiplies the product with U, not h before it: one product for all three.
    """
    m = q.shape[-1] // 3
    gates = _sigmoid(p[..., : 2 * m] + q[..., : 2 * m])
    z, r = gates[..., :m], gates[..., m:]
    n = tanh(p[..., 2 * m :] + r * q[..., 2 * m :])
    return {"h": n + z * (state["h"] - n)}


def lstm(p: Any, q: Any, state: State) -> State:
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


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _through(cell: Callable[..., State], weight: Any, carry: State, p: Any, reset: Any) -> State:
    """Return the memory after each step of a fragment."""

    def step(state: State, now: Any) -> tuple[State, State]:
        p, reset = now
        state = cleared(state, reset)
        state = cell(p, state["h"] @ weight, state)
        return state, state

    return jax.lax.scan(step, carry, (p, reset))[1]


@_through.defjvp
def _through_jvp(cell: Callable[..., State], primals: Any, tangents: Any) -> tuple[State, State]:
    """Propagate tangents with one small product a step, forwards and, transposed, backwards.

    JAX's own rule keeps products with the tangent of U inside the loop, and sums its transpose there step by step. All
    states are known here, so those are one product of the whole fragment. A cell acts on each unit by itself: its
    slopes are found for all steps at once, along the ones of each gate and state.
    """
    weight, carry, p, reset = primals
    d_weight, d_carry, d_p, _ = tangents
    states = _through(cell, *primals)
    begun = {name: jnp.concatenate([carry[name][None], x[:-1]]) for name, x in states.items()}
    begun = {name: jnp.where(reset[..., None], 0.0, x) for name, x in begun.items()}
    at = p, begun["h"] @ weight, begun
    gates = p.shape[-1] // weight.shape[0]
    parts = partial(jnp.split, indices_or_sections=gates, axis=-1)

    def slopes(which: int) -> list[State]:
        """Return those along each gate of p, or of q."""
        ones, zeros = jnp.ones_like(begun["h"]), jnp.zeros_like(begun["h"])
        along = []
        for k in range(gates):
            one = jnp.concatenate([ones if j == k else zeros for j in range(gates)], -1)
            along.append([one if i == which else jax.tree.map(jnp.zeros_like, x) for i, x in enumerate(at)])
        return [jax.jvp(cell, at, tuple(tangent))[1] for tangent in along]

    def of_state(name: str) -> State:
        along = {other: (jnp.ones_like if other == name else jnp.zeros_like)(x) for other, x in begun.items()}
        return jax.jvp(cell, at, (jnp.zeros_like(p), jnp.zeros_like(p), along))[1]

    def along(slopes: list[State], moved: Any) -> State:
        return {name: sum(s[name] * x for s, x in zip(slopes, moved, strict=True)) for name in begun}

    by_p, by_q, by_state = slopes(0), slopes(1), {name: of_state(name) for name in begun}
    pushed = [along(by_p, parts(d_p)), along(by_q, parts(begun["h"] @ d_weight))]
    pushed = jax.tree.map(lambda a, b: a + b, *pushed)

    def step(d_state: State, now: Any) -> tuple[State, State]:
        pushed, by_q, by_state, reset = now
        d_state = cleared(d_state, reset)
        moved = along(by_q, parts(d_state["h"] @ weight)), along(list(by_state.values()), d_state.values())
        d_state = jax.tree.map(lambda *x: sum(x), pushed, *moved)
        return d_state, d_state

    return states, jax.lax.scan(step, d_carry, (pushed, by_q, by_state, reset))[1]


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

    def start(self, count: int) -> State:
        names = ("h",) if self.cell == "gru" else ("h", "c")
        return {name: jnp.zeros((count, self.memory), jnp.result_type(float)) for name in names}

    def __call__(self, carry: State, x: Any, reset: Any) -> tuple[Any, State]:
        state = cleared(carry, reset)
        state = CELLS[self.cell](self.before(x), state["h"] @ self.weight, state)
        return self.after(state["h"]), state

    def unroll(self, carry: State, x: Any, reset: Any) -> tuple[Any, State]:
        """Return outputs and memory after each step of a fragment ``[time, env, …]``."""
        states = _through(CELLS[self.cell], self.weight, carry, self.before(x), reset)
        return self.after(states["h"]), states


def host_step(trunk: Gated) -> Callable[[State, Any, Any], tuple[Any, State]]:
    """Return (memory, p, reset) ↦ (outputs, memory) in NumPy: a call of the trunk without the layers before."""
    cell, weight, (last,), (bias,) = CELLS[trunk.cell], trunk.weight, trunk.after.weights, trunk.after.biases
    bias = bias[None]

    def step(carry: State, p: Any, reset: Any) -> tuple[Any, State]:
        if reset.any():
            carry = cleared(carry, reset)
        carry = cell(p, carry["h"] @ weight, carry)
        return carry["h"] @ last + bias, carry

    return step


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
