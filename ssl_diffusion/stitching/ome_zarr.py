"""OME-Zarr 0.5 (ngff.openmicroscopy.org/0.5) in Zarr v3: a folder with an array for every level."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import UInt8

from ssl_diffusion.stitching.mapped import read_rows

CHUNK = 1024  # px
PIECE = 8 * CHUNK  # px of a row of chunks written at once: bounds the memory, whatever the width


def write_ome_zarr(
    folder: Path,
    name: str,
    levels: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    *,
    mpp: float | None,
    description: Mapping[str, Any],
    progress: Callable[[Iterable], Iterable] | None,
) -> None:
    """Writes levels as the arrays "0", "1", ... [c, y, x], piece by piece.

    Args:
      folder: the group.
      name: of the image.
      levels: the image first.
      mpp: µm per pixel of the image; None: coordinates are its pixels.
      description: becomes the attribute of that name.
      progress: wraps the iterable of pieces.
    """
    attributes = {"ome": _ome(name, len(levels), mpp), "description": dict(description)}
    group = zarr.open_group(folder, mode="w", zarr_format=3, attributes=attributes)
    arrays = [
        group.create_array(
            str(index),
            shape=(3, *level.shape[:2]),
            chunks=(3, *(min(CHUNK, side) for side in level.shape[:2])),
            dtype=np.uint8,
            compressors=zarr.codecs.ZstdCodec(),
            dimension_names=("c", "y", "x"),
        )
        for index, level in enumerate(levels)
    ]
    pieces = [
        (index, y, x)
        for index, level in enumerate(levels)
        for y in range(0, level.shape[0], CHUNK)
        for x in range(0, level.shape[1], PIECE)
    ]
    for index, y, x in progress(pieces) if progress else pieces:
        pixels = read_rows(levels[index][:, x : x + PIECE], y, y + CHUNK)
        height, width, _ = pixels.shape
        arrays[index][:, y : y + height, x : x + width] = pixels.transpose(2, 0, 1)


def _ome(name: str, levels: int, mpp: float | None) -> dict[str, Any]:
    pixel, unit = (1.0, {}) if mpp is None else (mpp, {"unit": "micrometer"})
    space = [{"name": axis, "type": "space", **unit} for axis in "yx"]
    datasets = []
    for index in range(levels):
        side = pixel * 2**index
        corner = (side - pixel) / 2  # its first pixel's centre, seen from that of the image's
        where = [
            {"type": "scale", "scale": [1.0, side, side]},
            {"type": "translation", "translation": [0.0, corner, corner]},
        ]
        datasets.append({"path": str(index), "coordinateTransformations": where})
    colors = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": [{"name": "c", "type": "channel"}, *space],
                "datasets": datasets,
                "type": "mean",
            }
        ],
        "omero": {
            "channels": [
                {"label": label, "color": color, "active": True, "window": window}
                for label, color in colors.items()
            ]
        },
    }
