"""A prior of BRACS (Brancati et al. 2022) at 20x: grids of embeddings from labels, text or maps.

    python -m ssl_diffusion.prepare --config=configs/bracs_prior.py
    python -m ssl_diffusion.train --config=configs/bracs_prior.py[:runlocal] --workdir=runs/prior

With it `generate --prior=runs/prior/model --model=runs/bracs/model --label=DCIS` needs no
reference. Graikos et al. 2024 (arXiv 2312.07330) describe such an auxiliary model of embeddings
given a condition and release none, so there is no number to compare with.
Data: as of configs/bracs.py, embeddings alone, a patch every 128 px. Cells are 256 px (128 µm); the
largest grid is 16x16, 4096 px; larger ones are sampled by windows. Sentences are those of
configs/bracs_captions.json, a few for each of the seven classes. `:runlocal` is a minute on a CPU:
the shipped slide, which has no labels, by clusters of cells.
Hardware: one GPU or TPU chip; expected about 2 hours on an H100 (100,000 steps of 64 grids).
Nothing has been trained with it at full size yet; configs/demo_prior.py has measured numbers.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_diffusion import demo
from ssl_diffusion.data import recipe
from ssl_diffusion.errors import InputError

INSTRUCTIONS = (
    "The data set is BRACS (regions of interest, https://www.bracs.icar.cnr.it, registration "
    "needed): download BRACS_RoI and unpack it so that "
    "data/bracs/BRACS_RoI/latest_version/{train,val,test}/ exist; put the model folder of a HIPT "
    "ViT-S/16 encoder into weights/hipt (see configs/bracs.py), then run: "
    "python -m ssl_diffusion.prepare --config=configs/bracs_prior.py"
)


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is runlocal, or nothing."""
    if argument not in ("", "runlocal"):
        raise InputError(f"config argument {argument!r}, expected runlocal or none")
    config = ConfigDict()
    config.task = "prior"
    config.init_from = ""
    config.seed = 0
    config.steps = 100_000
    config.batch_size = 64
    config.accumulation = 1  # parts of the batch, one after the other
    config.log_every = 100
    config.checkpoint_every = 5_000
    config.keep_checkpoints = 3
    config.sample_every = 5_000
    config.mesh = ConfigDict({"fsdp": 1})  # devices over which parameters and moments are split

    config.data = ConfigDict(
        recipe.section()
        | {
            "dir": "data/bracs/prior_records",
            "mix": (),
            "source": "data/bracs/BRACS_RoI/latest_version",
            "instructions": INSTRUCTIONS,
            "split": "folders",
            "patch_px": 256,
            "mpp": 0.5,
            "source_mpp": 0.25,  # the PNGs do not say it
            "stride_px": 128,  # half a patch: four times the grids
            "min_saturation": 0.07,
            "encoder": "weights/hipt",
            "embedding": {"tokens": 1, "dim": 384},
            "window": 16,  # cells along a side of the largest grid
            "full_grids": 0.5,  # share of the grids that are not cut to a random size
            "balance": True,  # each label as often as any other
            "workers": 4,
        }
    )
    config.model = ConfigDict(
        {
            "architecture": {"width": 512, "depth": 12, "heads": 8},
            "components": 256,  # principal components of the embeddings
            "condition_dropout": 0.1,  # of all conditions together, for guidance
            "policy": {"params": "float32", "compute": "bfloat16", "output": "float32"},
        }
    )
    config.conditions = ConfigDict(
        {
            "label": {"size": 7, "dropout": 0.3},
            "text": {
                "size": 384,
                "dropout": 0.3,
                "encoder": "minilm",  # or the folder of a CLIP-family text tower
                "captions": "configs/bracs_captions.json",
            },
            "label_map": {
                "size": 28,
                "dropout": 0.5,
                "partial": 0.3,  # share of the maps of which not every cell is said
                "clusters": 4,  # of each label; 0 takes the labels themselves
                "names": {},
            },
        }
    )
    config.diffusion = ConfigDict(
        {
            "schedule": {"name": "cosine", "steps": 1000, "zero_terminal_snr": False},
            "prediction": "x0",
        }
    )
    config.objective = ConfigDict(
        {"timesteps": {"name": "uniform"}, "min_snr_gamma": placeholder(float)}
    )
    config.sampling = ConfigDict(
        {"solver": "dpmpp", "steps": 25, "guidance": 1.5, "stride": 8, "weights": "gaussian"}
    )
    config.optimizer = ConfigDict(
        {
            "learning_rate": 3e-4,
            "warmup_steps": 1_000,
            "decay": "cosine",
            "weight_decay": 0.05,
            "b2": 0.99,
            "clip_norm": 1.0,
        }
    )
    config.ema = ConfigDict({"sigma_rel": (0.05, 0.10), "used": 0.05, "snapshot_every": 10_000})
    return _run_locally(config) if argument else config


def _run_locally(config: ConfigDict) -> ConfigDict:
    """The same run as a minute on a CPU, on the shipped slide, whose cells k-means tells apart."""
    config.steps, config.batch_size = 40, 8
    config.log_every, config.checkpoint_every, config.sample_every = 5, 20, 40
    config.ema.snapshot_every, config.optimizer.warmup_steps = 20, 5
    config.model.architecture.update({"width": 64, "depth": 2, "heads": 2})
    config.model.policy.compute, config.model.components = "float32", 32
    cells = config.conditions.label_map
    cells.size = cells.clusters
    config.conditions = ConfigDict({"label_map": cells})
    config.sampling.update({"steps": 4, "stride": 2})
    config.data.update(
        {
            "dir": "data/runlocal_prior",
            "source": demo.SLIDE,
            "instructions": f"Run: {INSTRUCTIONS.rpartition(': ')[2]}:runlocal",
            "split": demo.SPLIT,
            "patch_px": 64,
            "source_mpp": None,
            "stride_px": 64,
            "min_saturation": 0.12,
            "encoder": demo.ENCODER,
            "embedding": {"tokens": 1, "dim": 192},
            "window": 4,
            "balance": False,
            "workers": 0,
        }
    )
    return config
