"""What a convolution costs in a loop on this machine: ours, and XLA's own, in turns.

    python -m benchmarks.convolutions

Fisher products and the steps of a value fit are loops. The result goes to ``benchmarks/results/convolutions.json``:
processor milliseconds of a Fisher product (one linearisation serves all) and of a step of a fit, and the ratio.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import trpo
from trpo.envs.spaces import Box
from trpo.policies import convolutions

RESULT = Path(__file__).with_name("results") / "convolutions.json"
CASES = {"10 × 10 × 4, 256 states": ((10, 10, 4), 256), "84 × 84 × 4, 32 states": ((84, 84, 4), 32)}
LOOP = 5
ROUNDS = 5


def compilers(x: Any, kernel: Any, stride: int) -> Any:
    """Return the same by XLA's convolution."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", dimension_numbers=layout)


def work(shape: tuple[int, ...], states: int) -> dict[str, Callable[[], Any]]:
    """Return compiled loops of Fisher products and of gradient steps of an encoder with six outputs."""
    encoder = trpo.make_encoder(Box(shape, "uint8", 0, 255), key=jax.random.key(0))
    params = encoder, 0.01 * jax.random.normal(jax.random.key(1), (encoder.size, 6))
    images = jax.random.randint(jax.random.key(2), (states, *shape), 0, 256).astype("uint8")

    def outputs(params: Any) -> Any:
        return params[0](images) @ params[1]

    def products(params: Any) -> Any:
        _, jvp = jax.linearize(outputs, params)
        transpose = jax.linear_transpose(jvp, params)
        step = lambda _, v: jax.tree.map(lambda x: 1e-3 * x, transpose(jvp(v))[0])  # noqa: E731
        return jax.lax.fori_loop(0, LOOP, step, params)

    def steps(params: Any) -> Any:
        gradient = jax.grad(lambda params: jnp.sum(jnp.square(outputs(params))))
        step = lambda _, p: jax.tree.map(lambda x, g: x - 1e-9 * g, p, gradient(p))  # noqa: E731
        return jax.lax.fori_loop(0, LOOP, step, params)

    compiled = {name: jax.jit(f) for name, f in (("a Fisher product", products), ("a step of a fit", steps))}
    calls = {name: lambda f=f: jax.block_until_ready(f(params)) for name, f in compiled.items()}
    for call in calls.values():
        call()
    return calls


def milliseconds(call: Callable[[], Any]) -> float:
    """Return the processor time of one turn of the loop."""
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start) / LOOP


def main() -> None:
    """Measure all cases."""
    found: dict[str, Any] = {}
    for case, (shape, states) in CASES.items():
        ours = work(shape, states)
        with mock.patch.object(convolutions, "convolve", compilers):
            theirs = work(shape, states)
        for name in ours:
            pairs = [(milliseconds(ours[name]), milliseconds(theirs[name])) for _ in range(ROUNDS)]
            a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
            found[f"{name}, {case}"] = {
                "ours": round(a, 2),
                "xla": round(b, 2),
                "ratio": round(statistics.median(y / x for x, y in pairs), 2),
            }
    RESULT.write_text(json.dumps({"jax": jax.__version__, "milliseconds": found}, indent=1, ensure_ascii=False) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
