"""How fast a denoiser runs, against what the same machine reaches in a matrix product.

python -m ssl_diffusion.benchmark denoiser [--json] [--networks=unet,dit] [--batches=1,4,16,64]

Prints seconds per forward, TFLOP/s and their ratio to the best product of 2048^3 and 4096^3
measured in the same run, for the published sizes: the U-Net of configs/bracs.py (latents 64x64x3)
and the DiT of the pan-cancer model (latents 32x32x16). FLOP are those of the convolutions and
products alone, counted in the traced program. On a CPU, set what launch/environment.sh does first.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import PyTree
from tqdm import tqdm

from ssl_diffusion import cli
from ssl_diffusion.devices import shardings
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.machine import hardware
from ssl_diffusion.models.build import PRECISIONS, build_network
from ssl_diffusion.models.layers import project_context

FLAGS = flags.FlagValues()
NETWORKS = flags.DEFINE_list(
    "networks", ["unet", "dit"], "of the published sizes: unet, dit", flag_values=FLAGS
)
BATCHES = flags.DEFINE_list(
    "batches", ["1", "4", "16", "64"], "windows in one forward", flag_values=FLAGS
)
TYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "float32, bfloat16", flag_values=FLAGS)
TOKENS = flags.DEFINE_integer("tokens", 1, "of context", lower_bound=1, flag_values=FLAGS)
JSON = flags.DEFINE_bool("json", False, "print JSON instead of a table", flag_values=FLAGS)

SIZES: dict[str, tuple[dict[str, Any], tuple[int, int, int], int]] = {  # latent, context width
    "unet": (
        {
            "name": "unet",
            "base_channels": 192,
            "channel_multipliers": (1, 2, 3, 5),
            "blocks_per_level": 2,
            "attention_levels": (1, 2, 3),
            "heads": 1,
            "out_channels": 3,
        },
        (64, 64, 3),
        512,
    ),
    "dit": (
        {
            "name": "dit",
            "patch_size": 2,
            "width": 1152,
            "depth": 28,
            "heads": 16,
            "out_channels": 32,
            "interpolation_scale": 0.5,
        },
        (32, 32, 16),
        1152,
    ),
}
PRODUCTS = (2048, 4096)
SECONDS, RUNS = 2.0, 3  # a measurement repeats for so long, and so often at least


def denoiser() -> None:
    """Measures what the flags say and prints it."""
    for name, given, known in (
        ("networks", NETWORKS.value, SIZES),
        ("dtypes", TYPES.value, PRECISIONS),
    ):
        if unknown := set(given) - set(known):
            raise InputError(f"--{name}={','.join(unknown)}; expected {', '.join(known)}")
    if not all(batch.isdigit() and int(batch) for batch in BATCHES.value):
        raise InputError(f"--batches={','.join(BATCHES.value)}; expected whole numbers, as 1,4")
    result = {"hardware": hardware(), "jax": jax.__version__, "rows": []}
    total = len(TYPES.value) * (1 + len(NETWORKS.value) * len(BATCHES.value))
    with tqdm(total=total, unit="measurement") as bar:
        for row in measure(bar):
            result["rows"].append(row)
    print(json.dumps(result, indent=2) if JSON.value else table(result))


def measure(bar: tqdm) -> Iterator[dict[str, Any]]:
    """One row for each network, number format and batch."""
    for dtype in TYPES.value:
        bar.set_description(f"product {dtype}")
        products = {size: product_rate(size, dtype) for size in PRODUCTS}
        bar.update()
        for name in NETWORKS.value:
            params = None
            for batch in map(int, BATCHES.value):
                bar.set_description(f"{name} {dtype} batch {batch}")
                architecture, latent, width = SIZES[name]
                network = build_network(architecture, PRECISIONS[dtype])
                inputs = latents(latent, width, batch)
                params = params or filled(network, inputs, PRECISIONS[dtype].params)
                seconds, flop = forward(network, params, inputs)
                rate = flop / seconds / 1e12
                yield {
                    "network": name,
                    "dtype": dtype,
                    "batch": batch,
                    "seconds": seconds,
                    "seconds_per_latent": seconds / batch,
                    "gflop_per_latent": flop / batch / 1e9,
                    "tflops": rate,
                    "product_tflops": {str(size): value for size, value in products.items()},
                    "of_product": rate / max(products.values()),
                }
                bar.update()


def product_rate(size: int, dtype: str) -> float:
    """TFLOP/s of a square product, over all devices: each multiplies its share of the rows."""
    rows, replicated = shardings()
    a = jax.device_put(np.ones((size, size), jnp.dtype(dtype)), rows)
    b = jax.device_put(np.ones((size, size), jnp.dtype(dtype)), replicated)
    return 2 * size**3 / repeated(jax.jit(jnp.matmul), a, b) / 1e12


def latents(
    shape: tuple[int, int, int], width: int, batch: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Latents, timesteps and context tokens, split over the devices that the batch fills."""
    rng = np.random.default_rng(0)
    arrays = (
        rng.standard_normal((batch, *shape), np.float32),
        np.linspace(999, 0, batch, dtype=np.float32),
        rng.standard_normal((batch, TOKENS.value, width), np.float32),
    )
    return tuple(jax.device_put(arrays, split(batch)))


def split(batch: int) -> Any:
    """Where a batch lies: over all devices, or on the first where it does not divide."""
    rows, _ = shardings()
    return rows if batch % jax.device_count() == 0 else jax.devices()[0]


def filled(network: nn.Module, inputs: tuple[jax.Array, ...], dtype: str) -> PyTree:
    """Parameters of a sensible size: values do not change the time, and drawing them takes long."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        fan_in = math.prod(leaf.shape[:-1])
        return np.full(leaf.shape, 1 / math.sqrt(max(fan_in, 1)), jnp.dtype(dtype))

    return jax.tree.map(fill, shapes)


def forward(network: nn.Module, params: PyTree, inputs: tuple[jax.Array, ...]) -> tuple[float, int]:
    """(seconds, FLOP) of one forward, the context projected beforehand as a sampler does."""
    latent, timestep, tokens = inputs
    where = split(len(latent))
    if len(latent) % jax.device_count() == 0:
        _, where = shardings()
    params = jax.device_put(params, where)
    context = jax.jit(partial(project_context, dtype=network.dtype))(params, tokens)

    def apply(params: PyTree, latent: jax.Array, timestep: jax.Array, context: PyTree) -> jax.Array:
        return network.apply({"params": params}, latent, timestep, context)

    arguments = params, latent, timestep, context
    flop = matmul_flop(jax.make_jaxpr(apply)(*arguments).jaxpr)
    return repeated(jax.jit(apply), *arguments), flop


def matmul_flop(jaxpr: Any) -> int:
    """FLOP of the products and convolutions in a traced program, nested ones included."""
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
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += matmul_flop(inner) if hasattr(inner, "eqns") else 0
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


def table(result: dict[str, Any]) -> str:
    """The rows as text."""
    machine = ", ".join(f"{name} {value}" for name, value in result["hardware"].items())
    lines = [
        f"{machine}, jax {result['jax']}",
        f"{'network':8}{'type':10}{'batch':>6}{'s/latent':>10}{'GFLOP':>8}{'TFLOP/s':>9}"
        f"{'product':>9}{'ratio':>7}",
    ]
    for row in result["rows"]:
        best = max(row["product_tflops"].values())
        lines.append(
            f"{row['network']:8}{row['dtype']:10}{row['batch']:6}{row['seconds_per_latent']:10.4f}"
            f"{row['gflop_per_latent']:8.1f}{row['tflops']:9.3f}{best:9.3f}{row['of_product']:7.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run({"denoiser": denoiser}, FLAGS)
