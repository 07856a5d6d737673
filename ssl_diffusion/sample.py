"""Samples patches from the embeddings of recorded ones.

python -m ssl_diffusion.sample --model=DIR --records=DIR --output=DIR

Writes `patches/00000.png` (the number is the index in the split), `sheet.png` (real | sample) and
`samples.json` (settings, indices, seconds).
"""

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image
from tqdm import tqdm

from ssl_diffusion import cli
from ssl_diffusion.data.records import Source, open_records
from ssl_diffusion.devices import shardings
from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.solvers import ddim, trailing_timesteps
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing, write_json
from ssl_diffusion.models.build import PRECISIONS
from ssl_diffusion.pixels import pair_sheet, to_uint8
from ssl_diffusion.weights.model import Model, load_model

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string(
    "model", None, "model folder, from train", required=True, flag_values=FLAGS
)
RECORDS = flags.DEFINE_string(
    "records", None, "records folder, from prepare", required=True, flag_values=FLAGS
)
PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    [*PRECISIONS],
    "of the denoiser's parameters and arithmetic",
    flag_values=FLAGS,
)
OUTPUT = flags.DEFINE_string(
    "output", None, "folder to write into", required=True, flag_values=FLAGS
)
SPLIT = flags.DEFINE_string(
    "split", "test", "split whose embeddings are sampled", flag_values=FLAGS
)
COUNT = flags.DEFINE_integer(
    "count", 0, "how many, from the first; 0 is all", lower_bound=0, flag_values=FLAGS
)
STEPS = flags.DEFINE_integer(
    "steps", None, "DDIM steps; the model's own by default", lower_bound=1, flag_values=FLAGS
)
GUIDANCE = flags.DEFINE_float(
    "guidance",
    None,
    "scale w, 1 is none; the model's own by default",
    lower_bound=0.0,
    flag_values=FLAGS,
)
SEED = flags.DEFINE_integer(
    "seed", 0, "a sample's noise depends on this and on its index", flag_values=FLAGS
)
BATCH = flags.DEFINE_integer(
    "batch", 32, "patches denoised at once", lower_bound=1, flag_values=FLAGS
)

SHEET_PAIRS, SHEET_COLUMNS = 64, 8


def main() -> None:
    """Checks the input, samples batch by batch, writes the files."""
    output = Path(OUTPUT.value)
    if output.exists() and not output.is_dir():
        raise InputError(f"--output={output} is a file; give a folder")
    records = open_records(RECORDS.value)
    source = records.source(SPLIT.value, ("image", "embedding"))
    if COUNT.value > len(source):
        raise InputError(f"--count={COUNT.value}; split {SPLIT.value!r} has {len(source)} patches")
    count = COUNT.value or len(source)
    model = load_model(MODEL.value, PRECISIONS[PRECISION.value])
    check_embedding(source, model)
    sampling = model.spec["sampling"]
    steps = sampling["steps"] if STEPS.value is None else STEPS.value
    guidance = sampling["guidance"] if GUIDANCE.value is None else GUIDANCE.value
    timesteps = trailing_timesteps(model.schedule.steps, steps)
    denoise = model.denoiser(guidance)

    (output / "samples.json").unlink(missing_ok=True)  # it tells of the patches replaced below
    start = time.perf_counter()
    real, samples = [], []
    with replacing(output / "patches") as folder:
        folder.mkdir()
        # Every device gets as many patches, the last ones filled up below.
        devices = jax.device_count()
        batch = -(-min(BATCH.value, count) // devices) * devices
        for first in range(0, count, batch):
            # The last batch is filled up with its last index: one shape, one compilation.
            indices = np.minimum(np.arange(first, first + batch), count - 1)
            examples = [source[int(index)] for index in indices]
            embedding = np.stack([example["embedding"] for example in examples])
            progress = partial(tqdm, desc=f"sample {first}/{count}", unit="step", leave=False)
            images = sample(model, denoise, embedding, indices, timesteps, SEED.value, progress)
            for index, example, image in zip(range(first, count), examples, images, strict=False):
                Image.fromarray(image).save(folder / f"{index:05d}.png")
                if len(real) < SHEET_PAIRS:
                    real.append(example["image"])
                    samples.append(image)
    seconds = time.perf_counter() - start

    with replacing(output / "sheet.png") as temporary:
        columns = min(SHEET_COLUMNS, len(real))
        page = pair_sheet(np.stack(real), np.stack(samples), columns)
        Image.fromarray(page).save(temporary)
    write_json(
        output / "samples.json",
        {
            "model": MODEL.value,
            "model_sha256": model.sha256,
            "records": RECORDS.value,
            "recipe": records.metadata["recipe"],
            "split": SPLIT.value,
            "count": count,
            "indices": list(range(count)),
            "steps": steps,
            "guidance": guidance,
            "seed": SEED.value,
            "precision": PRECISION.value,
            "batch": BATCH.value,
            "seconds": seconds,
        },
    )
    logging.info("%d samples in %.1f s: %s", count, seconds, output)


def check_embedding(source: Source, model: Model) -> None:
    """Raises InputError unless the records' embeddings have the shape that the model takes."""
    expected = (model.spec["embedding"]["tokens"], model.spec["embedding"]["dim"])
    found = source[0]["embedding"].shape
    if found != expected:
        raise InputError(
            f"records with embeddings of shape {list(found)}; the model takes {list(expected)}: "
            "use the records it was trained on"
        )


def sample(
    model: Model,
    denoise: Denoiser,
    embedding: Float[np.ndarray, "b tokens dim"],
    indices: Int[np.ndarray, " b"],
    timesteps: Int[np.ndarray, " path"],
    seed: int,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> UInt8[np.ndarray, "b h w 3"]:
    """One patch for each embedding; noise is keyed by `seed` and index, whatever the batch."""
    size = model.patch_px // model.factor
    noise = start_noise(seed, jnp.asarray(indices), (size, size, model.latent_channels))
    rows, _ = shardings()
    noise, context = jax.device_put((noise, model.context(jnp.asarray(embedding))), rows)
    latent = ddim(
        denoise,
        model.schedule,
        noise,
        context,
        timesteps=timesteps,
        progress=progress,
    )
    return to_uint8(model.decode(latent))


def start_noise(
    seed: int, indices: Int[Array, " b"], shape: tuple[int, int, int]
) -> Float[Array, "b h w c"]:
    """Standard normal noise, one key per index."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(indices)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


if __name__ == "__main__":
    cli.run(main, FLAGS)
