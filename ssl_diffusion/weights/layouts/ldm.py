"""The LDM layout: U-Net and first stage of Rombach et al. 2022, with Graikos et al.'s conditioner.

One Lightning checkpoint holds them all: `model.diffusion_model.*`, `first_stage_model.*`,
`cond_stage_model.*`, and the tables of the noise schedule. It holds no configuration: what the
networks are is read off the names and shapes of their tensors. One that is missing or has the wrong
shape does not keep the others from telling it, so that reading them names every fault.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from ssl_diffusion.diffusion.schedule import find_schedule, make_betas
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
    """The U-Net's fields, `build_network`'s input; InputError if the tensors do not tell them.

    The number of heads leaves no trace in the tensors: it is the published models' one.
    """
    prefix = UNET.prefix
    base = _width(tensors, f"{prefix}input_blocks.0.0", f"{prefix}out.0", multiple=32)
    levels: list[list[str]] = [[]]  # the convolutions of the residual blocks of each level
    attends = set()
    for i in range(1, _count(tensors, rf"{prefix}input_blocks\.(\d+)\.")):
        block = f"{prefix}input_blocks.{i}"
        if _has(tensors, f"{block}.0.op."):
            levels.append([])
            continue
        levels[-1] += [f"{block}.0.in_layers.2", f"{block}.0.out_layers.3"]
        if _has(tensors, f"{block}.1."):
            attends.add(len(levels) - 1)
    if not all(levels):
        raise InputError(f"{prefix}input_blocks.*: a level has no residual block, expected some")
    widths = [_width(tensors, *level, multiple=base) for level in levels]
    middle = f"{prefix}middle_block.0"
    emb = _width(tensors, f"{middle}.emb_layers.1", multiple=widths[-1])
    return {
        "name": "unet",
        "base_channels": base,
        "channel_multipliers": [width // base for width in widths],
        "blocks_per_level": len(levels[0]) // 2,
        "attention_levels": sorted(attends),
        "heads": 1,
        "transformer_depth": _count(tensors, rf"{prefix}.*\.transformer_blocks\.(\d+)\."),
        "out_channels": _width(tensors, f"{prefix}out.2"),
        "scale_shift": emb == 2 * widths[-1],
    }


def autoencoder_architecture(tensors: Tensors) -> dict[str, Any]:
    """The fields of the first stage's `Autoencoder`; InputError if the tensors do not tell them."""
    prefix = FIRST_STAGE.prefix
    encoder = f"{prefix}encoder"
    base = _width(tensors, f"{encoder}.conv_in", f"{prefix}decoder.norm_out", multiple=32)
    blocks = [
        f"{encoder}.down.{level}.block.0"
        for level in range(_count(tensors, rf"{encoder}\.down\.(\d+)\."))
    ]
    widths = [_width(tensors, f"{b}.conv1", f"{b}.conv2", multiple=base) for b in blocks]
    features, codes = _width(tensors, f"{encoder}.conv_out"), f"{prefix}quantize.embedding.weight"
    if quant_convs := _has(tensors, f"{prefix}quant_conv.", f"{prefix}post_quant_conv."):
        latent = _width(tensors, f"{prefix}post_quant_conv")
    else:  # without a codebook, features are mean and variance
        latent = features // (1 if codes in tensors else 2)
    codebook = 0
    if codes in tensors:
        codebook = max(math.prod(tensors[codes].shape) // latent, 1)
    elif features == latent:  # no variance: the codes are missing, 8192 in the published models
        codebook = 8192
    return {
        "base_channels": base,
        "channel_multipliers": [width // base for width in widths],
        "blocks_per_level": _count(tensors, rf"{encoder}\.down\.0\.block\.(\d+)\."),
        "latent_channels": latent,
        "middle_attention": _has(tensors, f"{encoder}.mid.attn_1."),
        "codebook": codebook,
        "quant_convs": quant_convs,
    }


def conditioner_architecture(tensors: Tensors) -> tuple[dict[str, Any], int]:
    """The conditioner's fields, `build_conditioner`'s input, and the width of a patch's embedding.

    InputError if the tensors do not tell them.
    """
    width = context_width(tensors)
    dim = _inputs(tensors, f"{CONDITIONER.prefix}patch_fc.weight", width)
    fields = {"name": "linear", "width": width}
    if _has(tensors, f"{CONDITIONER.prefix}region_fc."):
        fields["parts"] = [dim, _inputs(tensors, f"{CONDITIONER.prefix}region_fc.weight", width)]
    return fields, dim


def context_width(tensors: Tensors) -> int:
    """Width of the tokens that the U-Net attends to; InputError if the tensors do not tell it."""
    pattern = rf"({re.escape(UNET.prefix)}.*\.attn2)\.to_[kv]\.weight"
    for name, tensor in tensors.items():
        if match := re.fullmatch(pattern, name):
            width = _width(tensors, f"{match[1]}.to_out.0", f"{match[1]}.to_q")
            if len(tensor.shape) == 2 and tensor.shape[0] == width and tensor.shape[1]:
                return tensor.shape[1]
    return _width(tensors, f"{CONDITIONER.prefix}patch_fc")


def schedule(tensors: Tensors) -> dict[str, Any]:
    """The arguments of `make_schedule` that give the tables; InputError if none do, or no betas."""
    if "betas" not in tensors:
        raise InputError("it has no betas: its noise schedule is unknown")
    found = find_schedule(tensors["betas"])
    for name, computed in schedule_tables(make_betas(**found)).items():
        table = tensors.get(name, computed)
        if table.shape != computed.shape or not np.allclose(table, computed, 1e-3, 1e-6):
            raise InputError(f"{name} is not the table that follows from betas; copy it again")
    return found


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


def _width(tensors: Tensors, *layers: str, multiple: int = 1) -> int:
    """How many features these layers, alike in it, give; InputError if none of them tells.

    Each says it twice, so that one faulty tensor does not hide what the architecture is, which
    would hide the other faults: the bias first, which cannot lie transposed. What is no multiple of
    `multiple` is faulty.
    """
    for name in (f"{layer}.{kind}" for layer in layers for kind in ("bias", "weight")):
        shape = tensors[name].shape if name in tensors else ()
        if shape and 0 not in shape and (name.endswith("weight") or len(shape) == 1):
            if shape[0] % multiple == 0:
                return shape[0]
    raise InputError(
        f"{' and '.join(f'{layer}.weight and .bias' for layer in layers)} are missing or of the "
        "wrong shape; without any of them the architecture is unknown"
    )


def _inputs(tensors: Tensors, name: str, outputs: int) -> int:
    """How many features a linear layer takes; InputError if its weight does not tell it."""
    shape = list(tensors[name].shape) if name in tensors else "nothing"
    size = math.prod(shape) if name in tensors else 0
    if len(shape) != 2 or not size or size % outputs:
        raise InputError(f"{name}: found {shape}, expected [{outputs}, width of the embedding]")
    return size // outputs


def _has(tensors: Tensors, *beginnings: str) -> bool:
    """Whether there is any tensor whose name has one of these beginnings."""
    return any(name.startswith(beginnings) for name in tensors)


def _count(tensors: Tensors, pattern: str) -> int:
    """1 + the largest number that `pattern` catches in a name; 0 without any."""
    found = (re.match(pattern, name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)
