"""TCGA-CRC at 20x: Graikos et al. 2024 (arXiv 2312.07330), table 1, the row CRC 20x.

    python -m ssl_diffusion.prepare --config=configs/tcga_crc_20x.py
    python -m ssl_diffusion.train --config=configs/tcga_crc_20x.py[:dit][,runlocal] \
        --workdir=runs/crc_20x

Reported: FID 6.78 of patches; of 1024 px images CLIP-FID 7.34, Crop-FID 8.8. Expected of this
config: nothing has been trained with it at full size yet.
Data: the diagnostic slides of TCGA-COAD and TCGA-READ (https://portal.gdc.cancer.gov), 256 px at
0.5 µm/px. First stage VQ-f4; embeddings of iBOT's ViT-B/16, one token of 768.
Hardware: as configs/tcga_brca_20x.py. 200,000 steps of 600 are 120 M images and, of the U-Net, 75
EFLOP: expected 7.3 h on 8 H100 at 45 % of 790 TFLOP/s.
"""

from ml_collections import ConfigDict

from ssl_diffusion.training.recipes import published, read_argument, run_locally

INSTRUCTIONS = (
    "The data set is TCGA-CRC: download the diagnostic slides (.svs) of projects TCGA-COAD and "
    "TCGA-READ from https://portal.gdc.cancer.gov into data/tcga_crc/slides/{train,val,test}/, "
    "split by patient; convert an iBOT ViT-B/16 into weights/ibot and the VQ-f4 first stage into "
    "weights/vq_f4 (README, Published models); then run: "
    "python -m ssl_diffusion.prepare --config=configs/tcga_crc_20x.py"
)


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is unet or dit, and runlocal: by commas."""
    network, local = read_argument(argument)
    config = published(network)
    config.steps = 200_000
    config.data.update(
        {
            "dir": "data/tcga_crc/records",
            "source": "data/tcga_crc/slides",
            "instructions": INSTRUCTIONS,
            "encoder": "weights/ibot",
        }
    )
    return run_locally(config) if local else config
