"""The DiT-XL of the pan-cancer model PixCell-256 (arXiv 2506.05127): PixArt's transformer.

    python -m ssl_diffusion.prepare --config=configs/pancancer.py
    python -m ssl_diffusion.train --config=configs/pancancer.py[:runlocal] --workdir=runs/pancancer

28 blocks of width 1152, 605 M parameters, 237 GFLOP a forward; latents 32x32x16 of Stable
Diffusion 3's KL-f8, whose posterior is drawn afresh for every example; embeddings of UNI2-h, one
token of 1536. The learned variance of the published network is carried along untrained.
Expected of this config: nothing has been trained with it at full size yet.
Data: slides of many cancers at 20x (the paper's: TCGA, CPTAC, GTEx and more, 30 M patches of
256 px). The published schedule is linear, 1,000 steps, eps.
Hardware: a TPU slice or several hosts of GPUs, see launch/README.md. 200,000 steps of 1,024 are
205 M images and 146 EFLOP: expected 14 h on 8 H100 at 45 % of 790 TFLOP/s.
"""

from ml_collections import ConfigDict

from ssl_diffusion.errors import InputError
from ssl_diffusion.training.recipes import DIT_XL, published, read_argument, run_locally

INSTRUCTIONS = (
    "The data set is yours: put slides into data/pancancer/slides/{train,val,test}/, split by "
    "patient; convert UNI2-h into weights/uni2h and Stable Diffusion 3's autoencoder into "
    "weights/sd3_vae (README, Published models); then run: "
    "python -m ssl_diffusion.prepare --config=configs/pancancer.py"
)


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is dit, and runlocal: by commas. There is no U-Net of this model."""
    network, local = read_argument(argument)
    if network == "unet" and "unet" in argument:
        raise InputError("configs/pancancer.py is a transformer: leave unet out")
    config = published("dit")
    config.steps, config.batch_size = 200_000, 1024
    config.data.update(
        {
            "dir": "data/pancancer/records",
            "source": "data/pancancer/slides",
            "instructions": INSTRUCTIONS,
            "encoder": "weights/uni2h",
            "autoencoder": "weights/sd3_vae",
            "posterior": True,
            "tokens": {"count": 256, "dim": 1536},
            "embedding": {"tokens": 1, "dim": 1536},
            "latent": {"channels": 16, "factor": 8},
        }
    )
    config.model.architecture = dict(DIT_XL)
    config.model.conditioner = {"name": "tokens", "width": 1152, "grid": 16}
    linear = {"name": "linear", "steps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
    linear["zero_terminal_snr"] = False
    config.diffusion = {"schedule": linear, "prediction": "eps"}
    config.objective.timesteps = {"name": "uniform"}
    config.sampling.update({"steps": 20, "stride": 16})
    return run_locally(config) if local else config
