"""The numbers of stitched images, each against the real region whose embeddings it was made from.

Over the cells of the grid: similarity and retrieval. Over the pixels: seams and sharpness. Over
random crops of all images, and over whole images, the distances of patches.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from ssl_diffusion.evaluation.agreement import agreement, estimated, joined
from ssl_diffusion.evaluation.crops import CROP_SEED, crops
from ssl_diffusion.evaluation.image_sets import ImageSet, array_images
from ssl_diffusion.evaluation.patch_numbers import compare_sets
from ssl_diffusion.evaluation.pixels import sharpness
from ssl_diffusion.evaluation.seams import border_lines, seam
from ssl_diffusion.evaluation.spaces import Space
from ssl_diffusion.stitching.windows import window_origins

JPEG_BLOCK_PX = 8
OTHER_SEED = 1_000_003  # added to the seed of crops for other positions of the same real regions
FEWEST = 5  # images whose bootstrap tells an interval; of two it is their range
VIEWS = ("stitched", "real", "reconstruction")


@dataclasses.dataclass(frozen=True)
class LargeImage:
    """One stitched image and what it has to be compared with, all of one size.

    reconstruction  the real region through the autoencoder: the ceiling
    lines_y, lines_x  rows and columns (px) of window and cell borders
    mpp             µm per pixel, None if unknown
    origin          which region of which image, in words
    held_out        whether training saw none of it; None if unknown
    """

    real: UInt8[np.ndarray, "h w 3"]
    reconstruction: UInt8[np.ndarray, "h w 3"]
    stitched: UInt8[np.ndarray, "h w 3"]
    cell_px: int
    lines_y: Int[np.ndarray, " ny"]
    lines_x: Int[np.ndarray, " nx"]
    mpp: float | None
    origin: str
    held_out: bool | None


def lines_of(size: int, patch_px: int, factor: int, settings: Mapping[str, Any]) -> np.ndarray:
    """Where an image of ssl_diffusion.generate could have seams along an axis of `size` px."""
    spacing = settings.get("grid_stride_px", patch_px)
    squares = [(window_origins(size, patch_px, spacing), patch_px)]
    if settings.get("scheme") != "shifted":  # whose borders lie elsewhere at every step
        canvas = -(-size // factor)
        windows = window_origins(canvas, patch_px // factor, settings["stride"]) * factor
        squares.append((windows, patch_px))
    return border_lines(size, *squares)


def cells_numbers(
    images: Sequence[LargeImage],
    embed: Callable[[UInt8[np.ndarray, "n p p 3"]], Float[np.ndarray, "n d"]],
    centre: Float[np.ndarray, " d"],
) -> dict[str, Any]:
    """Similarity and retrieval over the cells of all images, {"stitched": ..., ...}.

    Each cell looks for the real cell at its place among those of its own image; "shuffled" is every
    other cell in turn.
    """
    found: dict[str, list] = {"stitched": [], "reconstruction": []}
    for image in images:
        real = embed(cells_of(image.real, image.cell_px))
        for name, parts in found.items():
            cells = embed(cells_of(getattr(image, name), image.cell_px))
            parts.append(agreement(cells, real, np.arange(len(real)), centre))
    whole = {name: joined(parts) for name, parts in found.items()}
    return {
        "chance": 1 / whole["stitched"].gallery,
        "count": len(whole["stitched"].similarity),
        "sets": {name: one.numbers() for name, one in whole.items()}
        | {"shuffled": whole["stitched"].shuffled_numbers()},
    }


def cells_of(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "n p p 3"]:
    """The cells of the grid, row by row; the last of each axis is flush with the image's end."""
    height, width, _ = image.shape
    rows, cols = (window_origins(length, size, size) for length in (height, width))
    return np.stack([image[y : y + size, x : x + size] for y in rows for x in cols])


def pixel_numbers(images: Sequence[LargeImage]) -> dict[str, Any]:
    """Seams and sharpness: means over the images, with an interval from FEWEST images on.

    The seam figures of all three views use the same lines; `seam_in_phase` compares with multiples
    of a JPEG block only. A figure that does not exist for one of the images is left out.
    """
    sets: dict[str, dict[str, Any]] = {}
    for name in VIEWS:
        measured = [
            {
                "seam": seam(getattr(one, name), one.lines_y, one.lines_x),
                "seam_in_phase": seam(getattr(one, name), one.lines_y, one.lines_x, JPEG_BLOCK_PX),
                "sharpness": sharpness(getattr(one, name), one.real),
            }
            for one in images
        ]
        sets[name] = {
            key: _mean(np.array([one[key] for one in measured]))
            for key in measured[0]
            if all(one[key] is not None for one in measured)
        }
    return sets


def _mean(values: Float[np.ndarray, " n"]) -> dict[str, float | None]:
    few = {"value": float(values.mean()), "low": None, "high": None}
    return estimated(values) if len(values) >= FEWEST else few


def crop_numbers(
    images: Sequence[LargeImage], spaces: Sequence[Space], features: Callable, size: int, count: int
) -> dict[str, Any]:
    """Crop-FD and the other distances: random crops against those of the real regions.

    `features(space, images)` embeds an ImageSet. Stitched images, reconstructions and the floor
    ("real") are cut at the same positions, the reference at others: crops of the same places would
    be nearer to the reference than the floor is. Returns a section of `compare_sets` for each
    space.
    """

    def cut(view: str, name: str, shift: int = 0) -> ImageSet:
        parts = [
            crops(getattr(image, view), size, count, CROP_SEED + index + shift)
            for index, image in enumerate(images)
        ]
        return array_images(np.concatenate(parts), f"crops, {name}")

    reference = cut("real", "reference", OTHER_SEED)
    sets = {view: cut(view, view) for view in VIEWS}
    return {
        space.name: compare_sets(
            space,
            {name: features(space, one) for name, one in sets.items()},
            features(space, reference),
        )
        for space in spaces
    }


def whole_numbers(
    images: Sequence[LargeImage], spaces: Sequence[Space], features: Callable
) -> dict[str, Any]:
    """Distances of whole images, each resized by the space to its network's input."""
    sets = {
        name: array_images(np.stack([getattr(image, name) for image in images]), f"whole, {name}")
        for name in VIEWS
    }
    return {
        space.name: compare_sets(
            space,
            {name: features(space, sets[name]) for name in ("stitched", "reconstruction")},
            features(space, sets["real"]),
        )
        for space in spaces
    }
