"""ViT encoders of timm and transformers, and the image tower of CLIP."""

from pathlib import Path

from flax import traverse_util

from ssl_diffusion.encoders.augment import STRONG
from ssl_diffusion.encoders.build import build_encoder, check_image_size
from ssl_diffusion.weights.importers.settings import (
    CLIP_COLOURS,
    IMAGENET,
    Settings,
    input_colour,
    read_config,
)
from ssl_diffusion.weights.layouts import vit
from ssl_diffusion.weights.layouts.vit_names import CLIP, recognise
from ssl_diffusion.weights.reader import Imported
from ssl_diffusion.weights.tensor_files import open_tensors


def import_vit(path: Path, settings: Settings) -> Imported:
    """Reads the file or folder of an encoder; InputError for what does not fit."""
    tensors = open_tensors(path)
    config = read_config(path)
    architecture, params, _ = vit.read(tensors, config)
    size = settings.image_size or architecture["image_size"]
    network, names = build_encoder(architecture), recognise(tensors)
    check_image_size(network, size, "--image_size")
    usual = CLIP_COLOURS if names == CLIP else IMAGENET
    spec = {
        "kind": "encoder",
        "architecture": architecture,
        "image_size": size,
        **{name: input_colour(name, path, config, settings, usual) for name in ("mean", "std")},
        "embedding": {"tokens": 1, "dim": network.dim},
        "augmentation": STRONG,
        "source": {"names": names, "config": config},
    }
    return Imported(spec, traverse_util.unflatten_dict(params, sep="/"))
