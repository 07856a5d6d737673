"""Patches that are image files of their own."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_diffusion.data.origins import Example
from ssl_diffusion.errors import InputError

SUFFIXES = (".jpeg", ".jpg", ".png")
ROW = 256  # patches that are cut in one go
PER_ORIGIN = 10_000  # patches of an origin at most, so that work can be shared and taken up again
END = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # what a file that was not cut off ends with, nearly


def walk(folder: Path, endings: tuple[str, ...] = SUFFIXES) -> Iterator[str]:
    """Files below a folder, relative to it, with slashes; links to folders are followed.

    There are none below what is no folder. Raises InputError for a folder that cannot be read, and
    for names that are not UTF-8: records and descriptions are.
    """
    if not folder.is_dir():
        return
    seen = set()
    for here, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link back up would be followed for ever
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        below = Path(here).relative_to(folder)
        for file in sorted(files):
            if file.lower().endswith(endings):
                yield check_utf8((below / file).as_posix(), folder)


def check_utf8(name: str, folder: Path) -> str:
    """The name of a file in a folder; InputError if it is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"the name {os.fsencode(name)} in {ascii(str(folder))} is not UTF-8; rename the file "
            "or its folder"
        ) from None
    return name


def _unreadable(error: OSError) -> None:
    raise InputError(
        f"folder {ascii(error.filename)} cannot be read ({error.strerror}); allow it, or move it "
        "out of the data set"
    ) from None


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) in pixels of an image file; InputError if it is none."""
    return _open(path, _read(path)).size


def read_patch(path: Path, side: int) -> Example | None:
    """The patch in a PNG or JPEG file, as `check_patch` gives it.

    None if the file is smaller than `side` px: tilers leave such pieces at the edges of slides.
    """
    data = _read(path)
    if min(_open(path, data).size) < side:
        return None
    return check_patch(path, data, side)


def check_patch(place: str | Path, data: bytes, side: int) -> Example:
    """The patch in PNG or JPEG bytes: `encoded` as it is, or as `image` where it is no RGB.

    Raises InputError, which names the `place`, for one of another size, a damaged one, and for
    anything else.
    """
    image = _open(place, data)
    if image.size != (side, side):
        raise InputError(
            f"{place} has {image.width}x{image.height} px, expected {side}x{side}; set "
            "config.data.patch_px to the side of the patches"
        )
    # Pillow finds a cut only when it decodes, which takes longer than all the rest.
    if END[image.format] not in data[-4096:]:
        raise InputError(f"{place} is cut off: {len(data)} bytes; copy it again")
    return Example(encoded=data) if image.mode == "RGB" else Example(image=_pixels(place, image))


def read_pixels(path: Path, side: int) -> np.ndarray:
    """uint8 [side, side, 3] of a patch to be cut further; InputError as `read_patch` has it."""
    image = _open(path, _read(path))
    if image.size != (side, side):
        raise InputError(
            f"{path} has {image.width}x{image.height} px, the first patch {side}x{side}; prepare "
            "patches of different sizes apart"
        )
    return _pixels(path, image)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); copy the patch again"
        ) from None


def _open(place: str | Path, data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=tuple(END))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{place} is no PNG or JPEG that Pillow reads ({error})") from None


def _pixels(place: str | Path, image: Image.Image) -> np.ndarray:
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{place} cannot be decoded ({error}); copy the patch again") from None
