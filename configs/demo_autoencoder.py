"""The demo's first stage: a small KL-f4 autoencoder of the shipped slide's training patches.

    python -m ssl_diffusion.prepare --config=configs/demo_autoencoder.py
    python -m ssl_diffusion.train --config=configs/demo_autoencoder.py \
        --workdir=runs/demo_autoencoder
    cp -r runs/demo_autoencoder/model/. ssl_diffusion/demo/autoencoder/

Hardware: 2 CPU cores, expected a quarter of an hour. Measured: PSNR 26.7 dB on the 130 held-out
patches, each as its mean colour 14.3 dB (README).
"""

from ml_collections import ConfigDict

from ssl_diffusion import demo
from ssl_diffusion.data import recipe


def get_config() -> ConfigDict:
    """Autoencoder f4, 4 channels, 64 px patches."""
    config = ConfigDict()
    config.task = "autoencoder"
    config.seed = 0
    config.steps = 4000
    config.batch_size = 4
    config.accumulation = 1
    config.log_every = 50
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2
    config.sample_every = 2000
    config.mesh = ConfigDict({"fsdp": 1})

    config.data = ConfigDict(
        recipe.section()
        | {
            "dir": "data/demo_patches",
            "mix": (),
            "source": demo.SLIDE,
            "split": demo.SPLIT,
            "patch_px": 64,
            "mpp": 0.5,
            "stride_px": 16,
            "min_saturation": 0.12,
            "workers": 0,  # processes that read; 0 reads in the main one
        }
    )
    config.model = ConfigDict(
        {
            "architecture": {
                "base_channels": 32,
                "channel_multipliers": (1, 1, 2),
                "blocks_per_level": 1,
                "latent_channels": 6,
                # Large images are decoded in tiles: without attention over all positions a tile's
                # inside depends on little outside it.
                "middle_attention": False,
            },
            "kl_weight": 1e-5,
        }
    )
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-3,
            "warmup_steps": 100,
            "decay": "cosine",
            "weight_decay": 1e-4,
            "b2": 0.99,
            "clip_norm": 1.0,
        }
    )
    config.ema = ConfigDict({"sigma_rel": (0.05, 0.15), "used": 0.05, "snapshot_every": 0})
    return config
