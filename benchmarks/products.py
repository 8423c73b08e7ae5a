"""Our Fisher products against the machine's matrix-multiply peak, and our layers against vmapped Equinox layers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import trpo
from benchmarks import cases
from benchmarks.timing import Background, interleave, ratios, repeat, summary, turn
from trpo.fisher import linearise

PRODUCTS = 20
PEAK_SIDE = 2048


def necessary_flops(sizes: tuple[int, ...], states: int) -> int:
    """Count the floating-point operations that a Fisher product of an MLP cannot avoid.

    A matrix product [N, a] · [a, b] is 2Nab operations. J v needs, in each layer, x·dW and, where x depends on θ (all
    layers but the first), dx·W. Jᵀ u needs xᵀ·g and, with the same exception, g·Wᵀ. So 4 · 2Nab for each layer but
    2 · 2Nab for the first. Element-wise work (biases, derivatives of tanh, M) takes time but is not counted.
    """
    (a, b), *others = itertools.pairwise(sizes)
    return 2 * states * (2 * a * b + 4 * sum(c * d for c, d in others))


def chain(policy: Callable[..., Any], observation: jax.Array) -> Callable[..., Any]:
    """Return a compiled function that applies F ``count`` times, in a loop as conjugate gradient does.

    The linearisation is made once, outside the loop. ``count`` is traced, so two counts are the same program, and the
    difference of their times is the products' own time.
    """

    def run(params: Any, observation: jax.Array, count: jax.Array) -> Any:
        weight = jnp.full(observation.shape[0], 1 / observation.shape[0])
        linear = linearise(lambda theta: policy(theta, (), (observation, None))[0], params)

        def step(_: int, vector: Any) -> Any:
            return jax.tree.map(lambda v, fv: 0.5 * v + 0.1 * fv, vector, linear.fisher_vp(vector, weight))

        return jax.lax.fori_loop(0, count, step, params)

    return partial(jax.jit(run), observation=observation)


def seconds_per_product(chained: Callable[..., Any], params: Any, products: int = PRODUCTS) -> float:
    """Return the time of one product, linearisation excluded."""
    seconds = []
    for count in (1, 1 + products):
        start = time.perf_counter()
        jax.block_until_ready(chained(params, count=count))
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / products


def against_peak(case: cases.Case, rounds: int, background: Background) -> dict[str, Any]:
    """Measure the FVP's rate as a fraction of the matrix-multiply rate, in turns."""
    arrays = cases.make(case)
    policy, params = cases.ours(arrays)
    chained = chain(policy, jnp.asarray(arrays["observation"]))
    jax.block_until_ready(chained(params, count=1))
    flops = necessary_flops(case.sizes, case.states)
    square = jnp.ones((PEAK_SIDE, PEAK_SIDE), jnp.float32)
    tall = jnp.ones((case.states, case.width), jnp.float32)
    matmul = jax.jit(jnp.matmul)
    multiplications = {
        "square": (lambda: jax.block_until_ready(matmul(square, square)), 2 * PEAK_SIDE**3),
        "tall": (lambda: jax.block_until_ready(matmul(tall, tall[: case.width])), 2 * case.states * case.width**2),
    }
    contenders: dict[str, Callable[[], float]] = {
        name: partial(lambda f, n: min(repeat(f, 5)) / n, f, n) for name, (f, n) in multiplications.items()
    }
    contenders["fisher_vp"] = lambda: seconds_per_product(chained, params) / flops
    seconds = interleave(contenders, rounds, background)  # for one operation
    peak = [min(pair) for pair in zip(seconds["square"], seconds["tall"], strict=True)]
    return {
        "case": case.name,
        "flops": flops,
        "gflops": {name: summary([1e-9 / s for s in values]) for name, values in seconds.items()},
        "fraction": ratios(peak, seconds["fisher_vp"]),
    }


def against_vmap(case: cases.Case, rounds: int, background: Background) -> dict[str, Any]:
    """Measure a forward pass and a Fisher product of ``jax.vmap(eqx.nn.MLP)`` against ours, in turns."""
    arrays = cases.make(case)
    observation = jnp.asarray(arrays["observation"])
    policy, params = cases.ours(arrays)
    sizes = {"in_size": case.observation_size, "out_size": case.action_size, "width_size": case.width, "depth": 2}
    network = eqx.nn.MLP(**sizes, activation=jnp.tanh, key=jax.random.key(0))
    layers = tuple(
        eqx.tree_at(lambda m: (m.weight, m.bias), layer, (jnp.asarray(arrays[f"W{i}"]), jnp.asarray(arrays[f"b{i}"])))
        for i, layer in enumerate(network.layers)
    )
    network = eqx.tree_at(lambda m: m.layers, network, layers)
    per_example, per_example_params = trpo.as_policy(PerExample(network, params.head.log_std))
    pairs = {"ours": (policy, params), "vmap": (per_example, per_example_params)}
    forward, product = {}, {}
    for name, (function, theta) in pairs.items():
        compiled = jax.jit(lambda theta, seen, f=function: f(theta, (), (seen, None))[0])
        jax.block_until_ready(compiled(theta, observation))
        forward[name] = lambda f=compiled, p=theta: turn(repeat(lambda: jax.block_until_ready(f(p, observation)), 6))
        chained = chain(function, observation)
        jax.block_until_ready(chained(theta, count=1))
        product[name] = lambda f=chained, p=theta: seconds_per_product(f, p)
    row: dict[str, Any] = {"case": case.name}
    for kind, contenders in {"forward": forward, "fisher_vp": product}.items():
        seconds = interleave(contenders, rounds, background)
        row[kind] = {
            "seconds": {name: summary(values) for name, values in seconds.items()},
            "ratio": ratios(seconds["vmap"], seconds["ours"]),
        }
    return row


class PerExample(eqx.Module):
    """A Gaussian policy from a layer that takes one observation, batched by ``vmap``."""

    network: eqx.nn.MLP
    log_std: jax.Array

    def __call__(self, observation: jax.Array) -> trpo.DiagGaussian:
        """Return the distribution for each observation."""
        mean = jax.vmap(self.network)(observation)
        return trpo.DiagGaussian(mean, jnp.broadcast_to(self.log_std, mean.shape))
