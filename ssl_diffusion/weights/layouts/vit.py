"""ViT encoders of timm and transformers: what they are, and their tensors there and back."""

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from ssl_diffusion.encoders.build import build_encoder
from ssl_diffusion.encoders.vit import ACTIVATIONS, ViT
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.layouts.vit_names import CLIP, LAYOUTS, find, naming
from ssl_diffusion.weights.layouts.wrapped import bare, read_all
from ssl_diffusion.weights.naming import to_published
from ssl_diffusion.weights.reader import encoder_shapes

# Of CLIP: its other tower, its temperature, and what is computed from the sizes.
_BUFFERS = r"text_(model|projection)\..*|logit_(scale|bias)|vision_model\.embeddings\.position_ids"
# Heads of published widths that are not 64 channels each.
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}


def architecture(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our ViT for published tensors without wrapper prefixes.

    `config` is the content of the config.json beside them, {} without one. Only fields that differ
    from our defaults are given, besides those that have none. Numbers are read from sizes that
    a transposition leaves alone, and of several tensors, so that what is missing or mis-shaped is
    reported later as what it is. Raises InputError for tensors that say no architecture and for a
    config that this ViT cannot follow.
    """
    layout, _ = find(tensors)
    if layout is None:
        raise InputError("no ViT in timm's or transformers' layout: no block of one was found")
    config = {**(config.get("pretrained_cfg") or {}), **config, **(config.get("model_args") or {})}
    if layout == CLIP:
        tensors = {name: t for name, t in tensors.items() if not re.fullmatch(_BUFFERS, name)}
        config |= config.get("vision_config") or {}
    gated = any(".mlp.weights_in." in name for name in tensors)
    table = naming(layout, "swiglu" if gated else "gelu")
    blocks = {int(n) for n in re.findall(r"\b(?:blocks|layers?)\.(\d+)\.", "\n".join(tensors))}

    def size(*paths: str) -> int:
        """Of the first that is there; the blocks are alike. 0 without any."""
        names = [table.name(path.format(i))[0] for path in paths for i in sorted(blocks)]
        return next((tensors[n].size for n in names if n in tensors and tensors[n].size), 0)

    width = size("norm/bias", "norm/scale", "blocks_{}/norm1/bias", "blocks_{}/norm2/bias")
    hidden = size("blocks_{}/mlp/linear_2/kernel") // max(width, 1)
    hidden_1 = size("blocks_{}/mlp/linear_1/bias")
    hidden_1 = hidden_1 or size("blocks_{}/mlp/linear_1/kernel") // max(width, 1)
    if not width or not hidden or not hidden_1:
        raise InputError(
            f"not a whole {layout} encoder: its norms, or the layers of its MLPs, are missing or "
            "empty; without any of them the architecture is unknown"
        )
    patch = math.isqrt(size("patch_embed/kernel") // (3 * width))
    registers = size("register_tokens") // width
    found = {
        "patch_size": patch or _said(config, ("patch_size",), 16),
        "width": width,
        "depth": config.get("num_hidden_layers", config.get("depth", 1 + max(blocks))),
        "heads": _heads(width, config),
        "mlp_ratio": hidden / width,
        "mlp": _activation(layout, hidden_1 == 2 * hidden, config),
        "layer_scale": any(re.search(r"\.(ls1|layer_scale1)\.", name) for name in tensors),
        "registers": registers,
        "epsilon": config.get("layer_norm_eps", _epsilon(layout)),
        "pre_norm": layout == CLIP,
    }
    if layout == CLIP:
        projection = size("projection/kernel") // width
        found["projection"] = projection or _said(config, ("projection_dim",), 512)
    said = config.get("hidden_size", config.get("embed_dim", width))
    if said != width:
        raise InputError(
            f"the config.json beside the tensors is of an encoder of width {said!r}, these have "
            f"{width}; give the one that belongs to them"
        )
    found |= _positions(layout, "cls_token" in tensors, size("pos_embed") // width, found, config)
    found["resize"] = _resize(layout, found["registers"], config)
    return {name: value for name, value in found.items() if value != getattr(ViT, name, None)}


def _heads(width: int, config: Mapping[str, Any]) -> int:
    heads = config.get("num_attention_heads", config.get("num_heads"))
    if heads is None:
        heads = _HEADS.get(width, max(1, width // 64))
        logging.info(
            f"no number of attention heads beside the tensors: {heads}, as published encoders of "
            f"width {width} have; num_heads or num_attention_heads in config.json says otherwise"
        )
    if type(heads) is not int or heads < 1 or width % heads:
        raise InputError(
            f"{heads!r} attention heads for width {width}, expected a divisor; give the right "
            "num_heads (timm) or num_attention_heads (transformers) in config.json"
        )
    return heads


def _epsilon(layout: str) -> float:
    if layout == CLIP:
        return 1e-5
    return 1e-12 if layout.startswith("transformers-vit") else 1e-6


def _activation(layout: str, gated: bool, config: Mapping[str, Any]) -> str:
    """The field `mlp`: tensors tell the gates, and not the activation.

    In transformers the gate of DINOv2 is SiLU whatever hidden_act is.
    """
    given, expected = config.get("act_layer"), ["silu"]
    if not gated:
        given = config.get("hidden_act", given)
        expected = [*ACTIVATIONS] if layout == CLIP else ["gelu"]
    if given is None:
        return "swiglu" if gated else "quick_gelu" if layout == CLIP else "gelu"
    name = str(given).lower().rsplit(".")[-1]
    if name not in expected:
        raise InputError(
            f"config.json has the activation {given!r}, expected {' or '.join(map(repr, expected))}"
        )
    return "swiglu" if gated else name


def _positions(
    layout: str, has_token: bool, count: int, found: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """image_size, pooling and prefix_positions: the patches with positions are a square."""
    patch, registers = found["patch_size"], found["registers"]
    if not count:  # the table is missing
        size = _said(config, ("image_size", "img_size"), 224)
        count = (size // patch) ** 2 + (has_token or layout != "timm")
    # Where the rest makes no square without a class token, it is the token that is missing.
    for token in (True,) if layout != "timm" else (has_token, True):
        before = {"class": int(token)}
        if layout == "timm":
            before |= {"none": 0, "all": token + registers}
        for prefix, number in before.items():
            side = math.isqrt(max(count - number, 0))
            if side and side * side == count - number:
                pooling = "class" if token else "mean"
                return {"image_size": side * patch, "pooling": pooling, "prefix_positions": prefix}
    raise InputError(
        f"{layout}: {count} positions are those of no square of patches ({registers} registers); "
        "only square images are read"
    )


def _said(config: Mapping[str, Any], keys: tuple[str, ...], published: int) -> int:
    """What the config says where a missing tensor does not, else what most published encoders have.

    Reading goes on to name the other faults too; the size expected of the missing one is a guess.
    """
    return next((config[key] for key in keys if type(config.get(key)) is int), published)


def _resize(layout: str, registers: int, config: Mapping[str, Any]) -> str:
    """How the published code interpolates positions: DINO's files have timm's names."""
    if layout != "timm":
        return "antialias" if registers else "bicubic"
    return "antialias" if config.keys() & {"architecture", "model_args"} else "offset"


def read(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """Returns (fields of our ViT, {our path: array, a view}, names of the companions dropped).

    `config` as in `architecture`. Raises one InputError that names every missing, unexpected,
    mis-shaped and non-floating tensor.
    """
    layout, prefix = find(tensors.keys())
    fields = architecture(bare(tensors, prefix), config)
    table = naming(layout, fields.get("mlp", "gelu"))
    params, dropped = read_all(
        tensors, prefix, table, encoder_shapes(fields), layout, _BUFFERS if layout == CLIP else ""
    )
    return fields, params, dropped


def write(
    layout: str, fields: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """{published name: array} of our parameters (nested, or flat by path) of a ViT of `fields`.

    Raises InputError for an unknown layout, and for a ViT that it has no names for.
    """
    if layout not in LAYOUTS:
        raise InputError(f"ViT layout {layout!r}, expected one of {', '.join(LAYOUTS)}")
    network = build_encoder(fields)
    registers, positions = network.registers > 0, network.prefix_positions
    cannot = {"a convolutional stem": network.stem != "patch"}
    if layout == "timm":
        cannot["registers without positions beside a class token with one"] = (
            registers and positions == network.pooling == "class"
        )
    else:
        cannot["mean pooling"] = network.pooling != "class"
        cannot[f"prefix_positions {positions!r}"] = positions != "class"
    if layout != CLIP:
        cannot["a norm before the blocks"] = network.pre_norm
        cannot["a projection"] = network.projection > 0
        cannot["quick_gelu"] = network.mlp == "quick_gelu"
    else:
        cannot["an encoder without a norm before the blocks"] = not network.pre_norm
        cannot["one without a projection"] = not network.projection
    if layout == CLIP or layout.startswith("transformers-vit"):
        cannot["registers"], cannot["LayerScale"] = registers, network.layer_scale
        cannot["a gated MLP"] = network.mlp == "swiglu"
    if layout.startswith("transformers-dinov2"):
        cannot["blocks without LayerScale"] = not network.layer_scale
    wrong = [what for what, found in cannot.items() if found]
    if wrong:
        raise InputError(f"the layout {layout} cannot hold {', '.join(wrong)}; export to another")
    return to_published(naming(layout, network.mlp), traverse_util.unflatten_dict(params, sep="/"))
