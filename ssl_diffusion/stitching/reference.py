"""Where a grid comes from: the patches of a reference image, or a file. No pixel goes further."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Float, UInt8

from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing
from ssl_diffusion.stitching.windows import window_origins

# Patches held at once while a region is read: bounds the memory, whatever the region.
CHUNK = 256


def embed_region(
    read: Callable[[int, int, int, int], UInt8[np.ndarray, "h w 3"]],
    embed: Callable[[np.ndarray], np.ndarray],
    region: tuple[int, int, int, int],
    patch_px: int,
    stride_px: int,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Float[np.ndarray, "rows cols tokens dim"]:
    """Embeds a region, a patch at every `stride_px`.

    Where patches so placed do not end with the region, those of the last row and column are read
    shifted inward, flush with its end, so that nothing outside the region is looked at.

    Args:
      read: (x, y, width, height) -> pixels.
      embed: uint8 [n, patch, patch, 3] -> float32 [n, tokens, dim].
      region: x, y, width, height in pixels.
      patch_px: what the encoder sees.
      stride_px: from patch to patch; patch_px tiles the region, less makes a dense grid.
      progress: wraps the iterable of patches.

    Raises:
      InputError: a region smaller than one patch, or what `read` raises.
    """
    x, y, width, height = region
    if min(width, height) < patch_px:
        raise InputError(
            f"a reference region of {width}x{height} px; expected at least one patch, "
            f"{patch_px}x{patch_px} px"
        )
    rows = y + window_origins(height, patch_px, stride_px)
    cols = x + window_origins(width, patch_px, stride_px)
    corners = [(int(col), int(row)) for row in rows for col in cols]
    patches, embeddings = [], []
    for number, corner in enumerate(progress(corners) if progress else corners, start=1):
        patches.append(read(*corner, patch_px, patch_px))
        if len(patches) == CHUNK or number == len(corners):
            embeddings.append(embed(np.stack(patches)))
            patches.clear()
    grid = np.concatenate(embeddings).astype(np.float32)
    return grid.reshape(len(rows), len(cols), *grid.shape[1:])


def embed_image(
    image: UInt8[np.ndarray, "h w 3"],
    embed: Callable[[np.ndarray], np.ndarray],
    patch_px: int,
    stride_px: int,
) -> Float[np.ndarray, "rows cols tokens dim"]:
    """`embed_region` of a whole image in memory."""

    def read(x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
        return image[y : y + height, x : x + width]

    height, width, _ = image.shape
    return embed_region(read, embed, (0, 0, width, height), patch_px, stride_px)


def load_grid(path: str | Path) -> np.ndarray:
    """Reads a grid from .npy, or from .safetensors or HDF5 of one array (or one named "grid").

    [rows, cols, dim] is taken as one token a cell: what comes back has [rows, cols, tokens, dim].

    Raises:
      InputError: no such file, not such a file, or another number of axes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no grid at {path}; give an existing file")
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                grid = np.lib.format.read_array(file, allow_pickle=False)
        elif path.suffix == ".safetensors":
            grid = _only(path, safetensors.numpy.load_file(path))
        elif path.suffix in (".h5", ".hdf5"):
            with h5py.File(path) as file:
                arrays = {n: item for n, item in file.items() if isinstance(item, h5py.Dataset)}
                grid = _only(path, arrays)[()]
        else:
            raise InputError(
                f"grid {path} is no .npy, .safetensors or .h5; save it as one of these"
            )
    except InputError:
        raise
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"grid {path} cannot be read ({error}); save it again") from None
    if not isinstance(grid, np.ndarray) or grid.ndim not in (3, 4):
        raise InputError(
            f"grid {path} has shape {list(np.shape(grid))}; expected [rows, cols, dim] or "
            "[rows, cols, tokens, dim]"
        )
    grid = grid.astype(np.float32) if grid.dtype.name == "bfloat16" else grid
    return grid if grid.ndim == 4 else grid[:, :, None]


def _only(path: Path, arrays: Mapping[str, Any]) -> Any:
    """The array called "grid", or the only one."""
    if len(arrays) != 1 and "grid" not in arrays:
        raise InputError(f"grid {path} holds {sorted(arrays)}; expected one, 'grid'")
    return arrays["grid"] if "grid" in arrays else next(iter(arrays.values()))


def save_grid(path: str | Path, grid: Float[np.ndarray, "rows cols tokens dim"]) -> None:
    """Writes a grid as .npy, atomically; `load_grid` gives it back bit for bit."""
    with replacing(path) as temporary:
        np.save(temporary, grid)
