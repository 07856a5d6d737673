"""An SSL encoder of your own: a small ViT by self-distillation on your own patches.

DINO: Caron et al. 2021, "Emerging properties in self-supervised vision transformers", arXiv
2104.14294, and the term of DINOv2 (Oquab et al. 2023, arXiv 2304.07193) that keeps embeddings
apart. As it stands it learns from the training patches of the shipped slide.

    python -m ssl_diffusion.prepare --config=configs/ssl_pretrain.py
    python -m ssl_diffusion.train --config=configs/ssl_pretrain.py --workdir=runs/ssl_pretrain

Hardware: 2 CPU cores, with the settings of `launch/environment.sh`. Measured: 16 minutes on cores
shared with other work; a strongly augmented patch finds itself among the 130 held-out ones in
39.0 +- 2.7 % of the cases, with the same network untrained in 5.8 %, by its colours in 6.9 %. So
few images (64,000 seen) are few for DINO: contrast of two views, configs/demo_encoder.py, comes to
90 % in as long, and is the one to take where patches are few.

Your own slides, with the same words after both commands (`split` empty: the folder has `train/` and
`test/`; or the name of a file that `prepare` is to write):

    --config.data.source=slides --config.data.split=split.json --config.data.dir=data/own \
    --config.data.patch_px=256 --config.data.stride_px=256 \
    --config.model.architecture.image_size=256 --config.model.distillation.local_px=96

A ViT-S/16 of the paper: in `architecture` width 384, depth 12, heads 6, stem patch, pooling class;
in `head` hidden 2048, bottleneck 256, prototypes 65536; in `distillation` local_count 8 and the
areas (0.25, 1) and (0.05, 0.25), teacher_momentum 0.996, teacher_temperature (0.04, 0.07) over
the steps of 30 epochs; a batch of 1024 and a learning rate of 5e-4 for each 256 of it. It wants
accelerators, and a million patches rather than thousands.
"""

from ml_collections import ConfigDict

from ssl_diffusion import demo
from ssl_diffusion.data import recipe
from ssl_diffusion.encoders.augment import STRONG


def get_config() -> ConfigDict:
    """ViT of width 192 with a convolutional stem, 64 px patches."""
    config = ConfigDict()
    config.task = "dino"
    config.seed = 0
    config.steps = 1000
    config.batch_size = 64
    config.accumulation = 1
    config.log_every = 10
    config.checkpoint_every = 150
    config.keep_checkpoints = 2
    config.sample_every = 100_000  # there is nothing to picture
    config.mesh = ConfigDict({"fsdp": 1})

    config.data = ConfigDict(
        recipe.section()
        | {
            "dir": "data/ssl_pretrain",
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
                # From the first to the second over so many steps: short runs do without.
                "teacher_temperature": (0.04, 0.04),
                "temperature_steps": 0,
                "teacher_momentum": 0.99,  # at first; the paper's 0.996 is for longer runs
                "centre_momentum": 0.9,
                "crowding_weight": 0.2,
            },
            # Of every crop; its area is that of `distillation`.
            "augmentation": {name: value for name, value in STRONG.items() if name != "crop"},
            "judged_by": dict(STRONG),
        }
    )
    config.optimizer = ConfigDict(
        {
            "learning_rate": 5e-4,
            "warmup_steps": 50,
            "decay": "cosine",
            "weight_decay": 0.05,
            "b2": 0.98,
            "clip_norm": 1.0,
        }
    )
    config.ema = ConfigDict({"sigma_rel": (0.05, 0.15), "used": 0.05, "snapshot_every": 0})
    return config
