"""One safetensors file: read as views of the mapped file, written tensor by tensor.

The file is 8 bytes (little-endian length of the header), a JSON header, then the arrays.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from ssl_diffusion.errors import InputError

# In the order in which the library writes arrays: the last first, so that all lie aligned.
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = tuple(DTYPES[name] for name in ("F16", "BF16", "F32", "F64"))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors by name: read-only views of the mapped file. Raises InputError if it is damaged
    or holds a type that numpy has not."""
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # the library has held the header against itself and the file
        file = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(file[:8].tobytes(), "little")
        header = json.loads(file[8:start].tobytes())
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise InputError(
                    f"{path} holds {name[:80]!r} as {entry['dtype']}, expected one of "
                    f"{', '.join(DTYPES)}; save it as F32"
                )
        return {
            name: np.ndarray(
                entry["shape"], DTYPES[entry["dtype"]], file, start + entry["data_offsets"][0]
            )
            for name, entry in header.items()
        }
    except InputError:
        raise
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is damaged or no safetensors file ({reason}); copy it again"
        ) from None


def write_tensors(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    dtype: str | type | np.dtype | None = None,
) -> None:
    """Writes arrays one by one, so that of views of a mapped file only one is in memory at a time.

    Args:
      path: the file, replaced if it is there; the bytes are those that the library would write.
      arrays: of any strides, by name.
      dtype: what arrays of floating-point numbers are converted to; None keeps each as it is.
    """

    def written(array: np.ndarray) -> np.dtype:
        return np.dtype(dtype) if dtype is not None and array.dtype in FLOATS else array.dtype

    kinds = {name: written(array) for name, array in arrays.items()}
    ranks = {kind: rank for rank, kind in enumerate(DTYPES.values())}
    order = sorted(arrays, key=lambda name: (-ranks[kinds[name]], name))
    header, end = {}, 0
    for name in order:
        start, end = end, end + arrays[name].size * kinds[name].itemsize
        header[name] = {
            "dtype": NAMES[kinds[name]],
            "shape": list(arrays[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.ascontiguousarray(arrays[name], kinds[name]).reshape(-1).view(np.uint8))
