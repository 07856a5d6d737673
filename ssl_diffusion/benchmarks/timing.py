"""Seconds, FLOP and the machine's own best rate: what the benchmarks have in common."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_diffusion.devices import shardings

PRODUCTS = (2048, 4096)
SECONDS, RUNS = 2.0, 3  # a measurement repeats for so long, and so often at least


def product_rate(size: int, dtype: str) -> float:
    """TFLOP/s of a square product, over all devices: each multiplies its share of the rows."""
    rows, replicated = shardings()
    a = jax.device_put(np.ones((size, size), jnp.dtype(dtype)), rows)
    b = jax.device_put(np.ones((size, size), jnp.dtype(dtype)), replicated)
    return 2 * size**3 / repeated(jax.jit(jnp.matmul), a, b) / 1e12


def split(batch: int) -> Any:
    """Where a batch lies: over all devices, or on the first where it does not divide."""
    rows, _ = shardings()
    return rows if batch % jax.device_count() == 0 else jax.devices()[0]


def matmul_flop(jaxpr: Any) -> int:
    """FLOP of the products and convolutions in a traced program, over loops and devices."""
    total = 0
    for equation in jaxpr.eqns:
        out = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * out * math.prod(shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * out * math.prod(kernel) // features
        times = 1
        if equation.primitive.name == "scan":
            times = equation.params["length"]
        elif equation.primitive.name == "shard_map":
            times = equation.params["mesh"].size
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += times * matmul_flop(inner) if hasattr(inner, "eqns") else 0
    return total


def repeated(run: Callable, *arguments: Any) -> float:
    """Median seconds of a call, after two that warm it up."""
    for _ in range(2):
        jax.block_until_ready(run(*arguments))
    taken: list[float] = []
    while len(taken) < RUNS or sum(taken) < SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
