"""How fast a denoiser runs, against what the same machine reaches in a matrix product."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from ssl_diffusion.benchmarks.published import SIZES, PublishedDenoiser
from ssl_diffusion.devices import shardings
from ssl_diffusion.rates import PRODUCTS, matmul_flop, product_rate, repeated


def measure(
    networks: Sequence[str], dtypes: Sequence[str], batches: Sequence[int], tokens: int
) -> Iterator[dict[str, Any]]:
    """One row for each network, number format and batch: seconds, TFLOP/s, ratio to the product.

    The context is projected beforehand, as a sampler does.
    """
    bar = tqdm(total=len(dtypes) * (1 + len(networks) * len(batches)), unit="measurement")
    for dtype in dtypes:
        bar.set_description(f"product {dtype}")
        products = {str(size): product_rate(size, dtype) for size in PRODUCTS}
        bar.update()
        for name in networks:
            model = PublishedDenoiser(name, dtype, tokens).filled()
            for batch in batches:
                bar.set_description(f"{name} {dtype} batch {batch}")
                seconds, flop = forward(model, batch)
                rate = flop / seconds / 1e12
                yield {
                    "network": name,
                    "dtype": dtype,
                    "batch": batch,
                    "seconds": seconds,
                    "seconds_per_latent": seconds / batch,
                    "gflop_per_latent": flop / batch / 1e9,
                    "tflops": rate,
                    "product_tflops": products,
                    "of_product": rate / max(products.values()),
                }
                bar.update()
    bar.close()


def forward(model: PublishedDenoiser, batch: int) -> tuple[float, int]:
    """(seconds, FLOP) of the network alone, the batch split over the devices that it fills."""
    rng = np.random.default_rng(0)
    _, latent, width = SIZES[model.name]
    tokens = rng.standard_normal((batch, model.tokens, width), np.float32)
    inputs = (
        rng.standard_normal((batch, *latent), np.float32),
        np.linspace(999, 0, batch, dtype=np.float32),
        model.context(tokens),
    )
    where = split(batch)
    inputs = jax.device_put(inputs, where)
    if batch % jax.device_count() == 0:
        _, where = shardings()
    params = jax.device_put(model.params, where)

    def apply(params: PyTree, latent: jax.Array, timestep: jax.Array, context: PyTree) -> jax.Array:
        return model.network.apply({"params": params}, latent, timestep, context)

    flop = matmul_flop(jax.make_jaxpr(apply)(params, *inputs).jaxpr)
    return repeated(jax.jit(apply), params, *inputs), flop


def split(batch: int) -> Any:
    """Where a batch lies: over all devices, or on the first where it does not divide."""
    rows, _ = shardings()
    return rows if batch % jax.device_count() == 0 else jax.devices()[0]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'network':8}{'type':10}{'batch':>6}{'s/latent':>10}{'GFLOP':>8}{'TFLOP/s':>9}"
        f"{'product':>9}{'ratio':>7}"
    ]
    for row in rows:
        best = max(row["product_tflops"].values())
        lines.append(
            f"{row['network']:8}{row['dtype']:10}{row['batch']:6}{row['seconds_per_latent']:10.4f}"
            f"{row['gflop_per_latent']:8.1f}{row['tflops']:9.3f}{best:9.3f}{row['of_product']:7.2f}"
        )
    return "\n".join(lines)
