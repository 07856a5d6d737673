"""Shows a large image in the browser, beside the region of the reference that it was made from.

python -m ssl_diffusion.view OUT.tif [--reference=SLIDE_OR_IMAGE] [--region=x,y,w,h] [--port=8000]

Serves a page to browsers on this machine until Ctrl-C; it works without a network. What `generate`
wrote into the image (or, failing that, into the .json beside it) says which reference and region it
was made from, where the grid's cells lie and how large a pixel is; where it says nothing the page
does without. `/?grid=1` opens the page with the grid drawn.
"""

import json
import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import openslide
from absl import flags
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from ssl_diffusion import cli, demo
from ssl_diffusion.data.picture import SAME_RESOLUTION
from ssl_diffusion.data.slides import open_slide
from ssl_diffusion.errors import InputError
from ssl_diffusion.viewer.region import Region
from ssl_diffusion.viewer.server import Server

FLAGS = flags.FlagValues()
REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "slide or image to show beside; the recorded one by default",
    flag_values=FLAGS,
)
REGION = flags.DEFINE_string(
    "region",
    None,
    "x,y,w,h of the reference, in px of the image's resolution (in its own where a resolution is "
    "not known); the recorded one by default",
    flag_values=FLAGS,
)
PORT = flags.DEFINE_integer(
    "port",
    8000,
    "port on 127.0.0.1; 0 takes a free one",
    lower_bound=0,
    upper_bound=65535,
    flag_values=FLAGS,
)
Box = tuple[int, int, int, int]


def main(path: str) -> None:
    """Opens the image and its reference, then serves them until it is interrupted."""
    region = None
    if REGION.value:
        region = cli.parse_numbers("region", REGION.value, ",", 4, "x,y,width,height in pixels")
    server = make_server(path, REFERENCE.value, region, PORT.value)
    print(f"{server.url} shows {path}; Ctrl-C ends it", flush=True)
    with suppress(KeyboardInterrupt), server:
        server.serve_forever()


def make_server(path: str, reference: str | None, region: Box | None, port: int) -> Server:
    """A server, not yet serving, of the image at `path` beside a region of the reference.

    `reference` and `region` stand in for the recorded ones where they are given.

    Raises:
      InputError: a file that is missing or no image, a region that is not inside the reference, a
        port that cannot be used.
    """
    if Path(path).suffix == ".zarr":
        raise InputError(f"{path} is OME-Zarr; open it in napari, or write the image as .tif")
    slide = open_slide(path)
    settings = read_settings(path, slide)
    width, height = slide.dimensions
    mpp = known_mpp(settings.get("mpp"), slide)
    grid = grid_lines(settings, width, height)
    shown = {"synthetic": Region(slide, 0, 0, width, height)}
    about = {
        "title": Path(path).name,
        "settings": settings,
        "grid_title": grid and f"grid of {settings['cols']} x {settings['rows']} embeddings",
        "images": [
            {
                "tiles": "synthetic.dzi",
                "title": f"synthetic, {width} x {height} px",
                "width_um": mpp and width * mpp,
                "grid": grid,
            }
        ],
    }
    recorded = settings.get("reference")
    if not (isinstance(recorded, str) and demo.resolve(recorded).is_file()):
        recorded = None
    if not reference and not recorded and region:
        raise InputError("--region is a region of the reference; give --reference too")
    if reference or recorded:
        try:
            shown["reference"], image = _beside(reference or recorded, region, settings, mpp, grid)
            about["images"].append(image)
        except InputError as error:
            if reference or region:
                raise
            logging.warning("without the recorded reference: %s", error)
    return Server(about, {name: DeepZoomGenerator(part) for name, part in shown.items()}, port)


def read_settings(path: str, slide: openslide.AbstractSlide) -> dict[str, Any]:
    """What generate wrote of the image: in the file itself, else in the .json beside it."""
    texts = [slide.properties.get("tiff.ImageDescription", "")]
    if isinstance(slide, openslide.ImageSlide):
        with Image.open(demo.resolve(path)) as image:
            texts.append(image.info.get("Description", ""))
    with suppress(OSError, UnicodeDecodeError):
        texts.append(Path(path).with_suffix(".json").read_text(encoding="utf-8"))
    for text in texts:
        with suppress(json.JSONDecodeError):
            # NaN and Infinity, which JSON does not have, go to the page as words.
            if isinstance(settings := json.loads(text, parse_constant=str), dict):
                return settings
    return {}


def known_mpp(recorded: Any, slide: openslide.AbstractSlide) -> float | None:
    """µm per pixel: as recorded, else as the slide says it."""
    with suppress(TypeError, ValueError, OverflowError):
        mpp = float(recorded or slide.properties.get(openslide.PROPERTY_NAME_MPP_X))
        if 0 < mpp < math.inf:
            return mpp
    return None


def grid_lines(settings: dict[str, Any], width: int, height: int) -> dict[str, list[float]] | None:
    """Where the grid's cells begin and the last one ends, as fractions of width and height.

    The last cell lies flush with the end, as the last window does. None where it is not recorded.
    """
    columns, rows, patch = (settings.get(name) for name in ("cols", "rows", "patch_px"))
    stride = settings.get("grid_stride_px") or patch
    if not all(isinstance(number, int) and number > 0 for number in (columns, rows, patch, stride)):
        return None

    def lines(count: int, size: int) -> list[float]:
        last = max(0, size - patch)
        return [min(cell * stride, last) / size for cell in range(min(count, size))] + [1.0]

    return {"x": lines(columns, width), "y": lines(rows, height)}


def to_level_0(region: Box, mpp: float | None, own_mpp: float | None) -> Box:
    """A region counted in px of `mpp`, in px of the slide; the same where either is not known."""
    scale = mpp / own_mpp if mpp and own_mpp else 1.0
    if abs(scale - 1) < SAME_RESOLUTION:  # as when it was embedded
        return region
    x, y, width, height = region
    left, top, right, bottom = (round(scale * edge) for edge in (x, y, x + width, y + height))
    return left, top, right - left, bottom - top


def _beside(
    path: str,
    region: Box | None,
    settings: dict[str, Any],
    mpp: float | None,
    grid: dict[str, list[float]] | None,
) -> tuple[Region, dict[str, Any]]:
    """The region of the reference (all of it where none is known) and what the page says of it."""
    slide = open_slide(path)
    own_mpp = known_mpp(None, slide) or known_mpp(settings.get("reference_mpp"), slide)
    recorded = settings.get("region")
    if not region and isinstance(recorded, list) and len(recorded) == 4:
        region = tuple(recorded) if all(isinstance(edge, int) for edge in recorded) else None
    columns, rows = slide.dimensions
    if not region:
        return Region(slide, 0, 0, columns, rows), {
            "tiles": "reference.dzi",
            "title": f"reference {Path(path).name}, {columns} x {rows} px",
            "width_um": own_mpp and columns * own_mpp,
            "grid": None,  # where its cells are on the reference is not known
        }
    x, y, width, height = to_level_0(region, mpp, own_mpp)
    name = ",".join(map(str, region))
    if min(x, y) < 0 or min(width, height) <= 0 or x + width > columns or y + height > rows:
        resolution = f" at {own_mpp:g} µm per pixel" if own_mpp else ""
        raise InputError(
            f"region {name} (x, y, width, height; {width}x{height} px of the file at {x},{y}) is "
            f"not inside {path}, which has {columns}x{rows} px{resolution}; choose one by --region"
        )
    return Region(slide, x, y, width, height), {
        "tiles": "reference.dzi",
        "title": f"reference {Path(path).name}, {width} x {height} px at {x}, {y}",
        "width_um": own_mpp and width * own_mpp,
        "grid": grid,
    }


if __name__ == "__main__":
    cli.run(main, FLAGS, "the image: OUT.tif")
