"""BRACS (Brancati et al. 2022) at 20x: the counterpart of the paper's BRCA 20x.

    python -m ssl_diffusion.prepare --config=configs/bracs.py
    python -m ssl_diffusion.train --config=configs/bracs.py[:dit][,runlocal] --workdir=runs/bracs

Reported: Graikos et al. 2024 (arXiv 2312.07330), table 1, have FID 6.98 for patches of TCGA-BRCA at
20x, and nothing for BRACS. Expected of this config: nothing has been trained with it at full size
yet.
Data: the regions of interest (PNG, 40x, 0.25 µm/px) of https://www.bracs.icar.cnr.it, resampled to
0.5 µm/px, 256 px patches without overlap. First stage VQ-f4 (latents 64x64x3); embeddings of HIPT's
ViT-S/16 (one token of 384), another encoder by `--config.data.encoder=DIR` and
`--config.data.embedding.dim`.
Hardware: one host of 8 GPUs of 80 GB or 8 TPU chips, see launch/README.md. 200,000 steps of 256 are
51 M images and, of the U-Net, 32 EFLOP: expected 3.1 h on 8 H100 at 45 % of 790 TFLOP/s.
"""

from ml_collections import ConfigDict

from ssl_diffusion.training.recipes import published, read_argument, run_locally

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


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is unet or dit, and runlocal: by commas."""
    network, local = read_argument(argument)
    config = published(network)
    config.steps, config.batch_size = 200_000, 256
    config.data.update(
        {
            "dir": "data/bracs/records",
            "source": "data/bracs/BRACS_RoI/latest_version",
            "instructions": INSTRUCTIONS,
            "source_mpp": 0.25,  # the PNGs do not say it
            "encoder": "weights/hipt",
            "tokens": {"count": 256, "dim": 384},
            "embedding": {"tokens": 1, "dim": 384},
        }
    )
    return run_locally(config) if local else config
