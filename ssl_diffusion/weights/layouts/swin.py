"""CTransPath's Swin encoder in the layout of timm 0.5.4: what it is, its tensors there and back."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from ssl_diffusion.encoders.build import build_encoder
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.layouts.wrapped import bare, find_prefix, read_all
from ssl_diffusion.weights.naming import LINEAR, Naming, to_published
from ssl_diffusion.weights.reader import encoder_shapes

LAYOUT = "timm-0.5.4-swin"
NAMING = Naming(
    rules=(
        (r"^blocks_(\d+)_(\d+)/", r"layers/\1/blocks/\2/"),
        (r"^downsample_(\d+)/", r"layers/\1/downsample/"),
        (r"^stem_conv_0/", "patch_embed/proj/0/"),
        (r"^stem_norm_0/", "patch_embed/proj/1/"),
        (r"^stem_conv_1/", "patch_embed/proj/3/"),
        (r"^stem_norm_1/", "patch_embed/proj/4/"),
        (r"^patch_embed/(kernel|bias)$", r"patch_embed/proj/6/\1"),
        (r"^patch_norm/", "patch_embed/norm/"),
        (r"/(mean|var)$", r"/running_\1"),
        (r"/attn/bias_table$", "/attn/relative_position_bias_table"),
        (r"/attn/to_out/", "/attn/proj/"),
        (r"/attn/to_(.)/kernel$", r"/attn/to_\1/weight"),
        (r"/attn/to_q/(.*)$", r"/attn/qkv/\1[0/3]"),
        (r"/attn/to_k/(.*)$", r"/attn/qkv/\1[1/3]"),
        (r"/attn/to_v/(.*)$", r"/attn/qkv/\1[2/3]"),
        (r"/mlp/linear_(\d)/", r"/mlp/fc\1/"),
    ),
    transforms=((r"/(to_[qkv]|to_out|linear_\d|reduction)/kernel$", LINEAR),),
)
_ANCHOR = r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table"
# Computed from the architecture, or counters of training.
_BUFFERS = r".*\.(relative_position_index|attn_mask|num_batches_tracked)"


def recognise(names: Collection[str]) -> bool:
    """Whether a checkpoint with these tensor names, wrapped or not, is a Swin's."""
    return find_prefix(names, _ANCHOR) is not None


def architecture(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The fields of our Swin, with its name, for published tensors without wrapper prefixes.

    Numbers are taken from the first of several tensors that is there, so that what is missing or
    mis-shaped is reported later as what it is. Raises InputError for tensors that say none.
    """
    names = "\n".join(tensors)
    blocks: dict[int, set[int]] = {}
    for stage, block in re.findall(r"^layers\.(\d)\.blocks\.(\d{1,3})\.", names, re.MULTILINE):
        blocks.setdefault(int(stage), set()).add(int(block))
    stages = range(1 + max(blocks, default=-1))

    def shape(stage: int, name: str, ndim: int) -> tuple[int, ...] | None:
        names = (f"layers.{stage}.blocks.{i}.{name}" for i in sorted(blocks.get(stage, ())))
        found = (tensors[n].shape for n in names if n in tensors)
        return next((s for s in found if len(s) == ndim and 0 not in s), None)

    tables = [shape(stage, "attn.relative_position_bias_table", 2) for stage in stages]
    width = shape(0, "norm1.weight", 1) or shape(0, "norm2.weight", 1)
    hidden = shape(0, "mlp.fc1.bias", 1)
    if not stages or None in tables or width is None or hidden is None:
        raise InputError(
            "not a whole Swin encoder: a stage without a bias table of relative positions, or a "
            "first stage without the norms or the MLP of its blocks; without any of them the "
            "architecture is unknown"
        )
    return {
        "name": "swin",
        "width": width[0],
        "depths": [1 + max(blocks[stage]) for stage in stages],
        "heads": [table[1] for table in tables],
        "window": (math.isqrt(tables[0][0]) + 1) // 2,
        "mlp_ratio": hidden[0] / width[0],
    }


def read(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """Returns (fields of our Swin, {our path: array, a view}, names of the tensors dropped).

    Raises one InputError that names every missing, unexpected, mis-shaped and non-floating tensor.
    """
    prefix = find_prefix(tensors.keys(), _ANCHOR)
    if prefix is None:
        raise InputError("no Swin in timm's layout: no bias table of relative positions was found")
    fields = architecture(bare(tensors, prefix))
    params, dropped = read_all(
        tensors, prefix, NAMING, encoder_shapes(fields), "CTransPath", _BUFFERS
    )
    return fields, params, dropped


def write(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{published name: array} of our parameters (nested, or flat by path).

    The buffers that timm computes itself are not among them: load it with `strict=False`.
    """
    return to_published(NAMING, traverse_util.unflatten_dict(params, sep="/"))


def swin_config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json beside an exported Swin: what timm's constructor takes, and the colours."""
    network = build_encoder(spec["architecture"])
    return {
        "model_args": {
            "img_size": spec["image_size"],
            "embed_dim": network.width,
            "depths": list(network.depths),
            "num_heads": list(network.heads),
            "window_size": network.window,
            "mlp_ratio": network.mlp_ratio,
        },
        "num_classes": 0,
        "pretrained_cfg": {"mean": spec["mean"], "std": spec["std"]},
    }
