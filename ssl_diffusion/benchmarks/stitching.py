"""What an evaluation of a whole canvas costs: windows, seconds, memory, and what is not network."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree
from tqdm import tqdm

from ssl_diffusion.benchmarks.published import SIZES, PublishedDenoiser
from ssl_diffusion.diffusion.sampling import Sampling
from ssl_diffusion.diffusion.solvers import step
from ssl_diffusion.rates import PRODUCTS, matmul_flop, product_rate, repeated
from ssl_diffusion.stitching.consensus import WindowSum, stitched_denoiser, tile_shape, tiled
from ssl_diffusion.stitching.large_image import LargeImage
from ssl_diffusion.stitching.schemes import Overlap
from ssl_diffusion.stitching.settings import Settings, grid_cells

STEPS = 50  # of an image, for the seconds per megapixel


def measure(
    name: str,
    dtype: str,
    sizes: Sequence[int],
    strides: Sequence[int],
    window_batch: int,
    guidance: float,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """A row for each size and scheme: overlapping windows of each stride, and shifted ones.

    What would take longer than `seconds` is measured on as many rows of windows as fit, on a canvas
    of full width, and scaled by the number of windows; `measured` says how many there were.
    """
    model = PublishedDenoiser(name, dtype).filled()
    best = max(product_rate(size, dtype) for size in PRODUCTS)
    schemes = [*[("overlap", stride) for stride in strides], ("shifted", SIZES[name][1][0])]
    bar = tqdm(total=len(sizes) * len(schemes), unit="measurement")
    alone: dict[tuple[int, int], float] = {}  # seconds of the network on one tile of windows
    for size in sizes:
        for scheme, stride in schemes:
            bar.set_description(f"{size} px, {scheme} {stride}")
            image = make_image(model, size, size, scheme, stride, window_batch, guidance)
            if image.tile not in alone:
                alone[image.tile] = denoiser_seconds(image)
            whole = image.scheme.layout(0)
            windows = len(whole.origins_y) * len(whole.origins_x)
            tiles_across = math.ceil(len(whole.origins_x) / image.tile[1])
            fit = max(1, int(seconds / (tiles_across * alone[image.tile]))) * image.tile[0]
            least = 3 if scheme == "shifted" else 1  # one cell and its two ends
            rows = min(len(whole.origins_y), max(fit, least))
            if rows < len(whole.origins_y):
                height = (rows - (scheme == "shifted") - 1) * stride * model.factor + model.patch_px
                image = make_image(model, size, height, scheme, stride, window_batch, guidance)
            taken, flop, memory = evaluation(image)
            layout = image.scheme.layout(0)
            measured = len(layout.origins_y) * len(layout.origins_x)
            tiles = math.prod(
                math.ceil(len(origins) / count)
                for origins, count in zip(layout[:2], image.tile, strict=True)
            )
            scaled = taken * windows / measured
            yield {
                "scheme": scheme,
                "stride": stride,
                "size_px": size,
                "windows": windows,
                "measured": measured,
                "forwards": windows * (1 if guidance == 1 else 2),
                "tflop": flop * windows / measured / 1e12,
                "seconds": scaled,
                "seconds_per_megapixel": scaled * STEPS / (size**2 / 1e6),
                "of_product": flop / taken / 1e12 / best,
                "network_share": tiles * alone[image.tile] / taken,
                "memory_gb": memory / 1e9,
            }
            bar.update()
    bar.close()


def make_image(
    model: PublishedDenoiser,
    width_px: int,
    height_px: int,
    scheme: str,
    stride: int,
    window_batch: int,
    guidance: float,
) -> LargeImage:
    """A large image of random embeddings."""
    cells = [grid_cells(size, model.patch_px, model.patch_px) for size in (height_px, width_px)]
    width = SIZES[model.name][2]
    grid = np.random.default_rng(0).standard_normal((*cells, model.tokens, width), np.float32)
    sampling = Sampling(STEPS, guidance)
    settings = Settings(sampling, scheme, stride, "uniform", model.patch_px, seed=0)
    return LargeImage(model, grid, height_px, width_px, settings, window_batch)


def denoiser_seconds(image: LargeImage) -> float:
    """Seconds of the network alone on as many windows as a tile has, shared among the devices."""
    count, model = math.prod(image.tile), image.model
    x = jnp.zeros((count, image.window, image.window, model.latent_channels))
    tokens, width = (model.spec["embedding"][name] for name in ("tokens", "dim"))
    context = model.context(np.ones((count, tokens, width), np.float32))
    run = jax.jit(WindowSum(step=1, mesh=image.mesh).denoise)
    given = image.replicated((x, jnp.full(count, 500.0), context))
    return repeated(run, image.denoisers[0], *given)


def evaluation(image: LargeImage) -> tuple[float, int, int]:
    """(seconds, FLOP, bytes that the program takes beside its arguments) of one evaluation."""
    layout = image.scheme.layout(0)
    tiles, context = image.replicated((cut := tiled(layout, image.tile), image.tiled_context(cut)))
    denoise = stitched_denoiser(
        image.denoisers[0], image.model.schedule, tiles, layout.step, image.mesh
    )
    weights = image.plan.weights[0].astype(np.float32)
    state = image.replicated(image.noise(0, 0, image.height)[None, None])
    given = denoise, weights, state, np.float32(500), context, None
    flop = matmul_flop(jax.make_jaxpr(step)(*given).jaxpr)
    compiled = step.lower(*given).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    kept = [state]

    def run() -> Array:  # the state is donated: each call takes what the one before gave
        kept[0] = compiled(denoise, weights, kept[0], np.float32(500), context, None)
        return kept[0]

    return repeated(run), flop, memory


def compile_for(
    topology: Any, name: str, dtype: str, size: int, stride: int, window_batch: int, guidance: float
) -> dict[str, Any]:
    """Compiles an evaluation for a topology that is not at hand; per-chip memory and FLOP.

    `topology` is what `jax.experimental.topologies.get_topology_desc` gives.
    """
    mesh = Mesh(np.array(topology.devices), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    model = PublishedDenoiser(name, dtype)
    side, window = size // model.factor, model.patch_px // model.factor
    layout = Overlap(side, side, window, stride, "uniform").layout(0)
    shape = tile_shape(len(layout.origins_y), len(layout.origins_x), window_batch, mesh.size)
    tiles = tiled(layout, shape)
    windows = tiles.origins_y.size, tiles.origins_x.size

    def arguments(params: PyTree) -> tuple[Any, ...]:
        own = PublishedDenoiser(name, dtype, params=params)
        context = own.context(jnp.zeros((1, 1, SIZES[name][2])))
        context = jax.tree.map(lambda a: jnp.zeros((*windows, *a.shape[1:]), a.dtype), context)
        denoise = stitched_denoiser(
            own.denoiser(guidance), own.schedule, jax.tree.map(jnp.asarray, tiles), stride, mesh
        )
        state = jnp.zeros((1, 1, side, side, model.latent_channels))
        return denoise, jnp.zeros((1, 4)), state, jnp.float32(0), context, None

    given = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(arguments, model.shapes),
    )
    compiled = step.lower(*given).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "chips": mesh.size,
        "windows": len(layout.origins_y) * len(layout.origins_x),
        "tile": list(shape),
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "output_gb": memory.output_size_in_bytes / 1e9,
        "tflop_per_tile_and_chip": cost["flops"] / 1e12,
        "tflop": matmul_flop(step.trace(*given).jaxpr.jaxpr) / 1e12,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text; a star where windows were measured on a part of the canvas."""
    lines = [
        f"{'px':>6} {'scheme':8}{'stride':>7}{'windows':>8}{'forwards':>9}{'TFLOP':>9}"
        f"{'s/step':>10}{'s/MP':>9}{'ratio':>7}{'network':>9}{'GB':>7}"
    ]
    for row in rows:
        star = "*" if row["measured"] < row["windows"] else " "
        lines.append(
            f"{row['size_px']:6} {row['scheme']:8}{row['stride']:7}{row['windows']:8}"
            f"{row['forwards']:9}{row['tflop']:9.2f}{row['seconds']:9.2f}{star}"
            f"{row['seconds_per_megapixel']:9.1f}{row['of_product']:7.2f}"
            f"{row['network_share']:9.2f}{row['memory_gb']:7.2f}"
        )
    return "\n".join(lines)
