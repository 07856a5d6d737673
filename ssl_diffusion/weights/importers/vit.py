"""ViT encoders of timm and transformers."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from ssl_diffusion.encoders.augment import STRONG
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.importers.settings import Settings, read_config
from ssl_diffusion.weights.layouts import vit
from ssl_diffusion.weights.layouts.vit_names import recognise
from ssl_diffusion.weights.reader import Imported
from ssl_diffusion.weights.tensor_files import open_tensors

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def import_vit(path: Path, settings: Settings) -> Imported:
    """Reads the file or folder of an encoder; InputError for what does not fit."""
    tensors = open_tensors(path)
    config = read_config(path)
    architecture, params, _ = vit.read(tensors, config)
    size = settings.image_size or architecture["image_size"]
    if size % architecture["patch_size"]:
        raise InputError(
            f"--image_size={size}; expected a multiple of {architecture['patch_size']}"
        )
    spec = {
        "kind": "encoder",
        "architecture": architecture,
        "image_size": size,
        **{name: _input_colour(name, path, config, settings) for name in ("mean", "std")},
        "embedding": {"tokens": 1, "dim": architecture["width"]},
        "augmentation": STRONG,
        "source": {"names": recognise(tensors), "config": config},
    }
    return Imported(spec, traverse_util.unflatten_dict(params, sep="/"))


def _input_colour(
    name: str, path: Path, config: Mapping[str, Any], settings: Settings
) -> list[float]:
    """Mean or std of the encoder's input: the flag's, the config's, the processor's, ImageNet's."""
    found, where = getattr(settings, name), f"--{name}"
    if found is None:
        found, where = (config.get("pretrained_cfg") or {}).get(name), "config.json"
    if found is None:
        processor = read_config(path, "preprocessor_config.json")
        found, where = processor.get(f"image_{name}"), "preprocessor_config.json"
    if found is None:
        found = IMAGENET[name]
        logging.info("nothing says the %s of the encoder's input: ImageNet's, %s", name, found)
    numbers = isinstance(found, list | tuple) and all(isinstance(v, int | float) for v in found)
    if not numbers or len(found) != 3 or not np.isfinite(found).all():
        raise InputError(f"{where} says {name} {found!r}; expected three numbers")
    if name == "std" and min(found) <= 0:
        raise InputError(f"{where} says {name} {found!r}; expected more than 0")
    return [float(value) for value in found]
