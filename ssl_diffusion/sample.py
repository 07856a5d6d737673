"""Samples patches from the embeddings of recorded ones.

python -m ssl_diffusion.sample --model=DIR --records=DIR --output=DIR

Writes `patches/00000.png` (the number is the index in the split), `sheet.png` (real | sample) and
`samples.json` (settings, indices, seconds).
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int, Key, UInt8
from PIL import Image
from tqdm import tqdm

from ssl_diffusion import cli
from ssl_diffusion.data.records import Source, open_records
from ssl_diffusion.devices import shardings
from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.plans import Plan
from ssl_diffusion.diffusion.solvers import keyed_noise, solve
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing, write_json
from ssl_diffusion.models.build import PRECISIONS
from ssl_diffusion.pixels import pair_sheet, to_uint8
from ssl_diffusion.sampling import define_flags, sampling_of
from ssl_diffusion.weights.model import Model, load_model

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string(
    "model", None, "model folder, from train", required=True, flag_values=FLAGS
)
RECORDS = flags.DEFINE_string(
    "records", None, "records folder, from prepare", required=True, flag_values=FLAGS
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
SEED = flags.DEFINE_integer(
    "seed", 0, "a sample's noise depends on this and on its index", flag_values=FLAGS
)
BATCH = flags.DEFINE_integer(
    "batch", 32, "patches denoised at once", lower_bound=1, flag_values=FLAGS
)

define_flags(FLAGS)

SHEET_PAIRS, SHEET_COLUMNS = 64, 8
STEP_NOISE = 2**32 - 1  # no index: names the keys of the noise that solvers add


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
    model = load_model(MODEL.value, PRECISIONS[FLAGS.precision])
    check_embedding(source, model)
    sampling = sampling_of(model.spec["sampling"], FLAGS)
    plan = sampling.plan(model.schedule)
    denoisers = sampling.denoisers(model.schedule, plan, model.denoiser)

    (output / "samples.json").unlink(missing_ok=True)  # it tells of the patches replaced below
    start = time.perf_counter()
    real, samples = [], []
    with replacing(output / "patches") as folder:
        folder.mkdir()
        for indices in index_batches(count, BATCH.value):
            first = int(indices[0])
            examples = [source[int(index)] for index in indices]
            embedding = np.stack([example["embedding"] for example in examples])
            progress = partial(tqdm, desc=f"sample {first}/{count}", unit="step", leave=False)
            images = sample(model, plan, denoisers, embedding, indices, SEED.value, progress)
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
            **dataclasses.asdict(sampling),
            "seed": SEED.value,
            "precision": FLAGS.precision,
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


def index_batches(count: int, most: int) -> Iterator[Int[np.ndarray, " b"]]:
    """0 to count - 1, about `most` at once: as many for every device, and all of one shape.

    The last batch is filled up with the last index, so that one compilation does.
    """
    devices = jax.device_count()
    batch = -(-min(most, count) // devices) * devices
    for first in range(0, count, batch):
        yield np.minimum(np.arange(first, first + batch), count - 1)


def sample(
    model: Model,
    plan: Plan,
    denoisers: list[Denoiser],
    embedding: Float[np.ndarray, "b tokens dim"],
    indices: Int[np.ndarray, " b"],
    seed: int,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> UInt8[np.ndarray, "b h w 3"]:
    """One patch for each embedding; noise is keyed by `seed` and index, whatever the batch."""
    size = model.patch_px // model.factor
    shape = (size, size, model.latent_channels)
    root = jax.random.key(seed)
    keys = index_keys(root, jnp.asarray(indices))
    step_keys = index_keys(jax.random.fold_in(root, STEP_NOISE), jnp.asarray(indices))
    rows, _ = shardings()
    start, step_keys, context = jax.device_put(
        (
            jax.vmap(lambda key: jax.random.normal(key, shape))(keys),
            step_keys,
            model.context(jnp.asarray(embedding)),
        ),
        rows,
    )
    latent = solve(
        plan,
        lambda k: (denoisers[k], context),
        start,
        noise=keyed_noise(step_keys),
        progress=progress,
    )
    return to_uint8(model.decode(latent))


def index_keys(root: Key[Array, ""], indices: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key per index."""
    return jax.vmap(partial(jax.random.fold_in, root))(indices)


if __name__ == "__main__":
    cli.run(main, FLAGS)
