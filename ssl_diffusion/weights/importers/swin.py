"""CTransPath's Swin encoder."""

from pathlib import Path

from flax import traverse_util

from ssl_diffusion.encoders.augment import STRONG
from ssl_diffusion.encoders.build import build_encoder, check_image_size
from ssl_diffusion.weights.importers.settings import Settings, input_colour, read_config
from ssl_diffusion.weights.layouts import swin
from ssl_diffusion.weights.reader import Imported
from ssl_diffusion.weights.tensor_files import open_tensors


def import_swin(path: Path, settings: Settings) -> Imported:
    """Reads the file or folder of an encoder; InputError for what does not fit."""
    tensors = open_tensors(path)
    config = read_config(path)
    architecture, params, _ = swin.read(tensors)
    network = build_encoder(architecture)
    size = settings.image_size or network.size_step
    check_image_size(network, size, "--image_size")
    spec = {
        "kind": "encoder",
        "architecture": architecture,
        "image_size": size,
        "image_resize": "bilinear",  # of the published code's preprocessing
        **{name: input_colour(name, path, config, settings) for name in ("mean", "std")},
        "embedding": {"tokens": 1, "dim": network.dim},
        "augmentation": STRONG,
        "source": {"names": swin.LAYOUT, "config": config},
    }
    return Imported(spec, traverse_util.unflatten_dict(params, sep="/"))
