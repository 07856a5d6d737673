"""BRACS (Brancati et al. 2022) at 20x: the full-size U-Net of Graikos et al. 2024, table 1.

    python -m ssl_diffusion.prepare --config=configs/bracs.py \
        --config.data.encoder=weights/hipt --config.data.autoencoder=weights/vq_f4
    python -m ssl_diffusion.train --config=configs/bracs.py --workdir=runs/bracs

Data: the regions of interest (PNG, 40x, 0.25 µm/px) of https://www.bracs.icar.cnr.it, resampled to
0.5 µm/px, 256 px patches. First stage VQ-f4 (latents 64x64x3); embeddings of HIPT's ViT-S/16 (one
token of 384), another encoder by `--config.data.encoder=DIR`. U-Net of 400.9 M parameters, 208.5
GFLOP a forward.

Hardware: written for one host of TPUs or 8 GPUs of 80 GB; nothing has been measured with it yet.
The paper reports FID 6.98 for its TCGA-BRCA 20x model, which this one is the BRACS counterpart of;
none for BRACS.
"""

from ml_collections import ConfigDict

INSTRUCTIONS = (
    "The data set is BRACS (regions of interest, https://www.bracs.icar.cnr.it, registration "
    "needed): download BRACS_RoI and unpack it so that "
    "data/bracs/BRACS_RoI/latest_version/{train,val,test}/ exist; put the model folders of a HIPT "
    "ViT-S/16 encoder into weights/hipt and of a VQ-f4 autoencoder into weights/vq_f4, converted "
    "from the published checkpoints (python -m ssl_diffusion.convert --input=vit256_small_dino.pth "
    "--image_size=256 --mean=0.5,0.5,0.5 --std=0.5,0.5,0.5 --output=weights/hipt; "
    "python -m ssl_diffusion.convert --input=vq-f4.ckpt --output=weights/vq_f4) or trained here; "
    "then run: python -m ssl_diffusion.prepare --config=configs/bracs.py"
)


def get_config() -> ConfigDict:
    """The published size; no argument."""
    config = ConfigDict()
    config.task = "denoiser"
    config.init_from = ""  # a model folder to start from, e.g. a converted one; "" starts fresh
    config.seed = 0
    config.steps = 300_000
    config.batch_size = 256
    config.log_every = 100
    config.checkpoint_every = 5_000
    config.keep_checkpoints = 3
    config.sample_every = 5_000

    config.data = ConfigDict(
        {
            "dir": "data/bracs/records",
            "images": "data/bracs/BRACS_RoI/latest_version",
            "instructions": INSTRUCTIONS,
            "split": "",  # the folders train, val and test are the split
            "patch_px": 256,
            "mpp": 0.5,
            "source_mpp": 0.25,  # the PNGs do not say it
            "stride_px": 256,
            "min_saturation": 0.07,
            "encoder": "weights/hipt",
            "autoencoder": "weights/vq_f4",
            "workers": 8,
        }
    )
    config.model = ConfigDict(
        {
            "architecture": {
                "name": "unet",
                "base_channels": 192,
                "channel_multipliers": (1, 2, 3, 5),
                "blocks_per_level": 2,
                "attention_levels": (1, 2, 3),
                "heads": 1,
                "transformer_depth": 1,
                "out_channels": 3,
            },
            "conditioner": {"name": "linear", "width": 512},
            "condition_dropout": 0.1,
            "policy": {"params": "float32", "compute": "bfloat16", "output": "float32"},
        }
    )
    config.diffusion = ConfigDict(
        {
            "schedule": {
                "name": "ldm_linear",
                "steps": 1000,
                "beta_start": 0.0015,
                "beta_end": 0.0195,
            },
            "prediction": "eps",
        }
    )
    config.sampling = ConfigDict({"steps": 50, "guidance": 2.0, "stride": 32})
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-4,
            "warmup_steps": 1_000,
            "weight_decay": 0.01,
            "b2": 0.999,
            "clip_norm": 1.0,
            "ema_decay": 0.9999,
        }
    )
    return config
