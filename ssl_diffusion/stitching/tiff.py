"""Pyramidal tiled TIFF: levels as pages, as OpenSlide wants them, or as SubIFDs of an OME-TIFF.

TIFF 6.0 (Adobe 1992) with technical note 2 (JPEG) and 1 (SubIFDs); OME-TIFF as of the 2016-06
schema.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import UInt8

from ssl_diffusion.stitching.mapped import read_rows

TILE = 256  # px
JPEG_QUALITY = 90
# Bytes of a pixel at that quality: 2.3 measured for black and white noise, the hardest to compress;
# a slide takes 0.3 to 0.5.
JPEG_BYTES = 2.5
BUFFER = 2**24  # bytes of tiles compressed at once; tifffile's own is half a gigabyte
CLASSIC_TIFF = 2**32 - 2**25  # bytes within reach of 32 bit offsets, less room for the tags


def write_tiff(
    path: Path,
    name: str,
    levels: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    *,
    ome: bool,
    large: bool,
    mpp: float | None,
    description: Mapping[str, Any],
    compression: str,
    progress: Callable[[Iterable], Iterable] | None,
) -> None:
    """Writes levels tile by tile; see `output.write_image`.

    Args:
      path: the file.
      name: of the image, for the OME-XML.
      levels: the image first.
      ome: OME-TIFF, else plain: the description is JSON.
      large: BigTIFF, for more than CLASSIC_TIFF bytes.
      mpp: µm per pixel of the image.
      description: what the file carries.
      compression: "jpeg" or "deflate".
      progress: wraps the iterable of bands.
    """
    # Chroma is kept at full resolution: in a stained tissue it says as much as brightness.
    how = {
        "jpeg": {"compressionargs": {"level": JPEG_QUALITY}, "subsampling": (1, 1)},
        "deflate": {"predictor": True},
    }[compression]
    if ome:
        first = {"metadata": _ome(name, mpp, description), "subifds": len(levels) - 1}
    else:
        first = {"metadata": None, "description": json.dumps(description)}
    bands = [(index, y) for index, level in enumerate(levels) for y in range(0, len(level), TILE)]
    steps = iter(progress(bands) if progress else bands)
    with tifffile.TiffWriter(path, bigtiff=large, ome=ome) as file:
        for index, level in enumerate(levels):
            file.write(
                _tiles(level, steps),
                shape=level.shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression=compression,
                software="ssl_diffusion",
                buffersize=BUFFER,
                **how,
                **_resolution(mpp and mpp * 2**index),
                **(first if index == 0 else {"metadata": None, "subfiletype": 1}),
            )
    next(steps, None)  # a progress bar ends with its iterable


def _tiles(level: np.ndarray, steps: Iterator) -> Iterator[np.ndarray]:
    """The tiles of a level, row by row, as many steps as it has bands."""
    for _ in range(0, len(level), TILE):
        _, y = next(steps)
        band = read_rows(level, y, y + TILE)
        # Filled up with the last pixels: black would spread into the image through JPEG's blocks.
        below, right = -band.shape[0] % TILE, -band.shape[1] % TILE
        band = np.pad(band, ((0, below), (0, right), (0, 0)), mode="edge")
        yield from np.split(band, band.shape[1] // TILE, axis=1)


def _resolution(mpp: float | None) -> dict[str, Any]:
    if mpp is None:
        return {}
    return {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}


def _ome(name: str, mpp: float | None, description: Mapping[str, Any]) -> dict[str, Any]:
    """What the OME-XML says; sizes are in µm, the schema's default unit."""
    said: dict[str, Any] = {"axes": "YXS", "Name": name}
    if mpp is not None:
        said |= {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    said["MapAnnotation"] = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in description.items()
    }
    return said
