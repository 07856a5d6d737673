"""The config.json beside an exported ViT, where the model did not come with one."""

from collections.abc import Mapping
from typing import Any

from ssl_diffusion.encoders.build import build_encoder
from ssl_diffusion.encoders.vit import ViT
from ssl_diffusion.weights.layouts.vit_names import CLIP


def vit_config(layout: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of timm, or of transformers, for the model.json of an encoder.

    `layout` is a key of `vit_names.LAYOUTS` that can hold the encoder.
    """
    network: ViT = build_encoder(spec["architecture"])
    return _timm(network, spec) if layout == "timm" else _transformers(layout, network)


def _timm(network: ViT, spec: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "img_size": network.image_size,
        "patch_size": network.patch_size,
        "embed_dim": network.width,
        "depth": network.depth,
        "num_heads": network.heads,
        "mlp_ratio": network.mlp_ratio,
    }
    if network.layer_scale:
        arguments["init_values"] = 1e-5  # any number: the tensors say the values
    if network.mlp == "swiglu":  # timm counts gate and value together
        arguments["mlp_ratio"] = 2 * network.mlp_ratio
        arguments |= {"mlp_layer": "timm.layers.SwiGLUPacked", "act_layer": "silu"}
    if network.registers:
        arguments["reg_tokens"] = network.registers
    if network.prefix_positions == "none":
        arguments["no_embed_class"] = True
    if network.pooling == "mean":
        arguments |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    return {
        "architecture": "vit_base_patch16_224",  # a name that timm knows; model_args change it
        "num_classes": 0,
        "model_args": arguments,
        "pretrained_cfg": {"mean": spec["mean"], "std": spec["std"]},
    }


def _transformers(layout: str, network: ViT) -> dict[str, Any]:
    dinov2 = "dinov2" in layout
    config: dict[str, Any] = {
        "model_type": "dinov2" if dinov2 else "vit",
        "hidden_size": network.width,
        "num_hidden_layers": network.depth,
        "num_attention_heads": network.heads,
        "image_size": network.image_size,
        "patch_size": network.patch_size,
        "layer_norm_eps": network.epsilon,
        "hidden_act": "gelu",
        "qkv_bias": True,
    }
    if layout == CLIP:
        return config | {
            "model_type": "clip_vision_model",
            "architectures": ["CLIPVisionModelWithProjection"],
            "intermediate_size": round(network.mlp_ratio * network.width),
            "hidden_act": network.mlp,
            "projection_dim": network.projection,
        }
    if not dinov2:
        return config | {"intermediate_size": round(network.mlp_ratio * network.width)}
    if network.registers:
        config |= {
            "model_type": "dinov2_with_registers",
            "num_register_tokens": network.registers,
        }
    return config | {"mlp_ratio": network.mlp_ratio, "use_swiglu_ffn": network.mlp == "swiglu"}
