"""FLOP of a program, the machine's own rate in a matrix product, and what chips are built for."""

import math
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_diffusion.devices import shardings

PRODUCTS = (2048, 4096)
SECONDS, RUNS = 2.0, 3  # a measurement repeats for so long, and so often at least


class Chip(NamedTuple):
    """What a chip's maker states, bfloat16 without sparsity.

    Attributes:
      tflops: TFLOP/s of the matrix units.
      memory_gib: GiB on the chip.
      memory_gbs: GB/s to that memory.
      link_gbs: GB/s that leave the chip over its links to other chips, all together, one way.
    """

    tflops: float
    memory_gib: float
    memory_gbs: float
    link_gbs: float


CHIPS = {  # by the beginning of JAX's device_kind, the longest that fits
    "TPU v4": Chip(275, 32, 1228, 300),
    "TPU v5 lite": Chip(197, 16, 819, 200),
    "TPU v5": Chip(459, 95, 2765, 600),
    "TPU v6 lite": Chip(918, 32, 1640, 400),
    "NVIDIA A100-SXM4-80GB": Chip(312, 79, 2039, 300),
    "NVIDIA H100 PCIe": Chip(756, 79, 2000, 300),
    "NVIDIA H100": Chip(989, 79, 3350, 450),
    "NVIDIA H200": Chip(989, 140, 4800, 450),
}


def chip_of(device: Any) -> Chip | None:
    """What is known of a device, by its `device_kind`."""
    fitting = [kind for kind in CHIPS if device.device_kind.startswith(kind)]
    return CHIPS[max(fitting, key=len)] if fitting else None


@cache
def peak_tflops() -> float:
    """TFLOP/s of one device: its maker's figure, else (a CPU, say) that of a product measured now.

    A CPU multiplies float32, an accelerator bfloat16. Devices of one machine share its cores: of
    the rate of all together, each has its part.
    """
    device = jax.devices()[0]
    if chip := chip_of(device):
        return chip.tflops
    dtype = "float32" if device.platform == "cpu" else "bfloat16"
    return product_rate(PRODUCTS[0], dtype, seconds=0.3) / jax.device_count()


def product_rate(size: int, dtype: str, seconds: float = SECONDS) -> float:
    """TFLOP/s of a square product, over all devices: each multiplies its share of the rows."""
    rows, replicated = shardings()
    a = jax.device_put(np.ones((size, size), jnp.dtype(dtype)), rows)
    b = jax.device_put(np.ones((size, size), jnp.dtype(dtype)), replicated)
    return 2 * size**3 / repeated(jax.jit(jnp.matmul), a, b, seconds=seconds) / 1e12


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
            # The gradient of a strided convolution is one of an input with zeros between.
            zeros = math.prod(equation.params["lhs_dilation"])
            total += 2 * out * math.prod(kernel) // features // zeros
        times = 1
        if equation.primitive.name == "scan":
            times = equation.params["length"]
        elif equation.primitive.name == "shard_map":
            times = equation.params["mesh"].size
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += times * matmul_flop(inner) if hasattr(inner, "eqns") else 0
    return total


def repeated(run: Callable, *arguments: Any, seconds: float = SECONDS) -> float:
    """Median seconds of a call, after two that warm it up."""
    for _ in range(2):
        jax.block_until_ready(run(*arguments))
    taken: list[float] = []
    while len(taken) < RUNS or sum(taken) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
