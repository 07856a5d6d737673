"""How large the patches are whose corners a file holds: what CLAM and TRIDENT say of `coords`.

In pixels of the slide's finest level: `patch_size_level0`; or `patch_size` with
`level0_magnification` and `target_magnification` (TRIDENT), or with `patch_level` and `downsample`
(CLAM), and `custom_downsample` where there is one.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int

from ssl_diffusion.data.imports import arrays
from ssl_diffusion.errors import InputError


def corners_of(coords: h5py.Dataset) -> Int[np.ndarray, "n 2"]:
    """(x, y) of every patch, of a batch or not; InputError if they cannot be read."""
    try:
        return coords[:].reshape(-1, 2).astype(np.int64)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"coords of {coords.file.filename} cannot be read ({error}); copy the file again"
        ) from None


def said_side(coords: h5py.Dataset, beside: tuple[str, ...]) -> int:
    """Side of patches in pixels of the finest level; InputError if nothing says it.

    Files `beside` are believed if they hold the same coordinates.
    """
    said = [_attributes(coords)]
    for path in beside:
        with arrays.open_h5(path) as file:
            other = arrays.dataset(file, "coords")
            if np.array_equal(corners_of(other), corners_of(coords)):
                said.append(_attributes(other))
    for attributes in said:
        try:
            side = _side(attributes)
        except (TypeError, ValueError, ZeroDivisionError):  # "None", or a text
            side = None
        if side and side > 0:
            return side
    raise InputError(
        f"{coords.file.filename} does not say how large patches are (coords have the attributes "
        f"{sorted(said[0])}); give it in pixels of the slide's finest level: "
        "config.data.patch_size_level0"
    )


def _attributes(coords: h5py.Dataset) -> dict[str, Any]:
    try:
        return dict(coords.attrs)
    except (OSError, RuntimeError, TypeError) as error:
        raise InputError(
            f"attributes of {coords.file.filename} cannot be read ({error}); copy the file again"
        ) from None


def _side(said: dict[str, Any]) -> int | None:
    """The side that attributes of `coords` say; None if they do not."""
    if "patch_size_level0" in said:
        return round(float(said["patch_size_level0"]))
    if "patch_size" not in said:
        return None
    size = float(said["patch_size"])
    if "level0_magnification" in said and "target_magnification" in said:
        return round(
            size * float(said["level0_magnification"]) / float(said["target_magnification"])
        )
    size *= float(said.get("custom_downsample", 1))
    if "downsample" in said:
        return round(size * float(np.ravel(said["downsample"])[0]))
    return round(size) if said.get("patch_level") == 0 else None


def coordinates(path: Path) -> tuple[str, ...]:
    """Files that may hold the coordinates of a slide again, with attributes."""
    beside = (
        folder / "patches" / f"{path.stem}{end}.h5"
        for folder in path.parents[:3]
        for end in ("", "_patches")
    )
    return tuple(str(file) for file in beside if file.is_file() and file != path)
