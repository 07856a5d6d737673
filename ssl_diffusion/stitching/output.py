"""Image files that viewers zoom through: .tif for OpenSlide, .ome.tif, .zarr (OME-Zarr), and .png.

All but PNG hold every level of `pyramid.build_levels` and are written piece by piece: of an image
that does not fit the memory, no level is ever in it.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing
from ssl_diffusion.stitching import tiff
from ssl_diffusion.stitching.ome_zarr import write_ome_zarr
from ssl_diffusion.stitching.pyramid import level_sizes

COMPRESSIONS = {
    ".tif": ("jpeg", "deflate"),
    ".ome.tif": ("jpeg", "deflate"),
    ".zarr": ("zstd",),
    ".png": ("deflate",),
}
"""What each format can be compressed with, its default first; all but JPEG are exact."""
SUFFIXES = tuple(COMPRESSIONS)

# Pillow makes a PNG in memory, and refuses to open a larger one unless told otherwise.
PNG_PIXELS = 2**30 // 6


LONGEST_NAME = 200  # file systems take 255 bytes, temporary names included


def check_output(
    path: Path, width: int, height: int, *, overwrite: bool, compression: str | None
) -> None:
    """Raises InputError unless an image of this size can be written there; changes nothing.

    Args:
      path: the file, or the folder of a .zarr; its suffix is the format. Missing folders above it
        are made when it is written.
      width: pixels.
      height: pixels.
      overwrite: whether what is there may be replaced.
      compression: one of COMPRESSIONS; None: the format's default.
    """
    suffix = _suffix(path)
    _compression(suffix, compression)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError(f"{path} has a name of more than {LONGEST_NAME} bytes; give a shorter one")
    if suffix == ".png" and width * height > PNG_PIXELS:
        raise InputError(
            f"a PNG of {width}x{height} px; expected at most {PNG_PIXELS} px in all, since it is "
            "written and opened whole: name the file .tif"
        )
    if suffix == ".zarr":
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file, a .zarr is a folder; give another name")
        # What stands there goes with all that is in it.
        if path.is_dir() and any(path.iterdir()) and not (path / "zarr.json").is_file():
            raise InputError(f"{path} is a folder of something else than Zarr; give another name")
    elif path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it, as {path / ('image' + suffix)}")
    check_writable(path, overwrite)


def numbered(path: Path, number: int) -> Path:
    """The name of one of several images: a number before the suffix, as image-0.ome.tif.

    Raises InputError for a format that there is not.
    """
    suffix = _suffix(path)
    return path.with_name(f"{path.name.removesuffix(suffix)}-{number}{suffix}")


def is_exact(path: Path, compression: str | None) -> bool:
    """Whether the file holds the very pixels. Raises InputError as `check_output`."""
    return _compression(_suffix(path), compression) != "jpeg"


def check_writable(path: Path, overwrite: bool) -> None:
    """Raises InputError unless something can be written there; makes nothing."""
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; give --overwrite or another name")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise InputError(f"{path} cannot be made: {parent} is a file; give another folder")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise InputError(
            f"{path} cannot be made: nothing can be written to {parent} ({error.strerror}); give "
            "another folder"
        ) from None


def disk_need(path: Path, width: int, height: int, compression: str | None) -> int:
    """Bytes that the file takes at most, all levels counted; as JPEG, tissue takes a sixth of it.

    Raises InputError for a format or a compression that there is not.
    """
    suffix = _suffix(path)
    jpeg = _compression(suffix, compression) == "jpeg"
    sizes = [(width, height)] if suffix == ".png" else level_sizes(width, height)
    # Tiles of a TIFF are filled up with pixels, chunks of a Zarr array with zeros, which take none.
    tile = tiff.TILE if suffix.endswith(".tif") else 1
    pixels = sum(math.prod(math.ceil(side / tile) * tile for side in size) for size in sizes)
    # Noise grows by less than a thousandth when it is compressed; the rest is for the metadata.
    return math.ceil(pixels * (tiff.JPEG_BYTES if jpeg else 3) * 1.001) + 2**16


def write_image(
    path: Path,
    levels: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    *,
    mpp: float | None,
    description: Mapping[str, Any],
    compression: str | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> None:
    """Writes an image whole or not at all, in the format of its suffix.

    Args:
      path: the file, or the folder of a .zarr; replaced if it is there.
      levels: of `pyramid.build_levels`, the image first, often memory-mapped. PNG has only it.
      mpp: µm per pixel of the image; None: unknown, and the file does not say.
      description: what JSON can hold, as the seed and the settings; the file carries it.
      compression: one of COMPRESSIONS; None: the format's default.
      progress: wraps the iterable of pieces; not called for PNG.

    Raises:
      InputError: a format or a compression that there is not.
    """
    suffix = _suffix(path)
    compression = _compression(suffix, compression)
    height, width, _ = levels[0].shape
    said = {"mpp": mpp, "description": description}
    with replacing(path) as temporary:
        if suffix == ".png":
            _write_png(temporary, levels[0], **said)
        elif suffix == ".zarr":
            write_ome_zarr(temporary, path.name, levels, **said, progress=progress)
        else:
            tiff.write_tiff(
                temporary,
                path.name,
                levels,
                ome=suffix == ".ome.tif",
                large=disk_need(path, width, height, compression) > tiff.CLASSIC_TIFF,
                **said,
                compression=compression,
                progress=progress,
            )


def _suffix(path: Path) -> str:
    for suffix in sorted(SUFFIXES, key=len, reverse=True):  # .ome.tif ends in .tif too
        if path.name.endswith(suffix):
            return suffix
    raise InputError(f"{path} ends in none of {', '.join(SUFFIXES)}; name the image so")


def _compression(suffix: str, compression: str | None) -> str:
    known = COMPRESSIONS[suffix]
    if compression is not None and compression not in known:
        raise InputError(
            f"{compression} compression of a {suffix}; expected {' or '.join(known)}, or another "
            "format"
        )
    return compression or known[0]


def _write_png(
    file: Path, image: np.ndarray, *, mpp: float | None, description: Mapping[str, Any]
) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", json.dumps(description))
    density = {} if mpp is None else {"dpi": (25400 / mpp, 25400 / mpp)}
    Image.fromarray(image).save(file, pnginfo=text, **density)
