"""Text encoders of transformers: what they are, and their tensors there and back.

"bert" is BertModel (and so MiniLM), "clip_text" the text tower of CLIPModel and its projection.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from ssl_diffusion.encoders.vit import ACTIVATIONS
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.layouts.wrapped import bare, find_prefix, read_all
from ssl_diffusion.weights.naming import Naming, to_published
from ssl_diffusion.weights.reader import text_encoder_shapes

_BERT_LAYER = r"encoder/layer/\1"
_CLIP_LAYER = r"text_model/encoder/layers/\1"
LAYOUTS = {
    "bert": Naming(
        rules=(
            (r"^token_embed$", "embeddings/word_embeddings/weight"),
            (r"^pos_embed$", "embeddings/position_embeddings/weight"),
            (r"^segment_embed$", "embeddings/token_type_embeddings/weight"),
            (r"^norm/", "embeddings/LayerNorm/"),
            (r"^blocks_(\d+)/attn/to_q/", rf"{_BERT_LAYER}/attention/self/query/"),
            (r"^blocks_(\d+)/attn/to_k/", rf"{_BERT_LAYER}/attention/self/key/"),
            (r"^blocks_(\d+)/attn/to_v/", rf"{_BERT_LAYER}/attention/self/value/"),
            (r"^blocks_(\d+)/attn/to_out/", rf"{_BERT_LAYER}/attention/output/dense/"),
            (r"^blocks_(\d+)/norm1/", rf"{_BERT_LAYER}/attention/output/LayerNorm/"),
            (r"^blocks_(\d+)/mlp/linear_1/", rf"{_BERT_LAYER}/intermediate/dense/"),
            (r"^blocks_(\d+)/mlp/linear_2/", rf"{_BERT_LAYER}/output/dense/"),
            (r"^blocks_(\d+)/norm2/", rf"{_BERT_LAYER}/output/LayerNorm/"),
        )
    ),
    "clip_text": Naming(
        rules=(
            (r"^token_embed$", "text_model/embeddings/token_embedding/weight"),
            (r"^pos_embed$", "text_model/embeddings/position_embedding/weight"),
            (r"^blocks_(\d+)/attn/to_([qkv])/", rf"{_CLIP_LAYER}/self_attn/\2_proj/"),
            (r"^blocks_(\d+)/attn/to_out/", rf"{_CLIP_LAYER}/self_attn/out_proj/"),
            (r"^blocks_(\d+)/norm(\d)/", rf"{_CLIP_LAYER}/layer_norm\2/"),
            (r"^blocks_(\d+)/mlp/linear_(\d)/", rf"{_CLIP_LAYER}/mlp/fc\2/"),
            (r"^norm/", "text_model/final_layer_norm/"),
            (r"^projection/", "text_projection/"),
        )
    ),
}
_ANCHORS = {  # a tensor of every block
    "bert": r"encoder\.layer\.\d+\.attention\.self\.query\.weight",
    "clip_text": r"text_model\.encoder\.layers\.\d+\.self_attn\.q_proj\.weight",
}
# Computed from the sizes; BERT's heads; CLIP's other tower.
_BUFFERS = (
    r"(text_model\.)?embeddings\.(position_ids|token_type_ids)|cls\..*"
    r"|vision_model\..*|visual_projection\..*|logit_scale|logit_bias"
)
# What transformers takes for what a config.json leaves out, and the width that its heads are of.
_DEFAULTS = {
    "bert": {"num_attention_heads": 12, "layer_norm_eps": 1e-12, "hidden_act": "gelu"},
    "clip_text": {
        "num_attention_heads": 8,
        "layer_norm_eps": 1e-5,
        "hidden_act": "quick_gelu",
        "eos_token_id": 49407,
    },
}
_WIDTHS = {"bert": 768, "clip_text": 512}


def recognise(names: Collection[str]) -> str | None:
    """The layout (a key of LAYOUTS) of a checkpoint with these names; None if it is no text's."""
    return _find(names)[0]


def _find(names: Collection[str]) -> tuple[str | None, str]:
    for layout, anchor in _ANCHORS.items():
        if (prefix := find_prefix(names, anchor)) is not None:
            return layout, prefix
    return None, ""


def read(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """Returns (architecture, {our path: array, a view}, names of the companions dropped).

    `config` is the content of the config.json beside the tensors, {} without one. Raises InputError
    if there is none or it is of another model, and one that names every missing, unexpected,
    mis-shaped and non-floating tensor.
    """
    layout, prefix = _find(tensors)
    if layout is None:
        raise InputError("no text encoder in transformers' layout: no block of one was found")
    fields = architecture(layout, bare(tensors, prefix), config)
    shapes = text_encoder_shapes(fields)
    params, dropped = read_all(tensors, prefix, LAYOUTS[layout], shapes, layout, _BUFFERS)
    return fields, params, dropped


def write(fields: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{published name: array} of our parameters (nested, or flat by path) of an architecture."""
    return to_published(LAYOUTS[fields["name"]], traverse_util.unflatten_dict(params, sep="/"))


def sentence_transformers(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What lies beside an exported sentence encoder: how its tokens are pooled, how many it takes.

    Keys are file names, values their content.
    """
    steps = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    return {
        "modules.json": [
            {
                "idx": i,
                "name": str(i),
                "path": path,
                "type": f"sentence_transformers.models.{name}",
            }
            for i, (name, path) in enumerate(steps.items())
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": spec["embedding"]["dim"],
            "pooling_mode_mean_tokens": True,
        },
        "sentence_bert_config.json": {"max_seq_length": spec["max_tokens"]},
    }


def architecture(
    layout: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> dict[str, Any]:
    """`name` and fields of our network, for published tensors without wrapper prefixes.

    Sizes are read from the first of several tensors that is there, so that what is missing or
    mis-shaped is reported later as what it is. Raises InputError for tensors that say no
    architecture, and for a config that this network cannot follow.
    """
    blocks = {int(n) for n in re.findall(r"encoder\.layers?\.(\d{1,3})\.", "\n".join(tensors))}

    def size(*paths: str) -> int:
        names = [LAYOUTS[layout].name(path.format(i))[0] for path in paths for i in sorted(blocks)]
        return next((tensors[n].size for n in names if n in tensors and tensors[n].size), 0)

    width = size("norm/bias", "norm/scale", "blocks_{}/norm1/bias", "blocks_{}/norm2/bias")
    tables = ("token_embed", "pos_embed")
    tables += ("segment_embed",) if layout == "bert" else ("projection/kernel",)
    found = {path: size(path) // max(width, 1) for path in tables}
    hidden = size("blocks_{}/mlp/linear_1/bias")
    hidden = hidden or size("blocks_{}/mlp/linear_2/kernel") // max(width, 1)
    missing = [LAYOUTS[layout].name(path)[0] for path, rows in found.items() if not rows]
    missing += ["the norms"] * (not width) + ["the layers of the MLPs"] * (not hidden)
    if missing:
        raise InputError(
            f"not a whole {layout} encoder: without {', '.join(missing)} the architecture is "
            "unknown, or it does not turn a text into one vector"
        )
    said = _settings(layout, width, config)
    fields = {
        "name": layout,
        "vocabulary": found["token_embed"],
        "positions": found["pos_embed"],
        "width": width,
        "depth": 1 + max(blocks),
        "heads": said["num_attention_heads"],
        "mlp_ratio": hidden / width,
        "epsilon": said["layer_norm_eps"],
    }
    if layout == "bert":
        return fields | {"segments": found["segment_embed"]}
    end = said["eos_token_id"]
    # 2 was written by mistake in the first configs; transformers then takes the highest id, which
    # is what CLIP's vocabulary ends with.
    end = fields["vocabulary"] - 1 if end == 2 else end
    return fields | {
        "projection": found["projection/kernel"],
        "end": end,
        "mlp": said["hidden_act"],
    }


def _settings(layout: str, width: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """What tensors do not tell, from the config.json; InputError for what we cannot follow."""
    if not config:
        raise InputError(
            f"no config.json beside the tensors: a {layout} encoder's attention heads, epsilon and "
            "activation are in it; copy it beside them"
        )
    if layout == "clip_text":
        config = {**(config.get("text_config") or config), **(config.get("text_config_dict") or {})}
    config = {key: value for key, value in config.items() if value is not None}
    said = _DEFAULTS[layout] | config
    if (stated := said.get("hidden_size", width)) != width:
        raise InputError(
            f"config.json is of an encoder of width {stated!r}, the tensors have {width}; give the "
            "one that belongs to them"
        )
    if "num_attention_heads" not in config and width != _WIDTHS[layout]:
        raise InputError(
            f"config.json says no num_attention_heads for an encoder of width {width}; add it"
        )
    heads = said["num_attention_heads"]
    if type(heads) is not int or heads < 1 or width % heads:
        raise InputError(
            f"config.json says {heads!r} attention heads for width {width}, expected a divisor"
        )
    activations = ["gelu"] if layout == "bert" else [*ACTIVATIONS]
    if said["hidden_act"] not in activations:
        raise InputError(
            f"config.json has the activation {said['hidden_act']!r}, expected "
            f"{' or '.join(activations)}"
        )
    if layout == "bert":
        for key, expected in {"model_type": "bert", "position_embedding_type": "absolute"}.items():
            if said.get(key, expected) != expected:
                raise InputError(f"config.json has {key} {said[key]!r}, expected {expected!r}")
    return said
