"""Generates a large image: from a reference's embeddings, from a saved grid, or without either.

python -m ssl_diffusion.generate --model=DIR --reference=SLIDE --region=x,y,w,h --output=image.tif
python -m ssl_diffusion.generate --model=DIR --grid=grid.npy --size=4096x4096 --output=image.ome.tif
python -m ssl_diffusion.generate --model=DIR --prior=DIR --label=DCIS --size=2048x2048 \\
    --output=image.tif
python -m ssl_diffusion.generate --model=DIR --prior=DIR --reference=SLIDE --region=x,y,w,h \\
    --mask=mask.png --output=image.png

The name of the output chooses the format: .tif (tiled pyramid, as OpenSlide reads it), .ome.tif,
.zarr (OME-Zarr) or .png; beside it goes a .json with the settings. A reference of a finer
resolution than the model's is resampled to it, and the region counts in those pixels unless --level
or --mpp says otherwise. Of the reference only embeddings are used: a grid saved with --save_grid
gives the identical image. --grid_stride below the patch's size takes an embedding at so many pixels
instead of interpolating between patches. A canvas above --max_canvas_gb lies on disk, in a folder
beside the output, and a run that was killed goes on from there when the same command is given
again.

--prior samples the grid, of what --label, --text, --vector and --label_map ask for, in any
combination or none; --samples=N makes OUTPUT-0 to OUTPUT-(N-1), and what of these is there already
is left as it is. Grid k is sampled from --seed and k, its image from seed + k: a grid saved with
--save_grid and that seed give the same image again (but for --mask, which needs the reference).

Editing: --mask makes a part of the reference anew, first in its grid, then on the canvas. Around
the masked patches the image goes over to the reference's own pixels within half a patch; beyond,
they are kept as they are (in a .png, a .zarr or with --compression=deflate: JPEG changes all).
--variation=S samples the whole grid from the given one with so much noise on it, 1 being all anew;
--blend_with=FILE --blend=T goes from the given grid to another, cell by cell on the arc between
both.
"""

import dataclasses
import hashlib
import logging
import math
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

import ssl_diffusion
from ssl_diffusion import cli, grid_flags
from ssl_diffusion.devices import join_processes
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import remove, write_json
from ssl_diffusion.grid_source import GridSource, open_source
from ssl_diffusion.models.build import PRECISIONS
from ssl_diffusion.sampling import define_flags, sampling_of
from ssl_diffusion.stitching.decode import patch_tiling
from ssl_diffusion.stitching.edit import edit_image
from ssl_diffusion.stitching.jobs import Job, make_jobs
from ssl_diffusion.stitching.large_image import LargeImage
from ssl_diffusion.stitching.output import disk_need, is_exact, write_image
from ssl_diffusion.stitching.pyramid import build_levels
from ssl_diffusion.stitching.schemes import SCHEMES, WEIGHTS
from ssl_diffusion.stitching.settings import Settings, default_settings, default_window_batch
from ssl_diffusion.stitching.sweep import Sweep, check_disk
from ssl_diffusion.weights.model import Model, load_model

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string(
    "model", None, "model folder, as train exports it", required=True, flag_values=FLAGS
)
grid_flags.define_flags(FLAGS)
define_flags(FLAGS)
SCHEME = flags.DEFINE_enum(
    "scheme",
    None,
    SCHEMES,
    "windows that overlap, or lie side by side and shift at every step; the model's by default",
    flag_values=FLAGS,
)
STRIDE = flags.DEFINE_integer(
    "stride",
    None,
    "latent px between overlapping windows; the model's own by default",
    lower_bound=1,
    flag_values=FLAGS,
)
WINDOW_WEIGHTS = flags.DEFINE_enum(
    "window_weights",
    None,
    [*WEIGHTS],
    "of overlapping windows; the model's own by default",
    flag_values=FLAGS,
)
WINDOW_BATCH = flags.DEFINE_string(
    "window_batch", "auto", "windows denoised at once on each device", flag_values=FLAGS
)
SEED = flags.DEFINE_integer(
    "seed", 0, "seed of all noise, below 2^32", lower_bound=0, flag_values=FLAGS
)
MAX_CANVAS_GB = flags.DEFINE_float(
    "max_canvas_gb",
    4.0,
    "GB of canvas and pixels held in memory; above, they lie on disk",
    lower_bound=0.0,
    flag_values=FLAGS,
)
OUTPUT = flags.DEFINE_string(
    "output", None, ".tif, .ome.tif, .zarr or .png to write", required=True, flag_values=FLAGS
)
MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "one of several processes that share the windows", flag_values=FLAGS
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace an older output", flag_values=FLAGS)
COMPRESSION = flags.DEFINE_enum(
    "compression", None, ["jpeg", "deflate"], "of the tiles of a TIFF", flag_values=FLAGS
)
SAVE_GRID = flags.DEFINE_string(
    "save_grid", None, ".npy to write the embeddings to", flag_values=FLAGS
)


EVALUATIONS = partial(tqdm, desc="generate", unit="evaluation")


def main() -> None:
    """Checks all that is asked for, makes the grids, stitches, writes the files."""
    check_flags()
    if MULTIHOST.value:
        join_processes()
    model = load_model(MODEL.value, PRECISIONS[FLAGS.precision])
    source = open_source(FLAGS, model, SEED.value)
    jobs = make_jobs(Path(OUTPUT.value), SAVE_GRID.value, source.samples)
    settings = read_settings(model, source.stride_px)
    # Of the last seed, and of no grid until all that is asked for is checked.
    last = settings._replace(seed=settings.seed + source.samples - 1)
    width, height = source.size
    blank = LargeImage(model, source.placeholder, height, width, last, read_window_batch())
    in_memory = canvas_gb(blank) <= MAX_CANVAS_GB.value
    if source.mask is not None and not in_memory:
        raise InputError(
            f"an edit of {width}x{height} px takes {canvas_gb(blank):.3g} GB, above "
            f"--max_canvas_gb={MAX_CANVAS_GB.value:g}: raise it, or give a smaller --region"
        )
    if source.mask is not None and not is_exact(jobs[0].output, COMPRESSION.value):
        logging.warning(
            "JPEG changes every pixel, those that are kept too: --compression=deflate, .png and "
            ".zarr do not"
        )

    def goes_on(job: Job) -> bool:
        return not in_memory and job.begun

    def image_of(job: Job, grid: np.ndarray) -> tuple[LargeImage, dict[str, Any]]:
        own = settings._replace(seed=settings.seed + job.number)
        image = dataclasses.replace(blank, grid=grid, settings=own)
        return image, describe(image, source, job)

    if source.samples > 1 and not OVERWRITE.value:
        made = [job for job in jobs if job.is_made(image_of(job, source.placeholder)[1])]
        jobs = [job for job in jobs if job not in made]
        for job in made:
            logging.info("%s is there already, with these settings", job.output)
    for job in jobs:
        job.check(width, height, COMPRESSION.value, OVERWRITE.value, goes_on(job))
    grids = source.grids(tqdm) if jobs else []
    for job in jobs:
        grid = grids[job.number]
        image, described = image_of(job, grid)
        job.keep_grid(grid, OVERWRITE.value)
        start = time.perf_counter()
        if source.mask is not None:
            pixels = edit_image(image, source.reference(), source.mask, model.encode, EVALUATIONS)
            write_pixels(job.output, pixels, described)
        elif in_memory:
            write_pixels(job.output, image.pixels(EVALUATIONS), described)
        else:
            make_on_disk(image, job, described)
        seconds = time.perf_counter() - start
        if jax.process_index() == 0:
            write_json(job.beside, described | {"seconds": seconds})
            if not in_memory:
                remove(job.unfinished)
        logging.info("%dx%d px in %.1f s: %s", width, height, seconds, job.output)


def check_flags() -> None:
    """Raises InputError for flags that do not go together."""
    grid_flags.check_flags(FLAGS)
    if SAVE_GRID.value and Path(SAVE_GRID.value).suffix != ".npy":
        raise InputError(f"--save_grid={SAVE_GRID.value} does not end in .npy; name the file so")
    if not math.isfinite(MAX_CANVAS_GB.value):
        raise InputError(f"--max_canvas_gb={MAX_CANVAS_GB.value}; expected a finite number")


def describe(image: LargeImage, source: GridSource, job: Job) -> dict[str, Any]:
    """What the image is made of, for its file and for the .json beside it."""
    settings = image.settings._asdict()
    if image.settings.scheme == "shifted":  # which has neither
        settings |= {"stride": None, "weights": None}
    kept = {}
    if source.mask is not None:
        kept["kept_pixels_exact"] = is_exact(job.output, COMPRESSION.value)
    return {
        "model": MODEL.value,
        "model_sha256": image.model.sha256,
        **source.describe(job.number),
        **kept,
        "width_px": image.width_px,
        "height_px": image.height_px,
        "mpp": image.model.spec["mpp"],
        "patch_px": image.model.patch_px,
        "grid_sha256": hashlib.sha256(np.ascontiguousarray(image.grid).tobytes()).hexdigest(),
        "rows": image.grid.shape[0],
        "cols": image.grid.shape[1],
        **dataclasses.asdict(settings.pop("sampling")),
        **settings,
        "window_batch": image.window_batch,
        "precision": FLAGS.precision,
        "compression": COMPRESSION.value,
        "version": ssl_diffusion.__version__,
    }


def write_pixels(output: Path, pixels: np.ndarray, described: dict[str, Any]) -> None:
    """Writes an image that is in memory; the first process does."""
    if jax.process_index() == 0:
        write(output, build_levels(pixels, None), described)


def make_on_disk(image: LargeImage, job: Job, described: dict[str, Any]) -> None:
    """Samples and decodes band by band, in a folder that goes when the output is written."""
    if jax.process_count() > 1:
        raise InputError(
            f"a canvas of {canvas_gb(image):.1f} GB, above --max_canvas_gb, in "
            f"{jax.process_count()} processes; raise it, or run one process"
        )
    output, folder = job.output, job.unfinished
    sweep = Sweep(image, folder, described, int(MAX_CANVAS_GB.value * 1e9))
    need = sweep.disk_bytes + disk_need(output, image.width_px, image.height_px, COMPRESSION.value)
    logging.info("%.2f GB of disk needed, in %s and %s", need / 1e9, folder, output)
    check_disk(folder, need - sweep.disk_used)
    pixels = sweep.run(patch_tiling(image.window), tqdm)
    levels = build_levels(pixels, folder, partial(tqdm, desc="pyramid", unit="band"))
    write(output, levels, described)


def write(output: Path, levels: list[Any], described: dict[str, Any]) -> None:
    """The image file."""
    write_image(
        output,
        levels,
        mpp=described["mpp"],
        description=described,
        compression=COMPRESSION.value,
        progress=partial(tqdm, desc="write", unit="band"),
    )


def canvas_gb(image: LargeImage) -> float:
    """The solver's state and the pixels, in memory."""
    return (4 * math.prod(image.state_shape) + image.height_px * image.width_px * 3) / 1e9


def read_settings(model: Model, grid_stride_px: int) -> Settings:
    """The flags, over the model's own settings."""
    flags_given = {
        "scheme": SCHEME.value,
        "stride": STRIDE.value,
        "weights": WINDOW_WEIGHTS.value,
        "seed": SEED.value,
    }
    given = {name: value for name, value in flags_given.items() if value is not None}
    chosen = sampling_of(model.spec["sampling"], FLAGS)
    return default_settings(model)._replace(sampling=chosen, grid_stride_px=grid_stride_px, **given)


def read_window_batch() -> int:
    """The flag; InputError unless it is "auto" or a whole number above 0."""
    text = WINDOW_BATCH.value
    if text == "auto":
        return default_window_batch()
    if not re.fullmatch(r"[1-9][0-9]*", text):
        raise InputError(f"--window_batch={text}; expected auto, or a whole number above 0")
    return int(text)


if __name__ == "__main__":
    cli.run(main, FLAGS)
