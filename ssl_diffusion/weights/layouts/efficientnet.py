"""EfficientNet-Lite in the layout of its PyTorch port: what it is, its tensors there and back."""

import re
from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any

import numpy as np
from flax import traverse_util

from ssl_diffusion.encoders.efficientnet import STAGES
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.layouts.wrapped import bare, find_prefix, read_all
from ssl_diffusion.weights.naming import Naming, to_published
from ssl_diffusion.weights.reader import encoder_shapes

LAYOUT = "efficientnet-lite-pytorch"
NAMING = Naming(
    rules=(
        (r"^stem/conv/", "_conv_stem/"),
        (r"^stem/bn/", "_bn0/"),
        (r"^head/conv/", "_conv_head/"),
        (r"^head/bn/", "_bn1/"),
        (r"^blocks_(\d+)/", r"_blocks/\1/"),
        (r"/(expand|depthwise|project)/conv/", r"/_\1_conv/"),
        (r"/expand/bn/", "/_bn0/"),
        (r"/depthwise/bn/", "/_bn1/"),
        (r"/project/bn/", "/_bn2/"),
        (r"/(mean|var)$", r"/running_\1"),
    )
)
_ANCHOR = r"_blocks\.\d+\._depthwise_conv\.weight"
# Counters of training, and the classifier.
_BUFFERS = r".*\.num_batches_tracked|_fc\.(weight|bias)"


def recognise(names: Collection[str]) -> bool:
    """Whether a checkpoint with these tensor names, wrapped or not, is an EfficientNet's."""
    return find_prefix(names, _ANCHOR) is not None


def architecture(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The fields of our EfficientNetLite, with its name, for tensors without wrapper prefixes.

    Blocks of one width after each other are a stage. Raises InputError for tensors that say no
    such network.
    """
    if any("._se_reduce." in name for name in tensors):
        raise InputError(
            "an EfficientNet with squeeze-and-excitation; only the Lite variants are read, which "
            "have none: give efficientnet-lite0 or another of those"
        )
    numbers = (re.match(r"_blocks\.(\d{1,3})\.", name) for name in tensors)
    count = 1 + max((int(match[1]) for match in numbers if match), default=-1)

    def width(*names: str) -> int:
        """The first axis of the first of several tensors that is there; 0 if none is."""
        shapes = (tensors[name].shape for name in names if name in tensors)
        return next((shape[0] for shape in shapes if shape), 0)

    widths = [
        width(f"_blocks.{i}._project_conv.weight", f"_blocks.{i}._bn2.weight") for i in range(count)
    ]
    stages = [(out, len(list(blocks))) for out, blocks in groupby(widths)]
    stem, head = (
        width("_conv_stem.weight", "_bn0.weight"),
        width("_conv_head.weight", "_bn1.weight"),
    )
    if len(stages) != len(STAGES) or not all((stem, head, *widths)):
        raise InputError(
            f"no whole EfficientNet-Lite: blocks of widths {[out for out, _ in stages]}, stem "
            f"{stem or 'missing'}, head {head or 'missing'}; expected {len(STAGES)} stages between "
            "a stem and a head, each of another width"
        )
    return {
        "name": "efficientnet_lite",
        "depths": [depth for _, depth in stages],
        "widths": [out for out, _ in stages],
        "stem": stem,
        "head": head,
    }


def read(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """Returns (fields of our EfficientNetLite, {our path: array, a view}, names dropped).

    Raises one InputError that names every missing, unexpected, mis-shaped and non-floating tensor.
    """
    prefix = find_prefix(tensors.keys(), _ANCHOR)
    if prefix is None:
        raise InputError("no EfficientNet: no depthwise convolution of a block was found")
    fields = architecture(bare(tensors, prefix))
    params, dropped = read_all(
        tensors, prefix, NAMING, encoder_shapes(fields), "EfficientNet-Lite", _BUFFERS
    )
    return fields, params, dropped


def write(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{published name: array} of our parameters (nested, or flat by path).

    Neither the classifier nor the counters of training are among them: load it with `strict=False`.
    """
    return to_published(NAMING, traverse_util.unflatten_dict(params, sep="/"))


def efficientnet_config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json beside an exported one: what a reader needs besides, and the colours."""
    return {
        "model_args": {k: v for k, v in spec["architecture"].items() if k != "name"},
        "num_classes": 0,
        "image_size": spec["image_size"],
        "pretrained_cfg": {"mean": spec["mean"], "std": spec["std"]},
    }
