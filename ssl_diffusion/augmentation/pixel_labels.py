"""Labels of real patches: the records' classes, their sources, or what their pixels show.

Pixels are measured on the real patch, never on an embedding: a label that came of the embedding
that a generator is conditioned on would find itself again in whatever the generator makes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from ssl_diffusion.data.records import Records
from ssl_diffusion.errors import InputError

KINDS = ("class", "haematoxylin", "tissue", "source")
# Optical density of red, green and blue, as Ruifrok & Johnston (2001) measured them. The third
# direction is what is orthogonal to both, for whatever they do not explain.
HAEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)
STAINED = 0.15  # mean optical density above which a pixel is no glass (Macenko et al. 2009)
THROUGHOUT = 0.75  # of a patch's pixels: with fewer stained it is "background"
DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255)  # optical, of each value of a pixel
CHUNK = 256


@dataclass(frozen=True)
class Labels:
    """Of the patches of one split: `index` of each into `names`, -1 where it has none."""

    names: tuple[str, ...]
    index: Int[np.ndarray, " n"]

    def counts(self) -> dict[str, int]:
        """How many patches each class has."""
        return {name: int((self.index == i).sum()) for i, name in enumerate(self.names)}


def haematoxylin_fraction(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, " n"]:
    """Haematoxylin's fraction of the colour: its mean optical density over each patch, 0 on glass.

    Colour deconvolution (Ruifrok & Johnston 2001): a pixel's optical density is a sum of the
    stains' directions, each of length 1, and of a third that is orthogonal to both. It is linear,
    so the mean of a patch is taken first: noise of glass cancels out, and what is left below 0 is
    0. Dense nuclei have about 1. Of images that are no H&E it says nothing.
    """
    stains = np.array([HAEMATOXYLIN, EOSIN])
    basis = np.vstack([stains, np.cross(*stains)])
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    density = optical_density(images).mean(axis=(1, 2))
    return np.maximum(density @ np.linalg.inv(basis)[:, 0], 0)


def tissue_share(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, " n"]:
    """Part of a patch's pixels that are stained, 0 to 1."""
    return (optical_density(images).mean(axis=-1) > STAINED).mean(axis=(1, 2))


def optical_density(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h w 3"]:
    """-log10(I / 255): 0 for white; black counts as 1 of 255, which is 2.4."""
    return DENSITY[images]


# What is measured of a patch, for labels that are properties of its pixels.
MEASURES = {"haematoxylin": haematoxylin_fraction, "tissue": tissue_share}


def measured_labels(
    images: UInt8[np.ndarray, "n h w 3"], settings: Mapping[str, Any]
) -> Int[np.ndarray, " n"]:
    """Labels of pixels, 0 or 1, of any images; `settings` are what `read_labels` gave."""
    return (MEASURES[settings["kind"]](images) > settings["threshold"]).astype(np.int64)


def read_labels(
    records: Records, kind: str, splits: Sequence[str] = ("train", "test")
) -> tuple[dict[str, Labels], dict[str, Any]]:
    """Labels of the patches of each split, the first of which is the training one; and settings.

    "class" are the records' own; "source" is which file a patch was cut from; "haematoxylin" is
    "high" above the median of the training patches, else "low"; "tissue" tells patches
    that are stained on three quarters of their area from "background", those where glass shows.

    Raises InputError for "class" where the records have none, and for fewer than two sources.
    """
    settings: dict[str, Any] = {"kind": kind}
    if kind == "class":
        names = tuple(records.metadata.get("classes") or ())
        if "label" not in records.features:
            raise InputError(
                f"records in {records.folder} have no labels; prepare them with a --manifest "
                f"(columns file, label), or take --labels={'|'.join(KINDS[1:])}"
            )
        return {split: Labels(names, _field(records, split, "label")) for split in splits}, settings
    if kind == "source":
        found = {split: sources(records, split) for split in splits}
        names = tuple(sorted(set(found[splits[0]])))
        if len(names) < 2:
            raise InputError(
                f"records of {len(names)} source: {', '.join(names)}; --labels=source tells two or "
                "more apart"
            )
        place = {name: index for index, name in enumerate(names)}
        return {
            split: Labels(names, np.array([place.get(name, -1) for name in found[split]]))
            for split in splits
        }, settings
    values = {split: _measured(records, split, kind) for split in splits}
    if kind == "haematoxylin":
        names, threshold = ("low", "high"), float(np.median(values[splits[0]]))
    else:
        names, threshold = ("background", "tissue"), THROUGHOUT
    settings |= {"threshold": threshold, "stained_above_od": STAINED if kind == "tissue" else None}
    labels = {
        split: Labels(names, (value > threshold).astype(np.int64))
        for split, value in values.items()
    }
    return labels, settings


def sources(records: Records, split: str) -> list[str]:
    """Which file each patch was cut from."""
    source = records.source(split, ("source",))
    return [source[index]["source"] for index in range(len(source))]


def _field(records: Records, split: str, name: str) -> Int[np.ndarray, " n"]:
    chunks = records.source(split, (name,)).chunks(name)
    return np.concatenate([chunk.astype(np.int64) for chunk in chunks])


def _measured(records: Records, split: str, kind: str) -> Float[np.ndarray, " n"]:
    source = records.source(split, ("image",))
    values = []
    with tqdm(total=len(source), desc=f"{kind} of {split}", unit="patch") as bar:
        for images in source.chunks("image", CHUNK):
            values.append(MEASURES[kind](images))
            bar.update(len(images))
    return np.concatenate(values)
