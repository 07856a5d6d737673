"""NAIP aerial images at 1 m per pixel: Graikos et al. 2024 (arXiv 2312.07330), table 1, row NAIP.

    python -m ssl_diffusion.prepare --config=configs/naip.py
    python -m ssl_diffusion.train --config=configs/naip.py[:dit][,runlocal] --workdir=runs/naip

Reported: FID 11.5 of patches; of 1024 px images CLIP-FID 6.86, Crop-FID 43.76. Expected of this
config: nothing has been trained with it at full size yet.
Data: NAIP tiles of the Chesapeake land cover data set, RGB, 256 px at 1 m per pixel (mpp counts µm:
1e6). First stage VQ-f4; embeddings of a ViT-B/16, one token of 768.
Hardware: the paper's batch is 256 per device; on six devices 1,536, which divides among 256 chips.
50,000 steps are 77 M images and, of the U-Net, 48 EFLOP: expected 4.7 h on 8 H100 at 45 % of 790
TFLOP/s.
"""

from ml_collections import ConfigDict

from ssl_diffusion.training.recipes import published, read_argument, run_locally

INSTRUCTIONS = (
    "The data set is NAIP: download the tiles of the Chesapeake land cover data set "
    "(https://lila.science/datasets/chesapeakelandcover) as RGB PNG or TIFF into "
    "data/naip/images/{train,val,test}/, split by tile; convert a ViT-B/16 into weights/vitb16 and "
    "the VQ-f4 first stage into weights/vq_f4 (README, Published models); then run: "
    "python -m ssl_diffusion.prepare --config=configs/naip.py"
)


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is unet or dit, and runlocal: by commas."""
    network, local = read_argument(argument)
    config = published(network)
    config.steps, config.batch_size = 50_000, 1536
    config.data.update(
        {
            "dir": "data/naip/records",
            "source": "data/naip/images",
            "instructions": INSTRUCTIONS,
            "mpp": 1e6,
            "source_mpp": 1e6,
            "min_saturation": 0.0,  # all of an aerial image is data
            "encoder": "weights/vitb16",
        }
    )
    return run_locally(config) if local else config
