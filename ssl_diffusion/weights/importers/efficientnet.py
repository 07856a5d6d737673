"""EfficientNet-Lite encoders."""

from pathlib import Path

from flax import traverse_util

from ssl_diffusion.encoders.augment import STRONG
from ssl_diffusion.encoders.build import build_encoder, check_image_size
from ssl_diffusion.weights.importers.settings import (
    LITE_COLOURS,
    Settings,
    input_colour,
    read_config,
)
from ssl_diffusion.weights.layouts import efficientnet
from ssl_diffusion.weights.reader import Imported
from ssl_diffusion.weights.tensor_files import open_tensors

IMAGE_PX = 224  # of Lite0


def import_efficientnet(path: Path, settings: Settings) -> Imported:
    """Reads the file or folder of an encoder; InputError for what does not fit.

    Its colours are those of its authors' TensorFlow code, (x - 127) / 128, although the port's page
    shows ImageNet's: on photographs the recorded statistics of the first norm fit those (their
    means correlate by 0.92, not 0.50, and variances are off by a factor of 1.3, not 6.4).
    """
    tensors = open_tensors(path)
    config = read_config(path)
    architecture, params, _ = efficientnet.read(tensors)
    size = settings.image_size or config.get("image_size") or IMAGE_PX
    network = build_encoder(architecture)
    check_image_size(network, size, "--image_size")
    spec = {
        "kind": "encoder",
        "architecture": architecture,
        "image_size": size,
        "image_resize": "bicubic",  # as its authors prepared the images it was trained on
        **{
            name: input_colour(name, path, config, settings, LITE_COLOURS)
            for name in ("mean", "std")
        },
        "embedding": {"tokens": 1, "dim": network.dim},
        "augmentation": STRONG,
        "source": {"names": efficientnet.LAYOUT, "config": config},
    }
    return Imported(spec, traverse_util.unflatten_dict(params, sep="/"))
