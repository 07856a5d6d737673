"""The diffusers layout: PixArt-style transformers and KL autoencoders, each beside a config.json.

The transformer is PixArt-alpha's (Chen et al. 2023, arXiv 2310.00426) with image embeddings for
captions; the autoencoder is that of Rombach et al. 2022 under other names.
"""

from collections.abc import Mapping
from typing import Any

from ssl_diffusion.diffusion.schedule import with_defaults
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.weights.naming import Naming, patches

TOKEN_PROJECTION = Naming(
    prefix="caption_projection.",
    rules=((r"^projection/", ""), (r"^null$", "uncond_embedding")),
)
# Position tables, which both sides compute; a file may hold them.
COMPUTED = ("pos_embed.pos_embed", "y_pos_embed.y_pos_embed")


def transformer(patch_size: int) -> Naming:
    """The table of a transformer with patches of that many latent pixels."""
    return Naming(
        rules=(
            (r"^time_embed/", "adaln_single/emb/timestep_embedder/"),
            (r"^adaln_single/(kernel|bias)", r"adaln_single/linear/\1"),
            (r"^patch_embed/", "pos_embed/proj/"),
            (r"^transformer_blocks_(\d+)", r"transformer_blocks/\1"),
            (r"/to_out/", "/to_out/0/"),
            (r"/ff/linear_1/", "/ff/net/0/proj/"),
            (r"/ff/linear_2/", "/ff/net/2/"),
        ),
        transforms=((r"^patch_embed/kernel$", patches(patch_size)),),
    )


def first_stage(levels: int) -> Naming:
    """The table of an autoencoder of that many levels, which its decoder numbers from the last."""
    ups = []
    for level in range(levels):
        block = f"/up_blocks/{levels - 1 - level}"
        ups += [
            (rf"/up_{level}_block_", f"{block}/resnets/"),
            (rf"/upsample_{level}/", f"{block}/upsamplers/0/conv/"),
        ]
    return Naming(
        rules=(
            *ups,
            (r"/down_(\d+)_block_", r"/down_blocks/\1/resnets/"),
            (r"/downsample_(\d+)/", r"/down_blocks/\1/downsamplers/0/conv/"),
            (r"/mid/block_1/", "/mid_block/resnets/0/"),
            (r"/mid/block_2/", "/mid_block/resnets/1/"),
            (r"/mid/attn_1_norm/", "/mid_block/attentions/0/group_norm/"),
            (r"/mid/attn_1/", "/mid_block/attentions/0/"),
            (r"/to_out/", "/to_out/0/"),
            (r"/nin_shortcut/", "/conv_shortcut/"),
            (r"/norm_out/", "/conv_norm_out/"),
        )
    )


def newer_name(name: str) -> str:
    """The name that a vae's tensor has in newer files: attention was spelt otherwise before."""
    spelt = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    for old, new in spelt.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def dit_architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The DiT's fields from a transformer's config.json; InputError if ours cannot be that one."""
    width = _width(config)
    _expect(
        config,
        "transformer",
        {
            "cross_attention_dim": (width,),
            "use_additional_conditions": (False, None),
            "norm_type": ("ada_norm_single", None),
            "activation_fn": ("gelu-approximate", None),
            "attention_bias": (True, None),
            "norm_elementwise_affine": (False, None),
            "norm_eps": (1e-6, None),
        },
    )
    # Not given, it is how many 64s the latent's side has.
    scale = config.get("interpolation_scale") or max(_int(config, "sample_size") // 64, 1)
    return {
        "name": "dit",
        "patch_size": _int(config, "patch_size"),
        "width": width,
        "depth": _int(config, "num_layers"),
        "heads": _int(config, "num_attention_heads"),
        "out_channels": _int(config, "out_channels"),
        "interpolation_scale": scale,
    }


def conditioner_architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The conditioner's fields from a transformer's config.json."""
    grid = _int(config, "sample_size") // _int(config, "patch_size")
    return {"name": "tokens", "width": _width(config), "grid": grid}


def embedding_shape(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> tuple[int, int]:
    """(tokens, width) of the embedding: the config's, else the null embedding's."""
    null = tensors.get(f"{TOKEN_PROJECTION.prefix}uncond_embedding")
    if "caption_num_tokens" not in config and null is not None and null.ndim == 2:
        return null.shape
    return _int(config, "caption_num_tokens"), _int(config, "caption_channels")


def autoencoder_architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """`Autoencoder`'s fields from a vae's config.json; InputError if ours cannot be that one."""
    true_if_absent = ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
    config = dict.fromkeys(true_if_absent, True) | dict(config)
    widths = config.get("block_out_channels")
    if not isinstance(widths, list) or not all(type(width) is int for width in widths):
        raise InputError(f"vae config: block_out_channels is {widths!r}, expected a list of widths")
    base, levels = next(iter(widths), 0), len(widths)
    if base < 1 or any(width % base for width in widths):
        raise InputError(
            f"vae config: block_out_channels is {widths}, expected multiples of the first"
        )
    _expect(
        config,
        "vae",
        {
            "in_channels": (3, None),
            "out_channels": (3, None),
            "norm_num_groups": (32, None),
            "act_fn": ("silu", None),
            "down_block_types": (["DownEncoderBlock2D"] * levels,),
            "up_block_types": (["UpDecoderBlock2D"] * levels,),
            "use_post_quant_conv": (config["use_quant_conv"],),  # both or none
        },
    )
    return {
        "base_channels": base,
        "channel_multipliers": [width // base for width in widths],
        "blocks_per_level": _int(config, "layers_per_block"),
        "latent_channels": _int(config, "latent_channels"),
        "middle_attention": config["mid_block_add_attention"],
        "quant_convs": config["use_quant_conv"],
    }


def diffusion(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Our `diffusion` section from a scheduler_config.json; InputError for another process."""
    schedules = {"linear": "linear", "scaled_linear": "ldm_linear"}
    predictions = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    _expect(
        scheduler,
        "scheduler",
        {
            "beta_schedule": (*schedules, None),
            "prediction_type": (*predictions, None),
            "trained_betas": (None,),
            "rescale_betas_zero_snr": (True, False, None),
            "use_flow_sigmas": (False, None),
        },
    )
    schedule = {
        "name": schedules[scheduler.get("beta_schedule") or "linear"],
        "steps": scheduler.get("num_train_timesteps", 1000),
        "beta_start": scheduler.get("beta_start", 0.0001),
        "beta_end": scheduler.get("beta_end", 0.02),
    }
    if scheduler.get("rescale_betas_zero_snr"):
        schedule["zero_terminal_snr"] = True
    prediction = predictions[scheduler.get("prediction_type") or "epsilon"]
    return {"schedule": schedule, "prediction": prediction}


def scheduler_config(diffusion: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `diffusion`; InputError for what diffusers has no name for."""
    schedule = diffusion["schedule"]
    names = {"linear": "linear", "ldm_linear": "scaled_linear"}
    if schedule["name"] not in names:
        raise InputError(
            f"the diffusers layout cannot hold a {schedule['name']!r} schedule; train with one of "
            f"{', '.join(names)}"
        )
    predictions = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    if diffusion["prediction"] not in predictions:
        raise InputError(
            f"the diffusers layout cannot hold prediction {diffusion['prediction']!r} with betas; "
            f"train with one of {', '.join(predictions)}"
        )
    schedule = with_defaults(schedule)
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule["steps"],
        "beta_schedule": names[schedule["name"]],
        "prediction_type": predictions[diffusion["prediction"]],
        "beta_start": schedule["beta_start"],
        "beta_end": schedule["beta_end"],
        "rescale_betas_zero_snr": schedule["zero_terminal_snr"],
        "clip_sample": False,
    }


def transformer_config(spec: Mapping[str, Any], autoencoder: Autoencoder) -> dict[str, Any]:
    """A transformer's config.json from the model.json of a DiT and its first stage."""
    architecture, embedding = spec["architecture"], spec["embedding"]
    width, heads = architecture["width"], architecture["heads"]
    return {
        "_class_name": "PixArtTransformer2DModel",
        "in_channels": autoencoder.latent_channels,
        "out_channels": architecture["out_channels"],
        "patch_size": architecture["patch_size"],
        "num_layers": architecture["depth"],
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "cross_attention_dim": width,
        "caption_channels": embedding["dim"],
        "caption_num_tokens": embedding["tokens"],
        "sample_size": spec["patch_px"] // autoencoder.factor,
        "interpolation_scale": architecture.get("interpolation_scale", 1.0),
        "use_additional_conditions": False,
    }


def autoencoder_config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A vae's config.json from the model.json of an autoencoder."""
    architecture, latent = spec["architecture"], spec["latent"]
    base, multipliers = architecture["base_channels"], architecture["channel_multipliers"]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * len(multipliers),
        "up_block_types": ["UpDecoderBlock2D"] * len(multipliers),
        "block_out_channels": [base * multiplier for multiplier in multipliers],
        "layers_per_block": architecture["blocks_per_level"],
        "latent_channels": architecture["latent_channels"],
        "norm_num_groups": 32,
        "act_fn": "silu",
        "mid_block_add_attention": architecture.get("middle_attention", True),
        "use_quant_conv": architecture.get("quant_convs", True),
        "use_post_quant_conv": architecture.get("quant_convs", True),
        "scaling_factor": latent["scale"],
        "shift_factor": latent["shift"],
    }


def _width(config: Mapping[str, Any]) -> int:
    return _int(config, "num_attention_heads") * _int(config, "attention_head_dim")


def _int(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise InputError(f"config.json: {key} is {value!r}, expected a positive whole number")
    return value


def _expect(config: Mapping[str, Any], what: str, allowed: Mapping[str, tuple]) -> None:
    """InputError naming every field that has none of its allowed values (None: absent)."""
    wrong = [
        f"{key} is {config.get(key)!r}, expected {values[0]!r}"
        for key, values in allowed.items()
        if config.get(key) not in values
    ]
    if wrong:
        raise InputError(
            f"{what} config: {'; '.join(wrong)}; no network here computes what this one does"
        )
