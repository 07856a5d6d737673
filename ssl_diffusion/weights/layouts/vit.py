"""ViT encoders as timm and transformers lay them out.

"timm" fuses query, key and value, and is how DINO, HIPT and most pathology encoders are released.
transformers has ViT and DINOv2 (also with registers), each in the spelling of its release 5 and in
the one of release 4 that most files on the hub have ("-v4"). A file is written in the spelling it
was read in.
"""

import logging
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from ssl_diffusion.encoders.vit import ViT
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import build
from ssl_diffusion.weights.naming import Naming, to_ours, to_published

_MLP = ((r"/mlp/linear_(\d)/", r"/mlp/fc\1/"),)
_EMBEDDINGS = (
    (r"^patch_embed/", "embeddings/patch_embeddings/projection/"),
    (r"^(cls_token|register_tokens)$", r"embeddings/\1"),
    (r"^pos_embed$", "embeddings/position_embeddings"),
    (r"^norm/", "layernorm/"),
)
_VIT_NORMS = ((r"/norm1/", "/layernorm_before/"), (r"/norm2/", "/layernorm_after/"))
_LAYER_SCALE = ((r"/layer_scale(\d)$", r"/layer_scale\1/lambda1"),)
_ATTENTION = (
    (r"/attn/to_([qkv])/", r"/attention/\1_proj/"),
    (r"/attn/to_out/", "/attention/o_proj/"),
)
_ATTENTION_V4 = (
    (r"/attn/to_out/", "/attention/output/dense/"),
    (r"/attn/to_q/", "/attention/attention/query/"),
    (r"/attn/to_k/", "/attention/attention/key/"),
    (r"/attn/to_v/", "/attention/attention/value/"),
)
_LAYERS = ((r"^blocks_(\d+)/", r"encoder/layer/\1/"),)

LAYOUTS = {
    "timm": Naming(
        rules=(
            (r"^blocks_(\d+)/", r"blocks/\1/"),
            (r"^patch_embed/", "patch_embed/proj/"),
            (r"^register_tokens$", "reg_token"),
            (r"/layer_scale(\d)$", r"/ls\1/gamma"),
            (r"/attn/to_out/", "/attn/proj/"),
            (r"/attn/to_(.)/kernel$", r"/attn/to_\1/weight"),
            (r"/attn/to_q/(.*)$", r"/attn/qkv/\1[0/3]"),
            (r"/attn/to_k/(.*)$", r"/attn/qkv/\1[1/3]"),
            (r"/attn/to_v/(.*)$", r"/attn/qkv/\1[2/3]"),
            *_MLP,
        )
    ),
    "transformers-vit": Naming(
        rules=((r"^blocks_(\d+)/", r"layers/\1/"), *_EMBEDDINGS, *_VIT_NORMS, *_ATTENTION, *_MLP)
    ),
    "transformers-vit-v4": Naming(
        rules=(
            *_LAYERS,
            *_EMBEDDINGS,
            *_VIT_NORMS,
            *_ATTENTION_V4,
            (r"/mlp/linear_1/", "/intermediate/dense/"),
            (r"/mlp/linear_2/", "/output/dense/"),
        )
    ),
    "transformers-dinov2": Naming(
        rules=(*_LAYERS, *_EMBEDDINGS, *_LAYER_SCALE, *_ATTENTION, *_MLP)
    ),
    "transformers-dinov2-v4": Naming(
        rules=(*_LAYERS, *_EMBEDDINGS, *_LAYER_SCALE, *_ATTENTION_V4, *_MLP)
    ),
}
_GATED = (r"/mlp/linear_1/", "/mlp/weights_in/"), (r"/mlp/linear_2/", "/mlp/weights_out/")
_WRAPPER = r"(?:module|backbone|teacher|student|model|encoder|vit|dinov2|dinov2_with_registers)\."
_ANCHORS = {  # a tensor of every block
    "timm": r"blocks\.\d+\.attn\.qkv\.weight",
    "transformers-vit": r"layers\.\d+\.attention\.q_proj\.weight",
    "transformers-vit-v4": r"encoder\.layer\.\d+\.attention\.attention\.query\.weight",
    "transformers-dinov2": r"encoder\.layer\.\d+\.attention\.q_proj\.weight",
}
# Tensors beside the encoder that an embedding does not need.
_COMPANIONS = re.compile(
    r"(head|head_dist|dino_head|ibot_head|mlp_head|classifier|pooler|decoder|fc|projector|predictor"
    r"|loss|dino_loss|ibot_loss|ibot_patch_loss)\..*|decoder_.*|(embeddings\.)?mask_token|masked_embed"
)
# Heads of published widths that are not 64 channels each.
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}


def recognise(names: Collection[str]) -> str | None:
    """The layout (a key of LAYOUTS) of a checkpoint with these tensor names; None if it is no ViT.

    Wrapper prefixes (`module.`, `backbone.`, `teacher.`, `vit.`, ...) may stand before the names.
    """
    return _find(names)[0]


def _find(names: Collection[str]) -> tuple[str | None, str]:
    """(layout or None, prefix of the encoder's names); a teacher is preferred to its student."""
    for layout, anchor in _ANCHORS.items():
        pattern = re.compile(rf"((?:{_WRAPPER})*?){anchor}")
        prefixes = {match[1] for name in names if (match := pattern.fullmatch(name))}
        if not prefixes:
            continue
        prefix = min(prefixes, key=lambda p: ("teacher." not in p, "student." in p, len(p), p))
        if layout != "timm" and not any(n.startswith(f"{prefix}embeddings.") for n in names):
            continue
        if layout == "transformers-vit-v4" and any(".norm1." in name for name in names):
            layout = "transformers-dinov2-v4"
        return layout, prefix
    return None, ""


def _naming(layout: str, mlp: str) -> Naming:
    """The table of a layout; transformers names the gated MLP of DINOv2 in its own way."""
    naming = LAYOUTS[layout]
    if mlp == "swiglu" and layout.startswith("transformers-dinov2"):
        return Naming(rules=(*_GATED, *naming.rules))
    return naming


def architecture(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our ViT for published tensors without wrapper prefixes.

    `config` is the content of the config.json beside them, {} without one. Only fields that differ
    from our defaults are given, besides those that have none. Numbers are read from sizes that
    a transposition leaves alone, so that it is reported later as what it is. Raises InputError for
    tensors that say no architecture and for a config that this ViT cannot follow.
    """
    layout, _ = _find(tensors)
    if layout is None:
        raise InputError("no ViT in timm's or transformers' layout: no block of one was found")
    config = {**(config.get("pretrained_cfg") or {}), **config, **(config.get("model_args") or {})}
    gated = any(".mlp.weights_in." in name for name in tensors)
    naming = _naming(layout, "swiglu" if gated else "gelu")
    blocks = [int(n) for n in re.findall(r"\b(?:blocks|layers?)\.(\d+)\.", "\n".join(tensors))]
    needed = {
        path: naming.name(path)[0]
        for path in ("norm/bias", "patch_embed/kernel", "pos_embed")
        + (f"blocks_{min(blocks)}/mlp/linear_1/bias", f"blocks_{min(blocks)}/mlp/linear_2/kernel")
    }
    lacking = [name for name in needed.values() if name not in tensors or not tensors[name].size]
    if lacking:
        raise InputError(
            f"not a whole {layout} encoder: {', '.join(lacking)} missing or empty; without them "
            "the architecture is unknown"
        )
    width, patch, positions, hidden_1, hidden_2 = (tensors[n].size for n in needed.values())
    hidden, registers = hidden_2 // width, naming.name("register_tokens")[0]
    found = {
        "patch_size": math.isqrt(patch // (3 * width)),
        "width": width,
        "depth": config.get("num_hidden_layers", config.get("depth", 1 + max(blocks))),
        "heads": _heads(width, config),
        "mlp_ratio": hidden / width,
        "mlp": "swiglu" if hidden_1 == 2 * hidden else "gelu",
        "layer_scale": any(re.search(r"\.(ls1|layer_scale1)\.", name) for name in tensors),
        "registers": tensors[registers].size // width if registers in tensors else 0,
        "epsilon": config.get(
            "layer_norm_eps", 1e-12 if layout.startswith("transformers-vit") else 1e-6
        ),
    }
    said = config.get("hidden_size", config.get("embed_dim", width))
    if said != width:
        raise InputError(
            f"the config.json beside the tensors is of an encoder of width {said!r}, these have "
            f"{width}; give the one that belongs to them"
        )
    _check_activation(found["mlp"], config)
    found |= _positions(layout, tensors, positions // width, found)
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


def _check_activation(mlp: str, config: Mapping[str, Any]) -> None:
    """Tensors do not tell it; in transformers the gate of DINOv2 is SiLU whatever hidden_act is."""
    given, expected = config.get("act_layer"), "silu"
    if mlp == "gelu":
        given, expected = config.get("hidden_act", given), "gelu"
    if given is not None and str(given).lower().rsplit(".")[-1] != expected:
        raise InputError(f"config.json has the activation {given!r}, expected {expected!r}")


def _positions(
    layout: str, tensors: Mapping[str, np.ndarray], count: int, found: Mapping[str, Any]
) -> dict[str, Any]:
    """image_size, pooling and prefix_positions: the patches with positions are a square."""
    token, registers = "cls_token" in tensors or layout != "timm", found["registers"]
    before = {"class": 1}
    if layout == "timm":
        before = {"class": int(token), "none": 0, "all": token + registers}
    for prefix, number in before.items():
        side = math.isqrt(max(count - number, 0))
        if side and side * side == count - number:
            size, pooling = side * found["patch_size"], "class" if token else "mean"
            return {"image_size": size, "pooling": pooling, "prefix_positions": prefix}
    raise InputError(
        f"{layout}: {count} positions are those of no square of patches (class token "
        f"{'found' if token else 'missing'}, {registers} registers); only square images are read"
    )


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
    layout, prefix = _find(tensors.keys())
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    fields = architecture(own, config)
    params, used, problems = to_ours(
        _naming(layout, fields.get("mlp", "gelu")), shapes(fields), own
    )
    problems = [prefix + problem for problem in problems]
    dropped = []
    for name in sorted(tensors.keys() - {prefix + name for name in used}):
        if _is_companion(name, prefix):
            dropped.append(name)
        else:
            problems.append(f"{name}: unexpected")
    if problems:
        raise InputError(f"not a whole {layout} encoder: " + "; ".join(sorted(problems)))
    if prefix:
        logging.info("read the encoder from under %r", prefix)
    if dropped:
        some = ", ".join(dropped[:6]) + ", ..." * (len(dropped) > 6)
        logging.info("dropped %d tensors an embedding does not need: %s", len(dropped), some)
    return fields, params, dropped


def _is_companion(name: str, prefix: str) -> bool:
    if "teacher." in prefix and re.match(rf"(?:{_WRAPPER})*?student\.", name):
        return True
    bare = name.removeprefix(prefix)
    return bool(_COMPANIONS.fullmatch(re.sub(rf"^(?:{_WRAPPER})+", "", bare)))


def shapes(fields: Mapping[str, Any]) -> PyTree:
    """Shapes of the parameters of our ViT of these fields."""
    network = build(ViT, fields)
    image = jax.ShapeDtypeStruct((1, network.image_size, network.image_size, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image)["params"]


def write(
    layout: str, fields: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """{published name: array} of our parameters (nested, or flat by path) of a ViT of `fields`.

    Raises InputError for an unknown layout, and for a ViT that it has no names for.
    """
    if layout not in LAYOUTS:
        raise InputError(f"ViT layout {layout!r}, expected one of {', '.join(LAYOUTS)}")
    network = build(ViT, fields)
    registers, positions = network.registers > 0, network.prefix_positions
    cannot = {"a convolutional stem": network.stem != "patch"}
    if layout == "timm":
        cannot["registers without positions beside a class token with one"] = (
            registers and positions == network.pooling == "class"
        )
    else:
        cannot["mean pooling"] = network.pooling != "class"
        cannot[f"prefix_positions {positions!r}"] = positions != "class"
    if layout.startswith("transformers-vit"):
        cannot["registers"], cannot["LayerScale"] = registers, network.layer_scale
        cannot["a gated MLP"] = network.mlp == "swiglu"
    if layout.startswith("transformers-dinov2"):
        cannot["blocks without LayerScale"] = not network.layer_scale
    wrong = [what for what, found in cannot.items() if found]
    if wrong:
        raise InputError(f"the layout {layout} cannot hold {', '.join(wrong)}; export to another")
    return to_published(_naming(layout, network.mlp), traverse_util.unflatten_dict(params, sep="/"))
