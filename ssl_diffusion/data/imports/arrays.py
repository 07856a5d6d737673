"""Arrays of foreign data sets: nothing that they hold is executed or leads out of their folder.

Pickles are refused, and so are HDF5 data sets whose values lie in other files.
"""

import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.errors import InputError

DAMAGED = (  # what numpy raises for files that are not what they seem
    *(OSError, ValueError, TypeError, EOFError, MemoryError, RecursionError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
PICKLED = ("pickle", "Object arrays", "Python objects")  # in what numpy says of such a file


def inside(folder: str | Path, name: str, said_by: str | Path) -> Path:
    """The file `name` (with slashes) of a folder; InputError if the name leads out of it.

    Links are followed: what a user links into a folder belongs there.
    """
    check_path(folder, name, said_by)
    return Path(folder, name)


def check_path(folder: str | Path, name: str, said_by: str | Path) -> None:
    """Raises what `inside` raises. Lists are long: no path is made."""
    parts = name.split("/")
    if not parts[0] or ".." in parts or "\\" in name or "\0" in name:
        raise InputError(
            f"{said_by} names {name[:80]!r}, expected a path below {folder}; name files "
            "relative to that folder"
        )


def read_npy(path: str | Path, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file, left on the disk if `mapped`; InputError if it cannot be read."""
    try:
        if mapped:
            return np.lib.format.open_memmap(path, mode="r")
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected an array of numpy") from None
    except DAMAGED as error:
        raise _unreadable(path, error) from None


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name; InputError if one of them cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except DAMAGED as error:
        raise _unreadable(path, error) from None


def texts(array: np.ndarray, path: str | Path) -> np.ndarray:
    """The array, if it is a list of text (str or bytes [n]); InputError otherwise."""
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise InputError(
            f"{path} holds {array.dtype} {list(array.shape)}, expected a list of text; save one"
        )
    return array


def text(value: np.str_ | np.bytes_) -> str:
    """One element of such a list; InputError if that is no text that can be shown."""
    name = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if "\ufffd" in name or not name.isprintable():
        raise InputError(
            f"a list of file names holds {ascii(name)[:80]}, expected text; save it again"
        )
    return name


def open_h5(path: str | Path) -> h5py.File:
    """An HDF5 file to read from; InputError if it is none or cut off."""
    try:
        return h5py.File(path, "r", locking=False)  # file systems mounted to be read have no locks
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read as HDF5 ({error}); copy it again") from None


def holds(file: h5py.File, names: Iterable[str]) -> bool:
    """Whether an HDF5 file has all these entries; InputError if it is damaged."""
    try:
        return all(name in file for name in names)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{file.filename} cannot be read as HDF5 ({error})") from None


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A data set that lies in the file itself; InputError if there is none of that name."""
    try:
        found = file.get(name) if file.get(name, getlink=True).__class__ in _OWN_LINKS else None
    except (KeyError, OSError, RuntimeError) as error:
        raise InputError(f"{name} in {file.filename} cannot be read ({error})") from None
    if not isinstance(found, h5py.Dataset) or not found.shape or _elsewhere(found):
        raise InputError(
            f"{file.filename} holds {sorted(file)[:20]}, expected {name!r} as an array of its own; "
            "save it so"
        )
    return found


def _elsewhere(found: h5py.Dataset) -> bool:
    """Whether values lie in other files, of which a path in this one says where."""
    return found.is_virtual or bool(found.external)


_OWN_LINKS = (h5py.HardLink, h5py.SoftLink)


def embedding_shape(features: h5py.Dataset, batched: bool = False) -> tuple[int, int]:
    """[tokens, dim] of features [n, dim] or [n, tokens, dim]; InputError for anything else.

    With `batched` they have one more axis, of length 1, in front.
    """
    shape = features.shape[batched:]
    if features.dtype.kind != "f" or len(shape) not in (2, 3) or 0 in shape[1:]:
        raise InputError(
            f"{features.name} of {features.file.filename} is {features.dtype} "
            f"{list(features.shape)}, expected real numbers [n, dim] or [n, tokens, dim]"
        )
    return (1, shape[1]) if len(shape) == 2 else (shape[1], shape[2])


def read_rows(
    features: h5py.Dataset, rows: Int[np.ndarray, " n"], batched: bool = False
) -> Float[np.ndarray, "n tokens dim"]:
    """Some rows of features as float32, in ascending order; InputError if one cannot be used."""
    tokens, dim = embedding_shape(features, batched)
    first, last, batch = int(rows[0]), int(rows[-1]), (0,) * batched
    try:
        # A slice is much faster than a selection, and what lies between is mostly asked for.
        if last - first < 4 * len(rows):
            values = features[(*batch, slice(first, last + 1))][rows - first]
        else:
            values = features[(*batch, rows)]
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"rows {first} to {last} of {features.name} in {features.file.filename} cannot be read "
            f"({error}); copy the file again"
        ) from None
    values = values.astype(np.float32).reshape(len(rows), tokens, dim)
    return finite(values, f"{features.name} of {features.file.filename}, row {first} to {last}")


def finite(values: np.ndarray, what: str) -> np.ndarray:
    """The values; InputError if one of them is no number."""
    if not np.isfinite(values).all():
        raise InputError(f"{what}: there are values that are no finite numbers; make them again")
    return values


def _unreadable(path: str | Path, error: Exception) -> InputError:
    if any(sign in str(error) for sign in PICKLED):
        return InputError(
            f"{path} is pickled (an array of Python objects), and pickles are never executed here; "
            "where the file is trusted, save each array again as np.save(path, np.load(path, "
            "allow_pickle=True).astype(str)), or .astype(int) for indices"
        )
    return InputError(f"{path} cannot be read as arrays of numpy ({error}); copy it again")
