"""TCGA-BRCA at 20x: Graikos et al. 2024 (arXiv 2312.07330), table 1, first row.

    python -m ssl_diffusion.prepare --config=configs/tcga_brca_20x.py
    python -m ssl_diffusion.train --config=configs/tcga_brca_20x.py[:dit][,runlocal] \
        --workdir=runs/brca_20x

Reported: FID 6.98 of patches; of 1024 px images CLIP-FID 7.43, Crop-FID 15.51. Expected of this
config: nothing has been trained with it at full size yet.
Data: the diagnostic slides of TCGA-BRCA (https://portal.gdc.cancer.gov), 15 M patches of 256 px at
0.5 µm/px. First stage VQ-f4; embeddings of HIPT's ViT-S/16, one token of 384. The published model
attends to a second token, of HIPT's 4096 px region, which the published sampler fills with zeros;
here there is none, which is the same network up to one constant token.
Hardware: the paper's batch of 600 is six devices of 100. It divides among 8 chips, not among 256:
there take 512 or 768 (see launch/README.md for what fits). 250,000 steps are 150 M images, ten
epochs, and of the U-Net 94 EFLOP: expected 9.2 h on 8 H100 at 45 % of 790 TFLOP/s.
"""

from ml_collections import ConfigDict

from ssl_diffusion.training.recipes import published, read_argument, run_locally

INSTRUCTIONS = (
    "The data set is TCGA-BRCA: download the diagnostic slides (.svs) of project TCGA-BRCA from "
    "https://portal.gdc.cancer.gov into data/tcga_brca/slides/{train,val,test}/, split by patient; "
    "convert a HIPT ViT-S/16 into weights/hipt and the VQ-f4 first stage into weights/vq_f4 "
    "(README, Published models); then run: "
    "python -m ssl_diffusion.prepare --config=configs/tcga_brca_20x.py"
)


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is unet or dit, and runlocal: by commas."""
    network, local = read_argument(argument)
    config = published(network)
    config.data.update(
        {
            "dir": "data/tcga_brca/records_20x",
            "source": "data/tcga_brca/slides",
            "instructions": INSTRUCTIONS,
            "encoder": "weights/hipt",
            "tokens": {"count": 256, "dim": 384},
            "embedding": {"tokens": 1, "dim": 384},
        }
    )
    return run_locally(config) if local else config
