"""The LDM layout: U-Net and first stage of Rombach et al. 2022, with Graikos et al.'s conditioner.

One Lightning checkpoint holds them all: `model.diffusion_model.*`, `first_stage_model.*`,
`cond_stage_model.*`, and the tables of the noise schedule. It holds no configuration: what the
networks are is read off the names and shapes of their tensors. Where these make no sense the
architecture is one whose parameters do not fit them, which reading them tells in detail.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.naming import POINTWISE, Naming

UNET = Naming(
    prefix="model.diffusion_model.",
    rules=(
        (r"^time_embed/linear_1", "time_embed/0"),
        (r"^time_embed/linear_2", "time_embed/2"),
        (r"^out_norm", "out/0"),
        (r"^out_conv", "out/2"),
        (r"^(input_blocks|output_blocks)_(\d+)_(\d+)", r"\1/\2/\3"),
        (r"^middle_block_(\d)", r"middle_block/\1"),
        (r"/in_norm/", "/in_layers/0/"),
        (r"/in_conv/", "/in_layers/2/"),
        (r"/out_norm/", "/out_layers/0/"),
        (r"/out_conv/", "/out_layers/3/"),
        (r"/emb/", "/emb_layers/1/"),
        (r"/skip/", "/skip_connection/"),
        (r"transformer_blocks_(\d+)", r"transformer_blocks/\1"),
        (r"/to_out/", "/to_out/0/"),
        (r"/ff/proj/", "/ff/net/0/proj/"),
        (r"/ff/out/", "/ff/net/2/"),
    ),
    transforms=((r"/(skip|proj_in|proj_out)/kernel$", POINTWISE),),
)
FIRST_STAGE = Naming(
    prefix="first_stage_model.",
    rules=(
        (r"^codes$", "quantize/embedding/weight"),
        (r"/(down|up)_(\d+)_block_(\d+)/", r"/\1/\2/block/\3/"),
        (r"/(down|up)sample_(\d+)/", r"/\1/\2/\1sample/conv/"),
        (r"/attn_1_norm/", "/attn_1/norm/"),
        (r"/attn_1/to_([qkv])/", r"/attn_1/\1/"),
        (r"/attn_1/to_out/", "/attn_1/proj_out/"),
    ),
    transforms=((r"/attn_1/\w+/kernel$", POINTWISE),),
)
CONDITIONER = Naming(
    prefix="cond_stage_model.",
    rules=((r"^projection(_0)?/", "patch_fc/"), (r"^projection_1/", "region_fc/")),
)
SCHEDULE_TABLES = (
    r"(sqrt_(one_minus_|recip_|recipm1_)?)?(alphas_cumprod)|log_one_minus_alphas_cumprod"
    r"|alphas_cumprod_prev|betas|posterior_(variance|log_variance_clipped|mean_coef[12])"
)
Tensors = Mapping[str, Any]  # published name -> array (or anything with a shape)


def unet_architecture(tensors: Tensors) -> dict[str, Any]:
    """The U-Net's fields, `build_network`'s input; InputError if there is none.

    The number of heads leaves no trace in the tensors: it is the published models' one.
    """
    prefix = UNET.prefix
    base = _shape(tensors, f"{prefix}input_blocks.0.0.weight", 4)[0]
    widths: list[list[int]] = [[]]  # of the residual blocks of each level
    attends = set()
    for i in range(1, _count(tensors, rf"{prefix}input_blocks\.(\d+)\.")):
        block = f"{prefix}input_blocks.{i}"
        if f"{block}.0.op.weight" in tensors:
            widths.append([])
            continue
        widths[-1].append(_shape(tensors, f"{block}.0.in_layers.2.weight", 4)[0])
        if f"{block}.1.norm.weight" in tensors:
            attends.add(len(widths) - 1)
    if not all(widths):
        raise InputError(f"{prefix}input_blocks.*: a level has no residual block, expected some")
    middle = f"{prefix}middle_block"
    emb, width = (
        _shape(tensors, f"{middle}.0.{name}.weight", axes)[0]
        for name, axes in (("emb_layers.1", 2), ("in_layers.2", 4))
    )
    return {
        "name": "unet",
        "base_channels": base,
        "channel_multipliers": [level[-1] // base for level in widths],
        "blocks_per_level": len(widths[0]),
        "attention_levels": sorted(attends),
        "heads": 1,
        "transformer_depth": _count(tensors, rf"{middle}\.1\.transformer_blocks\.(\d+)\."),
        "out_channels": _shape(tensors, f"{prefix}out.2.weight", 4)[0],
        "scale_shift": emb == 2 * width,
    }


def autoencoder_architecture(tensors: Tensors) -> dict[str, Any]:
    """The fields of the first stage's `Autoencoder`; InputError if there is none."""
    prefix = FIRST_STAGE.prefix
    base = _shape(tensors, f"{prefix}encoder.conv_in.weight", 4)[0]
    levels = _count(tensors, rf"{prefix}encoder\.down\.(\d+)\.")
    widths = [
        _shape(tensors, f"{prefix}encoder.down.{level}.block.0.conv1.weight", 4)[0]
        for level in range(levels)
    ]
    codes = f"{prefix}quantize.embedding.weight"
    return {
        "base_channels": base,
        "channel_multipliers": [width // base for width in widths],
        "blocks_per_level": _count(tensors, rf"{prefix}encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": _shape(tensors, f"{prefix}decoder.conv_in.weight", 4)[1],
        "middle_attention": f"{prefix}encoder.mid.attn_1.q.weight" in tensors,
        "codebook": _shape(tensors, codes, 2)[0] if codes in tensors else 0,
        "quant_convs": f"{prefix}quant_conv.weight" in tensors,
    }


def conditioner_architecture(tensors: Tensors) -> dict[str, Any]:
    """The conditioner's fields, `build_conditioner`'s input; InputError if there is none."""
    patch, region = (f"{CONDITIONER.prefix}{kind}_fc.weight" for kind in ("patch", "region"))
    width, dim = _shape(tensors, patch, 2)
    if region not in tensors:
        return {"name": "linear", "width": width}
    return {"name": "linear", "width": width, "parts": [dim, _shape(tensors, region, 2)[1]]}


def context_width(tensors: Tensors) -> int:
    """Width of the tokens that the U-Net attends to."""
    name = f"{UNET.prefix}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    return _shape(tensors, name, 2)[1]


def schedule_tables(betas: Float[np.ndarray, " T"]) -> dict[str, Float[np.ndarray, " T"]]:
    """The tables of the noise schedule by their names in a checkpoint, float32.

    Ho et al. 2020, eq. 4 and 7; the posterior's variance at t = 0, which is 0, is clipped before
    the logarithm.
    """
    alpha_bar = np.cumprod(1 - betas)
    before = np.append(1.0, alpha_bar[:-1])
    variance = betas * (1 - before) / (1 - alpha_bar)
    tables = {
        "betas": betas,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(alpha_bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alpha_bar),
        "log_one_minus_alphas_cumprod": np.log(1 - alpha_bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alpha_bar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alpha_bar - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - alpha_bar),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - alpha_bar),
    }
    return {name: table.astype(np.float32) for name, table in tables.items()}


def _shape(tensors: Tensors, name: str, axes: int) -> list[int]:
    """The shape of a tensor of so many axes; InputError if it is missing or has others."""
    shape = list(tensors[name].shape) if name in tensors else "nothing"
    if len(shape) != axes or isinstance(shape, str) or 0 in shape:
        raise InputError(f"{name}: found {shape}, expected a tensor of {axes} axes, none empty")
    return shape


def _count(tensors: Tensors, pattern: str) -> int:
    """1 + the largest number that `pattern` catches in a name; 0 without any."""
    found = (re.match(pattern, name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)
