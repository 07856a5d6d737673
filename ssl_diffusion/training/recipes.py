"""What the configurations of published runs have in common; each config fills in its own."""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_diffusion import demo
from ssl_diffusion.data import recipe
from ssl_diffusion.errors import InputError

NETWORKS = ("unet", "dit")
# Graikos et al. 2024: the U-Net of the ImageNet LDM of Rombach et al. 2022, 400.9 M parameters.
UNET = {
    "name": "unet",
    "base_channels": 192,
    "channel_multipliers": (1, 2, 3, 5),
    "blocks_per_level": 2,
    "attention_levels": (1, 2, 3),
    "heads": 1,
    "transformer_depth": 1,
    "out_channels": 3,
}
# A transformer that costs about as much as the U-Net on latents of 64x64.
DIT = {
    "name": "dit",
    "patch_size": 2,
    "width": 768,
    "depth": 12,
    "heads": 12,
    "out_channels": 3,
    "interpolation_scale": 2.0,
}
# PixArt's transformer, as the pan-cancer model PixCell-256 (arXiv 2506.05127) has it; it predicts a
# variance after the mean.
DIT_XL = {
    "name": "dit",
    "patch_size": 2,
    "width": 1152,
    "depth": 28,
    "heads": 16,
    "out_channels": 32,
    "interpolation_scale": 0.5,
}
LOCAL = {
    "unet": {"base_channels": 32, "channel_multipliers": (1, 1), "attention_levels": (1,)}
    | {"blocks_per_level": 1},
    "dit": {"width": 64, "depth": 2, "heads": 2, "interpolation_scale": 0.5},
}


def read_argument(argument: str) -> tuple[str, bool]:
    """(network, whether to run locally) from what follows a config's colon, as "dit,runlocal".

    Raises InputError for other words.
    """
    words = [word for word in argument.split(",") if word]
    networks = [word for word in words if word in NETWORKS]
    if len(networks) > 1 or not {*words} <= {*NETWORKS, "runlocal"}:
        raise InputError(
            f"config argument {argument!r}, expected unet or dit, runlocal, or both by a comma"
        )
    return (networks or ["unet"])[0], "runlocal" in words


def published(network: str) -> ConfigDict:
    """The published training of VQ-f4 latents [64, 64, 3] of 256 px patches, by either network.

    AdamW at 1e-4 after 1,000 steps of warm-up, a batch of six devices of 100, the condition dropped
    for 10 % of the examples (Graikos et al. 2024, sec. 3.1 and 4). Ours: averages of the weights,
    clipping, and for the transformer flow matching (Esser et al. 2024, arXiv 2403.03206).
    """
    config = ConfigDict()
    config.task = "denoiser"
    config.init_from = ""  # a model folder to start from, e.g. a converted one; "" starts fresh
    config.seed = 0
    config.steps = 250_000
    config.batch_size = 600
    config.accumulation = 1  # parts of the batch, one after the other
    config.log_every = 100
    config.checkpoint_every = 5_000
    config.keep_checkpoints = 3
    config.sample_every = 5_000
    config.mesh = ConfigDict({"fsdp": 1})  # devices over which parameters and moments are split

    config.data = ConfigDict(
        recipe.section()
        | {
            "dir": "",
            "mix": (),  # ((dir, weight), ...) to train on several record sets
            "source": "",
            "instructions": "",
            "split": "folders",  # train, val and test
            "patch_px": 256,
            "mpp": 0.5,
            "stride_px": 256,
            "min_saturation": 0.07,
            "autoencoder": "weights/vq_f4",
            "input": "latent",  # or "image": encoded on the device
            "variants": 2,  # a training patch and its mirror image
            "tokens": {"count": 256, "dim": 768},  # the encoder's, where patch_tokens is set
            "embedding": {"tokens": 1, "dim": 768},
            "latent": {"channels": 3, "factor": 4},
            "workers": 8,
        }
    )
    config.model = ConfigDict(
        {
            "architecture": dict({"unet": UNET, "dit": DIT}[network]),
            "conditioner": {"name": "linear", "width": 512},
            "condition_dropout": 0.1,
            "policy": {"params": "float32", "compute": "bfloat16", "output": "float32"},
            "remat": False,
        }
    )
    ldm_linear = {"name": "ldm_linear", "steps": 1000, "beta_start": 0.0015, "beta_end": 0.0195}
    ldm_linear["zero_terminal_snr"] = False
    config.diffusion = ConfigDict(
        {
            "unet": {"schedule": ldm_linear, "prediction": "eps"},
            "dit": {"schedule": {"name": "flow", "steps": 1000}, "prediction": "flow"},
        }[network]
    )
    timesteps = {"unet": {"name": "uniform"}, "dit": {"name": "logit_normal", "mean": 0.0}}
    config.objective = ConfigDict(
        {"timesteps": timesteps[network], "min_snr_gamma": placeholder(float), "repa": {}}
    )
    config.sampling = ConfigDict({"steps": 50, "guidance": 2.0, "stride": 32})
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-4,
            "warmup_steps": 1_000,
            "decay": "constant",
            "weight_decay": 0.01,
            "b2": 0.999,
            "clip_norm": 1.0,
        }
    )
    config.ema = ConfigDict({"sigma_rel": (0.05, 0.10), "used": 0.05, "snapshot_every": 10_000})
    return config


def run_locally(config: ConfigDict) -> ConfigDict:
    """The same run as a minute on a CPU: a small network of the same kind, the shipped slide.

    Encoder and autoencoder are the demo's; what the config says of the process stays. What the
    data come from is the command at the end of its instructions, with `:runlocal`.
    """
    local: dict[str, Any] = LOCAL[config.model.architecture.name]
    channels = 6
    learned = config.model.architecture.out_channels // config.data.latent.channels
    config.model.architecture.update(local | {"out_channels": channels * learned})
    config.model.conditioner.width = 64
    if config.model.conditioner.name == "tokens":
        config.model.conditioner.grid = 16 // config.model.architecture.patch_size
    config.model.policy.compute = "float32"
    config.steps, config.batch_size, config.sampling.steps = 40, 8, 4
    config.log_every, config.checkpoint_every, config.sample_every = 5, 20, 40
    config.optimizer.warmup_steps, config.ema.snapshot_every = 5, 20
    config.data.update(
        {
            "dir": f"data/runlocal_{config.data.variants}_{int(config.data.posterior)}",
            "source": demo.SLIDE,
            "instructions": f"Run: {config.data.instructions.rpartition(': ')[2]}:runlocal",
            "split": demo.SPLIT,
            "patch_px": 64,
            "mpp": 0.5,
            "source_mpp": None,
            "stride_px": 64,
            "min_saturation": 0.12,
            "encoder": demo.ENCODER,
            "autoencoder": demo.AUTOENCODER,
            "tokens": {"count": 16, "dim": 192},
            "embedding": {"tokens": 1, "dim": 192},
            "latent": {"channels": channels, "factor": 4},
            "workers": 0,
        }
    )
    config.sampling.stride = 8
    return config
