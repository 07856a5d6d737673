"""Which parts of which image are held out: whole blocks, in one file for every stage."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_diffusion import demo
from ssl_diffusion.data.patches import is_tissue
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, sha256


@dataclass(frozen=True)
class Split:
    """Held-out blocks by image file name; `block_px` and the blocks' corners in level-0 pixels."""

    block_px: int
    held_out: dict[str, list[tuple[int, int]]]
    sha256: str

    def blocks(self, path: str | Path) -> list[tuple[int, int]]:
        """Corners (x, y) of the held-out blocks of an image; InputError if the split lacks it."""
        name = demo.resolve(path).name
        if name not in self.held_out:
            raise InputError(
                f"the split knows {sorted(self.held_out)}, not {name}; add it to the split file"
            )
        return self.held_out[name]

    def touches_held_out(self, path: str | Path, x: int, y: int, size: int) -> bool:
        """Whether the square of `size` px at (x, y) shares a pixel with a held-out block."""
        return any(
            x < block_x + self.block_px
            and block_x < x + size
            and y < block_y + self.block_px
            and block_y < y + size
            for block_x, block_y in self.blocks(path)
        )


def read_split(path: str | Path) -> Split:
    """Reads a split file and checks that every image it names nearby is the one it was made for."""
    file = demo.resolve(path)
    content = read_json(file, "split file")
    for name, source in content["sources"].items():
        image = file.parent / name
        if image.is_file() and sha256(image) != source["sha256"]:
            raise InputError(
                f"{name} is not the image the split {path} was made for (SHA-256 differs)"
            )
    held_out = {
        name: [tuple(block) for block in source["held_out"]]
        for name, source in content["sources"].items()
    }
    return Split(content["block_px"], held_out, sha256(file))


def make_split(
    path: str | Path,
    *,
    seed: int,
    fraction: float = 0.2,
    block_px: int = 256,
    patch_px: int = 64,
    min_saturation: float = 0.12,
) -> dict:
    """Draws whole blocks at random until `fraction` of the image's tissue patches lies in them.

    Returns the content of a split file. Partial blocks at the right and bottom edge are never
    drawn. The shipped split is `make_split(demo.SLIDE, seed=SEED)` with the seed that is written
    into it.
    """
    image = open_image(path)
    per_block = block_px // patch_px

    def tissue_patches(x: int, y: int, columns: int, rows: int) -> int:
        pixels = image.read(x, y, columns * patch_px, rows * patch_px)
        tiles = pixels.reshape(rows, patch_px, columns, patch_px, 3).swapaxes(1, 2)
        return sum(is_tissue(tile, min_saturation) for row in tiles for tile in row)

    total = tissue_patches(0, 0, image.width // patch_px, image.height // patch_px)
    corners = [
        (x, y)
        for y in range(0, image.height - block_px + 1, block_px)
        for x in range(0, image.width - block_px + 1, block_px)
    ]
    held_out, count = [], 0
    for index in np.random.default_rng(seed).permutation(len(corners)):
        inside = tissue_patches(*corners[index], per_block, per_block)
        if inside and count < fraction * total:
            held_out.append(corners[index])
            count += inside
    name = demo.resolve(path).name
    digest = sha256(demo.resolve(path))
    source = {"sha256": digest, "held_out": sorted(held_out, key=lambda corner: corner[::-1])}
    drawn = {"seed": seed, "fraction": fraction, "tissue_patches": total, "held_out_patches": count}
    return {"block_px": block_px, "drawn": drawn, "sources": {name: source}}
