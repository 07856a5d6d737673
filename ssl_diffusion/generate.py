"""Generates a large image from the embeddings of a reference region, or from a saved grid of them.

python -m ssl_diffusion.generate --model=DIR --reference=SLIDE --region=x,y,w,h --output=image.png
python -m ssl_diffusion.generate --model=DIR --grid=grid.npy --output=image.png

Writes the PNG and, beside it, a .json with the settings. A reference of a finer resolution than the
model's is resampled to it, and the region counts in those pixels. Of the reference only embeddings
are used: a grid saved with --save_grid gives the identical image. Where the region is no multiple
of the patch, its last row and column of cells are read shifted inward, to lie inside the region.
"""

import logging
import re
import time
from functools import partial
from pathlib import Path

import jax
from absl import flags
from PIL import Image
from tqdm import tqdm

from ssl_diffusion import cli
from ssl_diffusion.data.slides import Picture, open_image
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, replacing, write_json
from ssl_diffusion.models.build import PRECISIONS
from ssl_diffusion.stitching.large_image import check_grid, check_settings, check_size, stitch
from ssl_diffusion.stitching.reference import embed_region, load_grid, save_grid
from ssl_diffusion.weights.model import load_model

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
GRID = flags.DEFINE_string(
    "grid", None, "[rows, cols, tokens, dim] embeddings: .npy, .safetensors", flag_values=FLAGS
)
SIZE = flags.DEFINE_string(
    "size", None, "WxH px; the region's or the grid's own by default", flag_values=FLAGS
)
STEPS = flags.DEFINE_integer(
    "steps", None, "DDIM steps; the model's own by default", lower_bound=1, flag_values=FLAGS
)
GUIDANCE = flags.DEFINE_float(
    "guidance",
    None,
    "scale w, 1 is none; the model's own by default",
    lower_bound=0.0,
    flag_values=FLAGS,
)
STRIDE = flags.DEFINE_integer(
    "stride",
    None,
    "latent px between windows; the model's own by default",
    lower_bound=1,
    flag_values=FLAGS,
)
WINDOW_BATCH = flags.DEFINE_integer(
    "window_batch", 16, "windows denoised at once", lower_bound=1, flag_values=FLAGS
)
SEED = flags.DEFINE_integer("seed", 0, "seed of the start noise", flag_values=FLAGS)
PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    [*PRECISIONS],
    "of the denoiser's parameters and arithmetic",
    flag_values=FLAGS,
)
OUTPUT = flags.DEFINE_string("output", None, "PNG to write", required=True, flag_values=FLAGS)
SAVE_GRID = flags.DEFINE_string(
    "save_grid", None, ".npy to write the embeddings to", flag_values=FLAGS
)


def main() -> None:
    """Checks the input, embeds the reference (or reads the grid), stitches, writes the files."""
    output = Path(OUTPUT.value)
    check_output("output", output, ".png")
    check_settings_file(output.with_suffix(".json"))
    if SAVE_GRID.value:
        check_output("save_grid", Path(SAVE_GRID.value), ".npy")
    if bool(REFERENCE.value) == bool(GRID.value):
        raise InputError("give either --reference=IMAGE or --grid=FILE, and not both")
    if REGION.value and not REFERENCE.value:
        raise InputError("--region is a region of --reference; without one, leave it out")
    size = parse("size", SIZE.value, "x", 2, "width x height, as 512x384") if SIZE.value else None

    model = load_model(MODEL.value, PRECISIONS[PRECISION.value])
    if REFERENCE.value:
        picture = open_image(REFERENCE.value).at(model.mpp, REFERENCE_MPP.value)
        region = read_region(picture)
        width, height = size or region[2:]
    else:
        grid, region = load_grid(GRID.value), None

    sampling = model.spec["sampling"]
    settings = {
        "steps": sampling["steps"] if STEPS.value is None else STEPS.value,
        "guidance": sampling["guidance"] if GUIDANCE.value is None else GUIDANCE.value,
        "stride": sampling["stride"] if STRIDE.value is None else STRIDE.value,
    }
    check_settings(model, **settings)
    if region:
        cells = (-(-region[3] // model.patch_px), -(-region[2] // model.patch_px))
        check_size(cells, height, width, model.patch_px)
        progress = partial(tqdm, desc="embed", unit="patch")
        grid = embed_region(picture.read, model.encoder.embed, region, model.patch_px, progress)
    else:
        check_grid(grid, model)
        rows, cols = grid.shape[:2]
        width, height = size or (cols * model.patch_px, rows * model.patch_px)
    if SAVE_GRID.value:
        save_grid(SAVE_GRID.value, grid)

    start = time.perf_counter()
    image = stitch(
        model,
        grid,
        height,
        width,
        **settings,
        window_batch=WINDOW_BATCH.value,
        key=jax.random.key(SEED.value),
        progress=partial(tqdm, desc="generate", unit="step"),
    )
    seconds = time.perf_counter() - start

    with replacing(output) as temporary:
        Image.fromarray(image).save(temporary)
    write_json(
        output.with_suffix(".json"),
        {
            "model": MODEL.value,
            "model_sha256": model.sha256,
            "reference": REFERENCE.value,
            "reference_mpp": REFERENCE_MPP.value,
            "region": region,
            "grid": GRID.value,
            "width_px": width,
            "height_px": height,
            "rows": grid.shape[0],
            "cols": grid.shape[1],
            **settings,
            "window_batch": WINDOW_BATCH.value,
            "seed": SEED.value,
            "precision": PRECISION.value,
            "seconds": seconds,
        },
    )
    logging.info("%dx%d px in %.1f s: %s", width, height, seconds, output)


def check_output(flag: str, path: Path, suffix: str) -> None:
    """Raises InputError unless a file of that kind can be written there."""
    if path.suffix != suffix:
        raise InputError(f"--{flag}={path} does not end in {suffix}; name the file so")
    if path.is_dir():
        raise InputError(f"--{flag}={path} is a folder; name a file in it")


def check_settings_file(path: Path) -> None:
    """Raises InputError rather than write over a .json that is not of an earlier image."""
    if path.exists() and "model_sha256" not in read_json(path, "settings of an earlier image"):
        raise InputError(
            f"--output would write its settings over {path}, which is no earlier image's; choose "
            "another name"
        )


def parse(flag: str, text: str, separator: str, count: int, meaning: str) -> tuple[int, ...]:
    """Whole numbers from a flag; InputError unless there are `count`."""
    if not re.fullmatch(separator.join([r"-?\d+"] * count), text):
        raise InputError(f"--{flag}={text}; expected {meaning}")
    return tuple(int(number) for number in text.split(separator))


def read_region(picture: Picture) -> tuple[int, int, int, int]:
    """The region asked for, or the whole picture; InputError unless it lies inside."""
    if not REGION.value:
        return 0, 0, picture.width, picture.height
    region = parse("region", REGION.value, ",", 4, "x,y,width,height in pixels")
    picture.check_region(*region)
    return region


if __name__ == "__main__":
    cli.run(main, FLAGS)
