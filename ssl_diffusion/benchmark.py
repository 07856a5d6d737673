"""How fast this machine denoises, stitches and trains, against what it reaches in a product.

python -m ssl_diffusion.benchmark denoiser [--json] [--networks=unet,dit] [--batches=1,4,16,64]
python -m ssl_diffusion.benchmark stitching [--json] [--network=unet] [--sizes=512,1024,2048,4096]
python -m ssl_diffusion.benchmark savings [--json] [--network=unet]
python -m ssl_diffusion.benchmark quality --model=DIR --reference=SLIDE --region=x,y,w,h [--json]
python -m ssl_diffusion.benchmark topology --topology=v5e:4x4 [--json]
python -m ssl_diffusion.benchmark train --config=configs/bracs.py[:dit] [--batches=32,64] [--json]
python -m ssl_diffusion.benchmark data [--records=DIR] [--workers=0,1,2] [--json]
python -m ssl_diffusion.benchmark data --prepare [--config=FILE] [--workers=0,1,2] [--json]
python -m ssl_diffusion.benchmark evaluate [--measures=fd,...] [--samples=50000] [--dimension=2048]

`denoiser`: seconds per forward, TFLOP/s and their ratio to the best product of 2048^3 and 4096^3
measured in the same run, for the published sizes: the U-Net of configs/bracs.py (latents 64x64x3)
and the DiT of the pan-cancer model (latents 32x32x16). `stitching`: what an evaluation of a canvas
costs in each scheme, and the network's share of it. `savings`: what each trick saves, and how much
it changes the result. `quality`: what schemes, solvers, steps and dense grids of a model of yours
cost and give on a real region, in pixels of the model's resolution. `topology`: compiles an
evaluation for TPU chips that are not at hand (needs jax[tpu], no TPU) and prints memory and FLOP.
`train`: the training step of any config, on random data: images/s, TFLOP/s, their ratio to the
product and to what the maker states in bfloat16, memory per device (as the compiler counts it, and
the most that was allocated); --config.NAME=VALUE changes the config. With --records, the share of
the time that a step waits for data. `data`: records/s that the reader feeds, of --records or of
ones made for it, against what a training step of the published U-Net consumes on an H200. With
--prepare, patches/s of every stage that makes records: of the shipped slide, or of a config's data.
`evaluate`: seconds and memory of FD, KID and precision on made features, against the formula with
scipy's root, scikit-learn, and torch-fidelity and clean-fid where those are installed.
FLOP are those of the convolutions and products alone, counted in the traced program (what remat
computes again counts). On a CPU, set what launch/environment.sh does first.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any

import jax
from absl import flags
from jax.experimental import topologies
from ml_collections import config_flags

from ssl_diffusion import cli
from ssl_diffusion.benchmarks import (
    data,
    denoiser,
    evaluate,
    prepare,
    quality,
    savings,
    stitching,
    train,
)
from ssl_diffusion.benchmarks.published import SIZES
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.machine import hardware
from ssl_diffusion.models.build import PRECISIONS
from ssl_diffusion.stitching.settings import default_window_batch
from ssl_diffusion.weights.model import load_model

FLAGS = flags.FlagValues()
NETWORKS = flags.DEFINE_list("networks", ["unet", "dit"], "denoiser: which", flag_values=FLAGS)
BATCHES = flags.DEFINE_list(
    "batches",
    None,
    "denoiser: windows in one forward (1,4,16,64); train: examples in one step, of all devices "
    "together (the config's); data: records (256)",
    flag_values=FLAGS,
)
TYPES = flags.DEFINE_list(
    "dtypes",
    None,
    "denoiser: which (float32,bfloat16); train: of the arithmetic (the config's)",
    flag_values=FLAGS,
)
TOKENS = flags.DEFINE_integer("tokens", 1, "denoiser: of context", lower_bound=1, flag_values=FLAGS)
NETWORK = flags.DEFINE_enum("network", "unet", [*SIZES], "of the others", flag_values=FLAGS)
DTYPE = flags.DEFINE_enum("dtype", "float32", [*PRECISIONS], "of the others", flag_values=FLAGS)
IMAGE_SIZES = flags.DEFINE_list(
    "sizes", ["512", "1024", "2048", "4096"], "stitching: px", flag_values=FLAGS
)
STRIDES = flags.DEFINE_list(
    "strides", None, "stitching: latent px; 1/4 and 1/2 window by default", flag_values=FLAGS
)
WINDOW_BATCH = flags.DEFINE_integer(
    "window_batch", None, "windows at once on each device", lower_bound=1, flag_values=FLAGS
)
GUIDANCE = flags.DEFINE_float("guidance", 4.0, "scale w; 1 is none", flag_values=FLAGS)
SECONDS = flags.DEFINE_float(
    "seconds",
    None,
    "stitching: longer evaluations are measured on a part (60); data, and train with --records: of "
    "one measurement (10)",
    lower_bound=0,
    flag_values=FLAGS,
)
TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "topology: which TPU", flag_values=FLAGS)
MODEL = flags.DEFINE_string("model", None, "quality: model folder", flag_values=FLAGS)
REFERENCE = flags.DEFINE_string("reference", None, "quality: real image", flag_values=FLAGS)
REGION = flags.DEFINE_string("region", None, "quality: x,y,w,h of it, px", flag_values=FLAGS)
SEED = flags.DEFINE_integer("seed", 0, "quality: of the images", flag_values=FLAGS)
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "train, data --prepare: config file, as configs/bracs.py:dit",
    flag_values=FLAGS,
)
RECORDS = flags.DEFINE_string(
    "records", None, "data, train: folder of prepared records", flag_values=FLAGS
)
WORKERS = flags.DEFINE_list(
    "workers", ["0", "1", "2"], "data: processes that read", flag_values=FLAGS
)
PREPARE = flags.DEFINE_bool(
    "prepare", False, "data: the stages that make records, not their reader", flag_values=FLAGS
)
MEASURES = flags.DEFINE_list("measures", [*evaluate.WAYS], "evaluate: which", flag_values=FLAGS)
SAMPLES = flags.DEFINE_integer(
    "samples", 50_000, "evaluate: features in each set", lower_bound=12, flag_values=FLAGS
)
DIMENSION = flags.DEFINE_integer(
    "dimension", 2048, "evaluate: of the features", lower_bound=4, flag_values=FLAGS
)
JSON = flags.DEFINE_bool("json", False, "print JSON instead of a table", flag_values=FLAGS)


def measure_denoiser() -> None:
    """`benchmark denoiser`."""
    networks = names("networks", NETWORKS.value, SIZES)
    dtypes = names("dtypes", TYPES.value or ["float32", "bfloat16"], PRECISIONS)
    batches = numbers("batches", BATCHES.value or ["1", "4", "16", "64"])
    rows = [*denoiser.measure(networks, dtypes, batches, TOKENS.value)]
    show(rows, denoiser.table(rows))


def measure_stitching() -> None:
    """`benchmark stitching`."""
    window = SIZES[NETWORK.value][1][0]
    strides = numbers("strides", STRIDES.value or [str(window // 4), str(window // 2)])
    rows = [
        *stitching.measure(
            NETWORK.value,
            DTYPE.value,
            numbers("sizes", IMAGE_SIZES.value),
            strides,
            WINDOW_BATCH.value or default_window_batch(),
            GUIDANCE.value,
            60.0 if SECONDS.value is None else SECONDS.value,
        )
    ]
    show(rows, stitching.table(rows))


def measure_savings() -> None:
    """`benchmark savings`."""
    rows = [*savings.measure(NETWORK.value, DTYPE.value, WINDOW_BATCH.value or 4)]
    show(rows, savings.table(rows))


def measure_quality() -> None:
    """`benchmark quality`."""
    if not (MODEL.value and REFERENCE.value and REGION.value):
        raise InputError("quality needs --model, --reference and --region")
    region = cli.parse_numbers("region", REGION.value, ",", 4, "x,y,width,height in pixels")
    model = load_model(MODEL.value)
    picture = open_image(REFERENCE.value).at(model.mpp)
    picture.check_region(*region)
    batch = WINDOW_BATCH.value or default_window_batch()
    rows = [*quality.measure(model, picture, region, batch, SEED.value)]
    show(rows, quality.table(rows))


def compile_topology() -> None:
    """`benchmark topology`."""
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY.value)
    except Exception as error:  # of many types: no libtpu, no such topology
        raise InputError(
            f"--topology={TOPOLOGY.value} cannot be compiled for ({error}); install jax[tpu] and "
            "set TPU_SKIP_MDS_QUERY=1"
        ) from None
    sizes = numbers("sizes", IMAGE_SIZES.value)
    stride = numbers("strides", STRIDES.value or [str(SIZES[NETWORK.value][1][0] // 2)])[0]
    batch, guidance = WINDOW_BATCH.value or 16, GUIDANCE.value
    result = stitching.compile_for(
        topology, NETWORK.value, DTYPE.value, sizes[-1], stride, batch, guidance
    )
    result = {"topology": TOPOLOGY.value, "network": NETWORK.value, "size_px": sizes[-1]} | result
    print(json.dumps(result, indent=2))


def measure_train() -> None:
    """`benchmark train`."""
    config = CONFIG.value
    if config is None:
        raise InputError(
            "train needs --config=FILE.py, as configs/bracs.py or configs/bracs.py:dit"
        )
    dtypes = names("dtypes", TYPES.value or [], PRECISIONS)
    batches = numbers("batches", BATCHES.value or [str(config.get("batch_size", ""))])
    rows = [*train.measure(config, batches, dtypes, RECORDS.value, reading_seconds())]
    show(rows, train.table(rows))


def measure_data() -> None:
    """`benchmark data`."""
    workers = numbers("workers", WORKERS.value, least=0)
    if PREPARE.value:
        section = CONFIG.value.data if CONFIG.value else prepare.default_section()
        rows = [*prepare.measure(section, workers, reading_seconds())]
        show(rows, prepare.table(rows))
        return
    batches = numbers("batches", BATCHES.value or ["256"])
    rows = [
        row
        for batch in batches
        for row in data.measure(RECORDS.value, workers, reading_seconds(), batch)
    ]
    show(rows, data.table(rows))


def measure_evaluate() -> None:
    """`benchmark evaluate`."""
    measures = names("measures", MEASURES.value, evaluate.WAYS)
    rows = [*evaluate.measure(measures, SAMPLES.value, DIMENSION.value)]
    show(rows, evaluate.table(rows))


def reading_seconds() -> float:
    """Of one measurement that reads records."""
    return 10.0 if SECONDS.value is None else SECONDS.value


def names(flag: str, given: Sequence[str], known: Collection[str]) -> Sequence[str]:
    """What a list flag gives; InputError for what is not known."""
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"--{flag}={','.join(unknown)}; expected {', '.join(known)}")
    return given


def numbers(flag: str, given: Sequence[str], least: int = 1) -> list[int]:
    """Whole numbers from a list flag; InputError for others and for those below `least`."""
    if not given or not all(text.isdecimal() and int(text) >= least for text in given):
        raise InputError(
            f"--{flag}={','.join(given)}; expected whole numbers from {least}, as {least},4"
        )
    return [int(text) for text in given]


def show(rows: Sequence[dict[str, Any]], table: str) -> None:
    """Prints the rows with the machine they were measured on."""
    machine = hardware()
    if JSON.value:
        print(json.dumps({"hardware": machine, "jax": jax.__version__, "rows": rows}, indent=2))
        return
    print(
        ", ".join(f"{key} {value}" for key, value in machine.items()) + f", jax {jax.__version__}"
    )
    print(table)


WORDS = {
    "denoiser": measure_denoiser,
    "stitching": measure_stitching,
    "savings": measure_savings,
    "quality": measure_quality,
    "topology": compile_topology,
    "train": measure_train,
    "data": measure_data,
    "evaluate": measure_evaluate,
}

if __name__ == "__main__":
    cli.run(WORDS, FLAGS)
