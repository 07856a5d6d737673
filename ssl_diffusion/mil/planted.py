"""Pseudo-slides of real patches, of which some hold a planted region: bags whose answer is known.

A slide is a mosaic of tiles of 2 x 2 patches that lie side by side in a source, drawn with
replacement from one split, so that slides of two splits share no patch. Negative slides have tiles
of common tissue alone; in a positive slide a rectangle of tiles is of another kind. The kind is no
matter of the embedding: it is a class of the records, or how dense the haematoxylin is.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ssl_diffusion.augmentation.pixel_labels import CHUNK, haematoxylin_fraction
from ssl_diffusion.data.grids import open_grids
from ssl_diffusion.data.records import Records
from ssl_diffusion.data.writer import Layout, RecordsWriter
from ssl_diffusion.errors import InputError
from ssl_diffusion.mil.bags import PLANTED

HAEMATOXYLIN = "haematoxylin"
CLASSES = ("negative", "positive")
TILE = 2  # patches along its side
LARGEST = 2  # tiles along a side of the planted rectangle, drawn from 1 to this
# Quantiles of the training tiles' haematoxylin: common tissue lies below the first, the planted
# kind above the second; those between are in no slide.
COMMON, DENSE = 0.6, 0.85


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles of common tissue and of the planted kind: rows of the split's records."""

    common: Int[np.ndarray, "n tile tile"]
    planted: Int[np.ndarray, "m tile tile"]


def find_tiles(records: Records, kind: str) -> dict[str, Tiles]:
    """Of the splits train and test, by kind: a class of the records, or "haematoxylin".

    Raises:
      InputError: no such class; a split without tiles of both.
    """
    classes = list(records.metadata.get("classes") or ())
    if kind != HAEMATOXYLIN and kind not in classes:
        known = ", ".join([HAEMATOXYLIN, *classes])
        raise InputError(f"no kind {kind!r} of patches to plant; expected one of {known}")
    found = {}
    limits = None
    for split, grids in open_grids(records, TILE, ("train", "test")).items():
        tiles = np.stack([grids.patches(index) for index in range(len(grids))])
        tiles = tiles[(tiles >= 0).all(axis=(1, 2))]
        rows = grids.facts["row"][tiles]
        if kind == HAEMATOXYLIN:
            density = _density(records, split)[rows].mean(axis=(1, 2))
            limits = np.quantile(density, [COMMON, DENSE]) if limits is None else limits
            common, planted = density <= limits[0], density >= limits[1]
        else:
            of_kind = grids.facts["label"][tiles] == classes.index(kind)
            common, planted = ~of_kind.any(axis=(1, 2)), of_kind.all(axis=(1, 2))
        found[split] = Tiles(rows[common], rows[planted])
        if not (common.any() and planted.any()):
            raise InputError(
                f"{grids.name}: {common.sum()} tiles of {TILE} x {TILE} patches of common tissue, "
                f"{planted.sum()} of {kind}; expected some of both: give records of more tissue, "
                "with a stride_px that divides patch_px"
            )
    return found


def _density(records: Records, split: str) -> Float[np.ndarray, " n"]:
    """Of every patch of a split."""
    source = records.source(split, ("image",))
    chunks = source.chunks("image", CHUNK)
    bar = tqdm(chunks, desc="haematoxylin", total=-(-len(source) // CHUNK), unit="chunk")
    return np.concatenate([haematoxylin_fraction(images) for images in bar])


def mosaic(
    tiles: Tiles, label: int, side: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "rows cols"], list[int] | None]:
    """One slide of `side` x `side` tiles: its patches, and the planted rectangle in patches.

    The rectangle is [column, row, columns, rows]; None in a negative slide, whose label is 0.
    """
    chosen = tiles.common[rng.integers(len(tiles.common), size=(side, side))]
    region = None
    if label:
        height, width = (int(size) for size in rng.integers(1, min(LARGEST, side) + 1, size=2))
        top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
        drawn = tiles.planted[rng.integers(len(tiles.planted), size=(height, width))]
        chosen[top : top + height, left : left + width] = drawn
        region = [TILE * number for number in (left, top, width, height)]
    return chosen.swapaxes(1, 2).reshape(side * TILE, side * TILE), region


def write_planted(
    writer: RecordsWriter,
    records: Records,
    tiles: dict[str, Tiles],
    counts: dict[str, int],
    side: int,
    seed: int,
) -> dict[str, list[int]]:
    """Writes the slides of both splits, half of them positive; their planted regions, in pixels.

    Args:
      writer: of records with `layout`.
      records: that the patches are of.
      tiles: of each split, from `find_tiles`.
      counts: slides of each split.
      side: of a slide, in tiles.
      seed: of all draws.
    """
    rng, patch_px = np.random.default_rng(seed), records.metadata["patch_px"]
    regions = {}
    for split, count in counts.items():
        source = records.source(split, ("image", "embedding", "mpp"))
        for number in tqdm(range(count), desc=f"{split} slides", unit="slide"):
            label = number % 2
            name = f"planted_{split}_{number:04d}_{CLASSES[label]}"
            patches, region = mosaic(tiles[split], label, side, rng)
            if region:
                regions[name] = [patch_px * number for number in region]
            for (row, col), index in np.ndenumerate(patches):
                place = {"x": col * patch_px, "y": row * patch_px}
                writer.add(split, source[int(index)] | place | {"source": name, "label": label})
    return regions


def layout(records: Records) -> Layout:
    """Of the records of pseudo-slides."""
    return Layout(embedding=records.shape("embedding"), classes=CLASSES)


def metadata(records: Records, regions: dict[str, list[int]], **settings: Any) -> dict[str, Any]:
    """Of the records of pseudo-slides: that of the patches' records, and what was planted."""
    own = {name: records.metadata[name] for name in ("recipe", "patch_px", "mpp", "embedding")}
    # Test slides are of the test patches of that split: who was trained by it knows none of them.
    return own | {
        "split_sha256": records.metadata.get("split_sha256"),
        "image": {"format": "PNG"},
        "classes": list(CLASSES),
        "layout": "pseudo-slides of real patches",
        PLANTED: settings | {"regions": regions},
    }
