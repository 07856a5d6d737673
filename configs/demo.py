"""The demo: a small embedding-conditioned denoiser of the shipped slide, on a CPU.

    python -m ssl_diffusion.prepare --config=configs/demo.py
    python -m ssl_diffusion.train --config=configs/demo.py --workdir=runs/demo            # U-Net
    python -m ssl_diffusion.train --config=configs/demo.py:dit --workdir=runs/demo_dit    # DiT

`bash launch/demo.sh` runs both commands, samples, stitches and evaluates. Hardware: 2 CPU cores,
about 9 minutes of training; expected numbers are in the README's table.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_diffusion import demo
from ssl_diffusion.data import recipe

# The published U-Net's parts at a small size; the embedding also reaches every residual block
# through the timestep embedding, which a short training learns to use sooner than cross-attention.
UNET = {
    "name": "unet",
    "base_channels": 32,
    "channel_multipliers": (2, 3, 4),
    "blocks_per_level": 1,
    "attention_levels": (1, 2),
    "heads": 4,
    "transformer_depth": 1,
    "out_channels": 6,
    "scale_shift": True,
    "pooled_context": True,
}
DIT = {
    "name": "dit",
    "patch_size": 2,
    "width": 192,
    "depth": 6,
    "heads": 3,
    "out_channels": 6,
    "adaln": "block",
    "pooled_context": True,
}


def get_config(network: str = "unet") -> ConfigDict:
    """`network` is "unet" or "dit"."""
    if network not in ("unet", "dit"):
        raise ValueError(f"configs/demo.py:{network}: expected unet or dit after the colon")
    config = ConfigDict()
    config.task = "denoiser"
    config.init_from = ""  # a model folder to start from, e.g. a converted one; "" starts fresh
    config.seed = 0
    config.steps = 1700
    config.batch_size = 16
    config.accumulation = 1  # parts of the batch, one after the other
    config.log_every = 20
    config.checkpoint_every = 340
    config.keep_checkpoints = 2
    config.sample_every = 850
    config.mesh = ConfigDict({"fsdp": 1})  # devices over which parameters and moments are split

    config.data = ConfigDict(
        recipe.section()
        | {
            "dir": "data/demo",
            "mix": (),  # ((dir, weight), ...) to train on several record sets
            "source": demo.SLIDE,
            "split": demo.SPLIT,
            "patch_px": 64,
            "mpp": 0.5,
            "stride_px": 16,
            "min_saturation": 0.12,
            "encoder": demo.ENCODER,
            "autoencoder": demo.AUTOENCODER,
            "input": "latent",  # or "image": encoded on the device
            "tokens": {"count": 16, "dim": 192},  # the encoder's, where patch_tokens is set
            "embedding": {"tokens": 1, "dim": 192},
            "latent": {"channels": 6, "factor": 4},
            "workers": 0,  # processes that read; 0 reads in the main one
        }
    )
    config.model = ConfigDict(
        {
            "architecture": {"unet": UNET, "dit": DIT}[network],
            "conditioner": {"name": "linear", "width": 192},
            "condition_dropout": 0.1,
            "policy": {"params": "float32", "compute": "float32", "output": "float32"},
            "remat": False,
        }
    )
    config.diffusion = ConfigDict(
        {
            "schedule": {"name": "cosine", "steps": 1000, "zero_terminal_snr": False},
            "prediction": "v",
        }
    )
    config.objective = ConfigDict(
        {"timesteps": {"name": "uniform"}, "min_snr_gamma": placeholder(float), "repa": {}}
    )
    config.sampling = ConfigDict(
        {
            "solver": "dpmpp",
            "steps": 12,
            "guidance": {"unet": 1.5, "dit": 2.0}[network],
            "scheme": "overlap",
            "stride": 8,  # latent pixels between windows: half a window
            "weights": "gaussian",
        }
    )
    config.optimizer = ConfigDict(
        {
            "learning_rate": {"unet": 1e-3, "dit": 7e-4}[network],
            "warmup_steps": 100,
            "decay": "cosine",
            "weight_decay": 0.01,
            "b2": 0.99,
            "clip_norm": 1.0,
        }
    )
    config.ema = ConfigDict({"sigma_rel": (0.05, 0.15), "used": 0.05, "snapshot_every": 425})
    return config
