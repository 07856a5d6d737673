"""Patches as somebody else left them, and what is read of them again."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ssl_diffusion.data.imports.layouts import find
from ssl_diffusion.data.origins import Collection

SIDE = 32


def pixels(seed: int, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side, 3]"""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def save_image(path: Path, seed: int, side: int = SIDE) -> np.ndarray:
    """Writes an image and returns what a reader will find in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, side)).save(path)
    return np.asarray(Image.open(path).convert("RGB"))


def save_npy(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def section(source: Path | str, **more) -> ConfigDict:
    """A config's `data` section."""
    return ConfigDict({"source": str(source), "patch_px": SIDE, "mpp": 0.5} | more)


def read(source: Path | str, **more) -> tuple[Collection, list[dict]]:
    """The collection and its examples, each origin opened where it might have been sent to.

    What every origin promises is checked on the way.
    """
    collection = find(section(source, **more))
    json.dumps(collection.settings)
    names = [origin.name for origin in collection.origins]
    assert len(names) == len({*names})
    examples = []
    for origin in collection.origins:
        opened = pickle.loads(pickle.dumps(origin)).open()
        json.dumps(opened.about)
        cut = [example for row in range(opened.rows) for example in opened.cut(row)]
        assert len(cut) <= opened.most and {e["split"] for e in cut} <= {origin.split}
        shapes = {e["embedding"].shape for e in cut if "embedding" in e}
        assert shapes <= {collection.embedding}
        examples += [example | {"origin": origin} for example in cut]
    return collection, examples


def image_of(example: dict) -> np.ndarray:
    """The pixels of an example."""
    if "encoded" in example:
        return np.asarray(Image.open(io.BytesIO(example["encoded"])))
    return example["image"]
