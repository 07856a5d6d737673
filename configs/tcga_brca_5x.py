"""TCGA-BRCA at 5x: Graikos et al. 2024 (arXiv 2312.07330), table 1, the row BRCA 5x.

    python -m ssl_diffusion.prepare --config=configs/tcga_brca_5x.py
    python -m ssl_diffusion.train --config=configs/tcga_brca_5x.py[:dit][,runlocal] \
        --workdir=runs/brca_5x

Reported: FID 9.74 of patches; CLIP-FID 6.64 of 1024 px images. Expected of this config: nothing has
been trained with it at full size yet.
Data: as configs/tcga_brca_20x.py at 2 µm/px, a sixteenth of its patches: about 1 M. First stage
VQ-f4. Embeddings are CTransPath's, one token of 768: it takes 224 px, to which the patches of
256 px are resized.
Hardware: as configs/tcga_brca_20x.py. 100,000 steps of 600 are 60 M images and, of the U-Net, 38
EFLOP: expected 3.7 h on 8 H100 at 45 % of 790 TFLOP/s.
"""

from ml_collections import ConfigDict

from ssl_diffusion.training.recipes import published, read_argument, run_locally

INSTRUCTIONS = (
    "The data set is TCGA-BRCA: download the diagnostic slides (.svs) of project TCGA-BRCA from "
    "https://portal.gdc.cancer.gov into data/tcga_brca/slides/{train,val,test}/, split by patient; "
    "turn CTransPath into weights/ctranspath by python -m ssl_diffusion.convert "
    "--input=ctranspath.pth --image_size=224 --output=weights/ctranspath and put the VQ-f4 first "
    "stage into weights/vq_f4 (README, Published models); then run: "
    "python -m ssl_diffusion.prepare --config=configs/tcga_brca_5x.py"
)


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is unet or dit, and runlocal: by commas."""
    network, local = read_argument(argument)
    config = published(network)
    config.steps = 100_000
    config.data.update(
        {
            "dir": "data/tcga_brca/records_5x",
            "source": "data/tcga_brca/slides",
            "instructions": INSTRUCTIONS,
            "mpp": 2.0,
            "encoder": "weights/ctranspath",
        }
    )
    return run_locally(config) if local else config
