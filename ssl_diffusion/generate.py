"""Generates a large image from the embeddings of a reference region, or from a saved grid of them.

python -m ssl_diffusion.generate --model=DIR --reference=SLIDE --region=x,y,w,h --output=image.tif
python -m ssl_diffusion.generate --model=DIR --grid=grid.npy --size=4096x4096 --output=image.ome.tif

The name of the output chooses the format: .tif (tiled pyramid, as OpenSlide reads it), .ome.tif,
.zarr (OME-Zarr) or .png; beside it goes a .json with the settings. A reference of a finer
resolution than the model's is resampled to it, and the region counts in those pixels unless --level
or --mpp says otherwise. Of the reference only embeddings are used: a grid saved with --save_grid
gives the identical image. --grid_stride below the patch's size takes an embedding at so many pixels
instead of interpolating between patches. A canvas above --max_canvas_gb lies on disk, in a folder
beside the output, and a run that was killed goes on from there when the same command is given
again.
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
from ssl_diffusion import cli
from ssl_diffusion.data.picture import Picture
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.devices import join_processes
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import remove, write_json
from ssl_diffusion.models.build import PRECISIONS
from ssl_diffusion.sampling import define_flags, sampling_of
from ssl_diffusion.stitching.decode import patch_tiling
from ssl_diffusion.stitching.large_image import LargeImage
from ssl_diffusion.stitching.output import check_output, check_writable, disk_need, write_image
from ssl_diffusion.stitching.pyramid import build_levels
from ssl_diffusion.stitching.reference import embed_region, load_grid, save_grid
from ssl_diffusion.stitching.schemes import SCHEMES, WEIGHTS
from ssl_diffusion.stitching.settings import (
    Settings,
    check_grid,
    default_settings,
    default_window_batch,
    grid_cells,
    grid_size,
)
from ssl_diffusion.stitching.sweep import PROGRESS, Sweep, check_disk
from ssl_diffusion.weights.model import Model, load_model

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string(
    "model", None, "model folder, as train exports it", required=True, flag_values=FLAGS
)
REFERENCE = flags.DEFINE_string(
    "reference", None, "slide or image whose patches are embedded", flag_values=FLAGS
)
REFERENCE_MPP = flags.DEFINE_float(
    "reference_mpp",
    None,
    "µm per pixel of a --reference that does not say it itself",
    lower_bound=1e-6,
    flag_values=FLAGS,
)
REGION = flags.DEFINE_string(
    "region",
    None,
    "x,y,w,h in px at the model's resolution; all of it by default",
    flag_values=FLAGS,
)
LEVEL = flags.DEFINE_integer(
    "level", None, "--region counts in px of this level", lower_bound=0, flag_values=FLAGS
)
MPP = flags.DEFINE_float(
    "mpp", None, "--region counts in px of so many µm", lower_bound=1e-6, flag_values=FLAGS
)
GRID = flags.DEFINE_string(
    "grid",
    None,
    "[rows, cols, tokens, dim] embeddings: .npy, .safetensors, .h5",
    flag_values=FLAGS,
)
GRID_STRIDE = flags.DEFINE_integer(
    "grid_stride",
    None,
    "px from cell to cell of the grid; the patch's size by default",
    lower_bound=1,
    flag_values=FLAGS,
)
SIZE = flags.DEFINE_string(
    "size", None, "WxH px; the region's or the grid's own by default", flag_values=FLAGS
)
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


def main() -> None:
    """Checks the input, embeds the reference (or reads the grid), stitches, writes the files."""
    check_flags()
    if MULTIHOST.value:
        join_processes()
    output = Path(OUTPUT.value)
    model = load_model(MODEL.value, PRECISIONS[FLAGS.precision])
    patch_px = model.patch_px
    stride_px = GRID_STRIDE.value or patch_px
    if REFERENCE.value:
        picture, region = open_reference(model.mpp)
        size = region[2:]
        cells = tuple(grid_cells(length, patch_px, stride_px) for length in size[::-1])
        tokens, dim = (model.spec["embedding"][name] for name in ("tokens", "dim"))
        grid = np.zeros((*cells, tokens, dim), np.float32)  # until all that is asked for is checked
    else:
        picture, region = None, None
        grid = load_grid(GRID.value)
        check_grid(grid, model)
        size = grid_size(grid.shape[:2], patch_px, stride_px)
    if SIZE.value:
        asked = cli.parse_numbers("size", SIZE.value, "x", 2, "width x height, as 512x384")
        if region and asked != tuple(size):
            raise InputError(
                f"--size={SIZE.value} of a reference region of {size[0]}x{size[1]} px; leave it "
                "out, or choose a --region of that size"
            )
        size = asked
    width, height = size
    settings = read_settings(model, stride_px)
    image = LargeImage(model, grid, height, width, settings, read_window_batch())
    in_memory = canvas_gb(image) <= MAX_CANVAS_GB.value
    # A run that was killed while it wrote goes on too; work on another image is refused by Sweep.
    begun = not in_memory and (unfinished(output) / PROGRESS).is_file()
    overwrite = OVERWRITE.value or begun
    check_output(output, width, height, overwrite=overwrite, compression=COMPRESSION.value)
    beside = output.with_suffix(".json")
    if beside.exists() and not overwrite:
        raise InputError(f"{beside} exists already; give --overwrite or another name")
    if SAVE_GRID.value:
        check_writable(Path(SAVE_GRID.value), overwrite)

    if picture:
        bar = partial(tqdm, desc="embed", unit="patch")
        embed = model.encoder.embed
        grid = embed_region(picture.read, embed, region, patch_px, stride_px, bar)
        image = dataclasses.replace(image, grid=grid)
    if SAVE_GRID.value:
        saved = Path(SAVE_GRID.value)
        # A run that goes on finds the grid that it saved; another file there is not its own.
        if not (begun and saved.exists() and np.array_equal(load_grid(saved), grid)):
            check_writable(saved, OVERWRITE.value)
            save_grid(saved, grid)
    described = describe(image, region)
    start = time.perf_counter()
    (make_in_memory if in_memory else make_on_disk)(image, output, described)
    seconds = time.perf_counter() - start
    if jax.process_index() == 0:
        write_json(beside, described | {"seconds": seconds})
        if not in_memory:
            remove(unfinished(output))
    logging.info("%dx%d px in %.1f s: %s", width, height, seconds, output)


def check_flags() -> None:
    """Raises InputError for flags that do not go together."""
    if bool(REFERENCE.value) == bool(GRID.value):
        raise InputError("give either --reference=IMAGE or --grid=FILE, and not both")
    if REGION.value and not REFERENCE.value:
        raise InputError("--region is a region of --reference; without one, leave it out")
    if LEVEL.value is not None and MPP.value is not None:
        raise InputError("--level and --mpp both say what --region counts in; give one")
    if SAVE_GRID.value and Path(SAVE_GRID.value).suffix != ".npy":
        raise InputError(f"--save_grid={SAVE_GRID.value} does not end in .npy; name the file so")
    if (LEVEL.value is not None or MPP.value is not None) and not REGION.value:
        raise InputError(
            "--level and --mpp say what --region counts in; without one, leave them out"
        )
    if REFERENCE_MPP.value is not None and not REFERENCE.value:
        raise InputError("--reference_mpp is of --reference; without one, leave it out")
    for name in ("mpp", "reference_mpp", "max_canvas_gb"):
        if not math.isfinite(FLAGS[name].value or 0.0):
            raise InputError(f"--{name}={FLAGS[name].value}; expected a finite number")


def describe(image: LargeImage, region: tuple[int, int, int, int] | None) -> dict[str, Any]:
    """What the image is made of, for its file and for the .json beside it."""
    settings = image.settings._asdict()
    if image.settings.scheme == "shifted":  # which has neither
        settings |= {"stride": None, "weights": None}
    return {
        "model": MODEL.value,
        "model_sha256": image.model.sha256,
        "reference": REFERENCE.value,
        "reference_mpp": REFERENCE_MPP.value,
        "region": region,
        "grid": GRID.value,
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


def make_in_memory(image: LargeImage, output: Path, described: dict[str, Any]) -> None:
    """Samples on the devices and decodes; the first process writes."""
    pixels = image.pixels(partial(tqdm, desc="generate", unit="evaluation"))
    if jax.process_index() == 0:
        write(output, build_levels(pixels, None), described)


def make_on_disk(image: LargeImage, output: Path, described: dict[str, Any]) -> None:
    """Samples and decodes band by band, in a folder that goes when the output is written."""
    if jax.process_count() > 1:
        raise InputError(
            f"a canvas of {canvas_gb(image):.1f} GB, above --max_canvas_gb, in "
            f"{jax.process_count()} processes; raise it, or run one process"
        )
    folder = unfinished(output)
    sweep = Sweep(image, folder, described, int(MAX_CANVAS_GB.value * 1e9))
    need = sweep.disk_bytes + disk_need(output, image.width_px, image.height_px, COMPRESSION.value)
    logging.info("%.2f GB of disk needed, in %s and %s", need / 1e9, folder, output)
    check_disk(folder, need - sweep.disk_used)
    pixels = sweep.run(patch_tiling(image.window), tqdm)
    levels = build_levels(pixels, folder, partial(tqdm, desc="pyramid", unit="band"))
    write(output, levels, described)


def unfinished(output: Path) -> Path:
    """The folder of the work on an image that does not fit the memory."""
    return output.with_name(f"{output.name}.unfinished")


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


def open_reference(mpp: float) -> tuple[Picture, tuple[int, int, int, int]]:
    """--reference at `mpp` µm per pixel, and --region in pixels of these, or all of it.

    Raises InputError unless the region lies inside.
    """
    reference = open_image(REFERENCE.value)
    picture = reference.at(mpp, REFERENCE_MPP.value)
    if not REGION.value:
        return picture, (0, 0, picture.width, picture.height)
    region = cli.parse_numbers("region", REGION.value, ",", 4, "x,y,width,height in pixels")
    scale = 1.0
    if LEVEL.value is not None:
        scale = reference.downsample(LEVEL.value) * picture.width / reference.width
    elif MPP.value is not None:
        scale = MPP.value / mpp
    region = tuple(round(number * scale) for number in region)
    picture.check_region(*region)
    return picture, region


if __name__ == "__main__":
    cli.run(main, FLAGS)
