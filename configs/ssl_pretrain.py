"""An SSL encoder of your own: a small ViT by self-distillation on your own patches (DINO).

    python -m ssl_diffusion.prepare --config=configs/ssl_pretrain.py
    python -m ssl_diffusion.train --config=configs/ssl_pretrain.py --workdir=runs/ssl_pretrain
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_diffusion import demo
from ssl_diffusion.encoders.augment import STRONG


def get_config() -> ConfigDict:
    """ViT of width 192 with a convolutional stem, 64 px patches."""
    config = ConfigDict()
    config.task = "dino"
    config.seed = 0
    config.steps = 700
    config.batch_size = 64
    config.accumulation = 1
    config.log_every = 10
    config.checkpoint_every = 200
    config.keep_checkpoints = 2
    config.sample_every = 100_000  # there is nothing to picture
    config.mesh = ConfigDict({"fsdp": 1})

    config.data = ConfigDict(
        {
            "dir": "data/ssl_pretrain",
            "mix": (),
            "images": demo.SLIDE,
            "split": demo.SPLIT,
            "patch_px": 64,
            "mpp": 0.5,
            "source_mpp": placeholder(float),  # for images that do not say it
            "stride_px": 16,
            "min_saturation": 0.12,
            "encoder": "",
            "autoencoder": "",
            "workers": 0,  # processes that read; 0 reads in the main one
        }
    )
    config.model = ConfigDict(
        {
            "architecture": {
                "image_size": 64,
                "patch_size": 16,
                "width": 192,
                "depth": 4,
                "heads": 3,
                "stem": "conv",
                "pooling": "mean",
            },
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "head": {"hidden": 512, "bottleneck": 128, "prototypes": 1024, "frozen_steps": 50},
            "distillation": {
                "global_area": (0.4, 1.0),
                "local_area": (0.15, 0.4),
                "local_count": 4,
                "local_px": 32,
                "student_temperature": 0.1,
                "teacher_temperature": (0.04, 0.07),
                "temperature_steps": 300,
                "teacher_momentum": 0.98,
                "centre_momentum": 0.9,
                "crowding_weight": 0.1,
            },
            # Of every crop; its area is that of `distillation`.
            "augmentation": {name: value for name, value in STRONG.items() if name != "crop"},
            "judged_by": dict(STRONG),
        }
    )
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-3,
            "warmup_steps": 70,
            "decay": "cosine",
            "weight_decay": 0.05,
            "b2": 0.98,
            "clip_norm": 1.0,
        }
    )
    config.ema = ConfigDict({"sigma_rel": (0.05, 0.15), "used": 0.05, "snapshot_every": 0})
    return config
