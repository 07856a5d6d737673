"""Which settings of the stitched sampler are worth their time: each measured on one real region."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from ssl_diffusion.data.picture import Picture
from ssl_diffusion.diffusion.sampling import Sampling
from ssl_diffusion.evaluation.agreement import paired_similarity
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.frechet import Moments, frechet_distance
from ssl_diffusion.evaluation.seams import border_lines, seam
from ssl_diffusion.sample import index_batches, sample
from ssl_diffusion.stitching.large_image import LargeImage
from ssl_diffusion.stitching.reference import embed_image, embed_region
from ssl_diffusion.stitching.settings import Settings
from ssl_diffusion.stitching.windows import window_origins
from ssl_diffusion.weights.model import Model

# (scheme, windows per stride, weights, solver, spacing, steps, cells per patch of the grid)
VARIANTS = (
    ("overlap", 4, "uniform", "ddim", "trailing", 25, 1),
    ("overlap", 2, "uniform", "ddim", "trailing", 25, 1),
    ("overlap", 2, "gaussian", "ddim", "trailing", 25, 1),
    ("overlap", 1, "uniform", "ddim", "trailing", 25, 1),
    ("overlap", 2, "gaussian", "ddim", "trailing", 25, 2),
    ("overlap", 2, "gaussian", "ddim", "trailing", 12, 1),
    ("overlap", 2, "gaussian", "dpmpp", "trailing", 12, 1),
    ("overlap", 2, "gaussian", "dpmpp", "logsnr", 12, 1),
    ("overlap", 2, "gaussian", "unipc", "logsnr", 12, 1),
    ("shifted", 1, "uniform", "ddim", "trailing", 50, 1),
    ("shifted", 1, "uniform", "ddim", "trailing", 25, 1),
    ("shifted", 1, "uniform", "ddim", "trailing", 25, 2),
    ("shifted", 1, "uniform", "ancestral", "trailing", 25, 1),
    ("shifted", 1, "uniform", "plms", "trailing", 24, 1),
    ("shifted", 1, "uniform", "heun", "trailing", 12, 1),
    ("shifted", 1, "uniform", "dpmpp", "trailing", 12, 1),
    ("shifted", 1, "uniform", "dpmpp", "logsnr", 12, 1),
    ("shifted", 1, "uniform", "unipc", "logsnr", 12, 1),
    ("shifted", 1, "uniform", "dpmpp", "trailing", 6, 1),
)


def measure(
    model: Model,
    picture: Picture,
    region: tuple[int, int, int, int],
    window_batch: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """A row for each of VARIANTS, after one of the real region and one of single patches.

    Crops lie half a patch apart, those of real and synthetic images at the same places.
    `similarity` is the mean cosine, from the mean real embedding, of a crop's embedding with the
    real one's there: at the cells of the coarse grid, that is with the embedding asked for, and
    `between` them.
    `fd_real` is the Frechet distance of all crops to the real ones, `fd_patches` to single patches
    sampled from the cells; compare within the column alone. `seam`: see evaluation.seams.
    """
    x, y, width, height = region
    patch = model.patch_px
    read, embed = picture.read, model.encoder.embed
    half = embed_region(read, embed, region, patch, patch // 2, partial(tqdm, desc="real crops"))
    real = read(x, y, width, height)
    grids = {1: embed_region(read, embed, region, patch, patch), 2: half}
    wanted = one_vector(half.reshape(-1, *half.shape[2:]), "real crops")
    centre, moments = wanted.mean(0), Moments.of(wanted)
    at_cells = np.zeros(half.shape[:2], bool)
    at_cells[::2, ::2] = True

    single = embed(single_patches(model, grids[1], window_batch, seed))
    patches = one_vector(single, "single patches")
    of_patches = Moments.of(patches)
    cells = one_vector(grids[1].reshape(-1, *half.shape[2:]), "cells")
    close = paired_similarity(patches, cells, centre)
    lines = [
        border_lines(size, (window_origins(size, patch, patch), patch)) for size in (height, width)
    ]
    yield {"setting": "real region", "similarity": 1.0, "between": 1.0, "fd_real": 0.0} | {
        "fd_patches": frechet_distance(moments, of_patches),
        "seam": seam(real, *lines),
    }
    yield {
        "setting": "single patches",
        "similarity": float(close.mean()),
        "fd_real": frechet_distance(of_patches, moments),
    }
    for variant in tqdm(VARIANTS, unit="image"):
        scheme, per_stride, weights, solver, spacing, steps, per_patch = variant
        window = patch // model.factor
        settings = Settings(
            sampling=Sampling(steps, model.spec["sampling"]["guidance"], solver, spacing=spacing),
            scheme=scheme,
            stride=window // per_stride,
            weights=weights,
            grid_stride_px=patch // per_patch,
            seed=seed,
        )
        image = LargeImage(model, grids[per_patch], height, width, settings, window_batch)
        image.denoisers[0]  # parameters are on their devices before the clock starts
        start = time.perf_counter()
        pixels = image.pixels()
        seconds = time.perf_counter() - start
        crops = embed_image(pixels, embed, patch, patch // 2)
        found = one_vector(crops.reshape(-1, *crops.shape[2:]), "crops")
        similarity = paired_similarity(found, wanted, centre).reshape(at_cells.shape)
        layout = image.scheme.layout(0)
        origins = [np.unique(starts) * model.factor for starts in layout[:2]]
        borders = lines
        if scheme == "overlap":  # shifted windows have no lasting borders
            borders = [
                border_lines(size, (starts, patch), (window_origins(size, patch, patch), patch))
                for size, starts in zip((height, width), origins, strict=True)
            ]
        yield {
            "setting": f"{scheme} 1/{per_stride} {weights}, {solver} {spacing} {steps}"
            + (", dense grid" if per_patch > 1 else ""),
            "evaluations": len(image.plan.timesteps),
            "windows": len(layout.origins_y) * len(layout.origins_x),
            "seconds": seconds,
            "similarity": float(similarity[at_cells].mean()),
            "between": float(similarity[~at_cells].mean()),
            "fd_real": frechet_distance(Moments.of(found), moments),
            "fd_patches": frechet_distance(Moments.of(found), of_patches),
            "seam": seam(pixels, *borders),
        }


def single_patches(
    model: Model, grid: Float[np.ndarray, "rows cols tokens dim"], batch: int, seed: int
) -> UInt8[np.ndarray, "n p p 3"]:
    """A patch sampled by itself from each cell of a grid, by DDIM with the model's own steps."""
    sampling = Sampling(model.spec["sampling"]["steps"], model.spec["sampling"]["guidance"])
    plan = sampling.plan(model.schedule)
    denoisers = sampling.denoisers(model.schedule, plan, model.denoiser)
    cells = grid.reshape(-1, *grid.shape[2:])
    images = [
        sample(model, plan, denoisers, cells[indices], indices, seed)
        for indices in index_batches(len(cells), batch)
    ]
    return np.concatenate(images)[: len(cells)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    columns = ("similarity", "between", "fd_real", "fd_patches", "seam")
    lines = [
        f"{'':52}{'evaluations':>12}{'windows':>8}{'seconds':>8}"
        + "".join(f"{column:>11}" for column in columns)
    ]
    for row in rows:
        cost = f"{row.get('evaluations', ''):>12}{row.get('windows', ''):>8}"
        seconds = f"{row['seconds']:8.1f}" if "seconds" in row else " " * 8
        numbers = "".join(f"{row[c]:11.3f}" if c in row else " " * 11 for c in columns)
        lines.append(f"{row['setting']:52}{cost}{seconds}{numbers}")
    return "\n".join(lines)
