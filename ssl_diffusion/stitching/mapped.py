"""Arrays in files, mapped into memory, of which no page stays in it for longer than it is used.

Pages count as the process's own memory for as long as it maps them, so that a sweep over a large
file would look like holding all of it.
"""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ssl_diffusion.errors import InputError


def mapped(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The array in a .npy file, made of zeros if it is not there, with all its space on the disk.

    Were it taken bit by bit, a disk that fills up meanwhile would end the process with a bus error.

    Raises InputError if there is a file that holds another array; OSError for a full disk.
    """
    if not path.exists():
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array
    try:
        array = np.lib.format.open_memmap(path, "r+")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete its folder") from None
    if array.shape != shape or array.dtype != dtype:
        raise InputError(f"{path} is not the array that was begun there; delete its folder")
    return array


def read_rows(array: Shaped[np.ndarray, "h *_"], start: int, stop: int) -> np.ndarray:
    """A copy of rows [start, stop) of an array, as far as it has them, that keeps no page of it."""
    rows = np.array(array[start:stop])
    release(array)
    return rows


def write_rows(array: Shaped[np.ndarray, "h *_"], start: int, rows: np.ndarray) -> None:
    """Writes rows from `start` on, waits until they are on the disk, and keeps no page of them."""
    array[start : start + len(rows)] = rows
    array.flush()
    release(array)


def release(array: np.ndarray) -> None:
    """Lets go of the pages of a mapped array; they are read again when touched.

    What was written to a shared mapping is kept.
    """
    while isinstance(array.base, np.ndarray):
        array = array.base
    # A private mapping (mode "c") has its changes nowhere else.
    if isinstance(array.base, mmap.mmap) and getattr(array, "mode", "c") != "c":
        array.base.madvise(mmap.MADV_DONTNEED)
