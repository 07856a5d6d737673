"""Names of the tensors of ViT encoders, as timm and transformers have them.

"timm" fuses query, key and value, and is how DINO, HIPT and most pathology encoders are released.
transformers has ViT and DINOv2 (also with registers), each in the spelling of its release 5 and in
the one of release 4 that most files on the hub have ("-v4"), and CLIP, of which the image tower is
read. A file is written in the spelling it was read in.
"""

from collections.abc import Collection

from ssl_diffusion.weights.layouts.wrapped import find_prefix
from ssl_diffusion.weights.naming import Naming, Transform

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
CLIP = "transformers-clip"
_CLIP_LAYER = r"vision_model/encoder/layers/\1"
_CLIP_EMBEDDINGS = "vision_model/embeddings"
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
    CLIP: Naming(
        rules=(
            (r"^patch_embed/", f"{_CLIP_EMBEDDINGS}/patch_embedding/"),
            (r"^cls_token$", f"{_CLIP_EMBEDDINGS}/class_embedding"),
            (r"^pos_embed$", f"{_CLIP_EMBEDDINGS}/position_embedding/weight"),
            (r"^norm_pre/", "vision_model/pre_layrnorm/"),  # as it is spelled there
            (r"^blocks_(\d+)/attn/to_([qkv])/", rf"{_CLIP_LAYER}/self_attn/\2_proj/"),
            (r"^blocks_(\d+)/attn/to_out/", rf"{_CLIP_LAYER}/self_attn/out_proj/"),
            (r"^blocks_(\d+)/norm(\d)/", rf"{_CLIP_LAYER}/layer_norm\2/"),
            (r"^blocks_(\d+)/mlp/linear_(\d)/", rf"{_CLIP_LAYER}/mlp/fc\2/"),
            (r"^norm/", "vision_model/post_layernorm/"),
            (r"^projection/", "visual_projection/"),
        ),
        transforms=(
            (r"^cls_token$", Transform(lambda w: w[None, None], lambda p: p[0, 0])),
            (r"^pos_embed$", Transform(lambda w: w[None], lambda p: p[0])),
        ),
    ),
}
_GATED = (r"/mlp/linear_1/", "/mlp/weights_in/"), (r"/mlp/linear_2/", "/mlp/weights_out/")
_ANCHORS = {  # a tensor of every block
    "timm": r"blocks\.\d+\.attn\.qkv\.weight",
    "transformers-vit": r"layers\.\d+\.attention\.q_proj\.weight",
    "transformers-vit-v4": r"encoder\.layer\.\d+\.attention\.attention\.query\.weight",
    "transformers-dinov2": r"encoder\.layer\.\d+\.attention\.q_proj\.weight",
    CLIP: r"vision_model\.encoder\.layers\.\d+\.self_attn\.q_proj\.weight",
}


def recognise(names: Collection[str]) -> str | None:
    """The layout (a key of LAYOUTS) of a checkpoint with these tensor names; None if it is no ViT.

    Wrapper prefixes (`module.`, `backbone.`, `teacher.`, `vit.`, ...) may stand before the names.
    """
    return find(names)[0]


def find(names: Collection[str]) -> tuple[str | None, str]:
    """(layout or None, prefix of the encoder's names); a teacher is preferred to its student."""
    for layout, anchor in _ANCHORS.items():
        prefix = find_prefix(names, anchor)
        if prefix is None:
            continue
        if layout not in ("timm", CLIP) and not any(
            n.startswith(f"{prefix}embeddings.") for n in names
        ):
            continue
        if layout == "transformers-vit-v4" and any(".norm1." in name for name in names):
            layout = "transformers-dinov2-v4"
        return layout, prefix
    return None, ""


def naming(layout: str, mlp: str) -> Naming:
    """The table of a layout; transformers names the gated MLP of DINOv2 in its own way."""
    table = LAYOUTS[layout]
    if mlp == "swiglu" and layout.startswith("transformers-dinov2"):
        return Naming(rules=(*_GATED, *table.rules))
    return table
