"""Which parts of which image are held out: whole blocks, in one file for every stage."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_diffusion import demo
from ssl_diffusion.data.patches import tissue_patches
from ssl_diffusion.data.picture import Picture
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, sha256


@dataclass(frozen=True)
class Blocks:
    """Held-out blocks of one image: their corners (x, y), in pixels of the records."""

    block_px: int
    corners: tuple[tuple[int, int], ...]

    def touch(self, x: int, y: int, size: int) -> bool:
        """Whether the square of `size` px at (x, y) shares a pixel with a block."""
        return any(
            block_x - size < x < block_x + self.block_px
            and block_y - size < y < block_y + self.block_px
            for block_x, block_y in self.corners
        )

    def split_of(self, x: int, y: int, size: int) -> str | None:
        """ "train" clear of all blocks, "test" on a block's own tiling, None between them."""
        if not self.touch(x, y, size):
            return "train"
        if x % size or y % size:  # blocks start on multiples of the patch
            return None
        inside = any(
            block_x <= x <= block_x + self.block_px - size
            and block_y <= y <= block_y + self.block_px - size
            for block_x, block_y in self.corners
        )
        return "test" if inside else None


@dataclass(frozen=True)
class Split:
    """Held-out blocks by image file name: corners (x, y), in pixels at `mpp` µm per pixel.

    `mpp` is None in files that do not say it.
    """

    block_px: int
    mpp: float | None
    held_out: dict[str, list[tuple[int, int]]]
    image_sha256: dict[str, str]
    sha256: str

    def blocks(self, path: str | Path) -> Blocks:
        """The held-out blocks of an image; InputError if the split lacks it."""
        name = demo.resolve(path).name
        if name not in self.held_out:
            raise InputError(
                f"the split knows {sorted(self.held_out)}, not {name}; name another split file in "
                "config.data.split: prepare draws one that does not exist yet"
            )
        return Blocks(self.block_px, tuple(self.held_out[name]))

    def check_image(self, path: str | Path) -> None:
        """Raises InputError unless the image is the one that the split was drawn for."""
        self.blocks(path)
        file = demo.resolve(path)
        if sha256(file) != self.image_sha256[file.name]:
            raise InputError(
                f"{path} is not the image its split was drawn for (SHA-256 differs); use that one, "
                "or another split file"
            )


def read_split(path: str | Path) -> Split:
    """Reads a split file; InputError if it is missing or is none."""
    file = demo.resolve(path)
    content = read_json(file, "split file")
    try:
        sources = content["sources"].items()
        return Split(
            content["block_px"],
            content.get("mpp"),
            {name: [tuple(block) for block in source["held_out"]] for name, source in sources},
            {name: source["sha256"] for name, source in sources},
            sha256(file),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no split file ({type(error).__name__}: {error}); name one that does not "
            "exist, and prepare draws it"
        ) from None


def draw_split(
    pictures: Iterable[Picture],
    *,
    seed: int,
    mpp: float,
    fraction: float = 0.2,
    block_px: int = 256,
    patch_px: int = 64,
    min_saturation: float = 0.12,
    max_nodata: float = 0.0,
) -> dict[str, Any]:
    """Draws whole blocks at random until `fraction` of each image's tissue patches lies in them.

    Returns the content of a split file. Partial blocks at the right and bottom edge are never
    drawn. The shipped split is drawn with seed 350: among the first 400 the one chosen, before
    anything was trained, for a row of three tissue-filled blocks that the demo can stitch.
    """
    rng = np.random.default_rng(seed)
    sources, total, held = {}, 0, 0
    for picture in pictures:
        counts = _tissue_patches(picture, block_px, patch_px, min_saturation, max_nodata)
        corners = [corner for corner in counts if _is_whole(corner, picture, block_px)]
        tissue, inside, held_out = sum(counts.values()), 0, []
        for index in rng.permutation(len(corners)):
            count = counts[corners[index]]
            if count and inside < fraction * tissue:
                held_out.append(corners[index])
                inside += count
        file = demo.resolve(picture.path)
        held_out.sort(key=lambda corner: corner[::-1])
        sources[file.name] = {"sha256": sha256(file), "held_out": held_out}
        total, held = total + tissue, held + inside
    drawn = {"seed": seed, "fraction": fraction, "tissue_patches": total, "held_out_patches": held}
    return {"block_px": block_px, "mpp": mpp, "drawn": drawn, "sources": sources}


def _tissue_patches(
    picture: Picture, block_px: int, patch_px: int, min_saturation: float, max_nodata: float
) -> dict[tuple[int, int], int]:
    """Tissue patches (without overlap) in each block, by the block's corner, row by row."""
    counts = {
        (x, y): 0
        for y in range(0, picture.height, block_px)
        for x in range(0, picture.width, block_px)
    }
    for patch in tissue_patches(picture, patch_px, patch_px, min_saturation, max_nodata):
        counts[patch.x // block_px * block_px, patch.y // block_px * block_px] += 1
    return counts


def _is_whole(corner: tuple[int, int], picture: Picture, block_px: int) -> bool:
    return corner[0] + block_px <= picture.width and corner[1] + block_px <= picture.height
