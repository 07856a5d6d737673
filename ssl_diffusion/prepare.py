"""Images -> records: `python -m ssl_diffusion.prepare --config=configs/demo.py [--output=DIR]`.

Cuts tissue patches, embeds and encodes them in batches, and writes a TFDS data set in ArrayRecord
files. Nothing holds the data set in memory. The folder appears whole or not at all; an existing one
that was made by the same recipe is kept as it is.
"""

import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float, PyTree, UInt8
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from ssl_diffusion import cli, demo
from ssl_diffusion.data.patches import symmetry
from ssl_diffusion.data.records import RecordsWriter, open_records
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.data.sources import SPLITS, find_images, recipe_of, split_patches
from ssl_diffusion.data.split import Split, draw_split, read_split
from ssl_diffusion.encoders.encoder import SSLEncoder
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing, sha256, write_json
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.weights.folder import SPEC, WEIGHTS, copy_model
from ssl_diffusion.weights.model import CHUNK, FirstStage, load_autoencoder, load_encoder

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; its `data` section is the recipe.", flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the records; config.data.dir by default.", flag_values=FLAGS
)

BATCH = 256
VARIANTS = (1, 2, 4, 8)


def main() -> None:
    """Reads the flags and prepares."""
    if CONFIG.value is None:
        raise InputError("needs --config=FILE.py")
    prepare(CONFIG.value.data, Path(OUTPUT.value or CONFIG.value.data.dir))


def prepare(data: ConfigDict, output: Path) -> None:
    """Writes the records of one config's `data` section to `output`.

    A split file that is named and does not exist is drawn first, and kept.
    """
    images = find_images(data)
    split = _split(data, images)
    recipe = _recipe(data, images, split)
    if output.is_file():
        raise InputError(f"--output={output} is a file; give a folder")
    if output.exists() and any(output.iterdir()):
        found = open_records(output, "It is not empty: choose another --output.").metadata["recipe"]
        found = found | recipe_of(found)  # older records lack the newer entries
        changed = [name for name in sorted(recipe | found) if recipe.get(name) != found.get(name)]
        if changed:
            raise InputError(
                f"{output} holds records made otherwise ({', '.join(changed)} differ); choose "
                "another --output or delete it"
            )
        logging.info("records in %s are there already", output)
        return
    encoder = load_encoder(data.encoder) if data.encoder else None
    first_stage = load_autoencoder(data.autoencoder) if data.autoencoder else None
    for name, model in (("encoder", encoder), ("autoencoder", first_stage)):
        theirs = model.spec.get("trained", {}).get("split_sha256") if model else None
        if theirs not in (None, recipe["split_sha256"]):
            logging.warning(
                "the %s was trained with another split; held-out figures are honest only if it saw "
                "none of these held-out patches",
                name,
            )
    _check_extras(data, encoder, first_stage)
    metadata: dict[str, Any] = {
        "recipe": recipe,
        "patch_px": data.patch_px,
        "mpp": data.mpp,
        "split_sha256": recipe["split_sha256"],
    }
    embedding_shape = latent_shape = tokens_shape = None
    if encoder:
        metadata["embedding"] = dict(encoder.spec["embedding"])
        embedding_shape = (encoder.spec["embedding"]["tokens"], encoder.spec["embedding"]["dim"])
    if recipe["patch_tokens"]:
        tokens_shape = encoder.patch_tokens
        metadata["tokens"] = dict(zip(("count", "dim"), tokens_shape, strict=True))
    if first_stage:
        metadata["latent"] = first_stage.spec["latent"]
        side = data.patch_px // first_stage.network.factor
        latent_shape = (side, side, first_stage.network.latent_channels)

    with replacing(output) as temporary, tqdm(desc="prepare", unit="patch") as bar:
        writer = RecordsWriter(
            temporary,
            SPLITS,
            embedding_shape,
            latent_shape,
            posterior=recipe["posterior"],
            tokens_shape=tokens_shape,
            variants=recipe["variants"] > 1,
        )
        counts = dict.fromkeys(SPLITS, 0)
        for batch in _batches(images, data, split, recipe["variants"]):
            pixels = np.stack([example["image"] for _, example in batch])
            fields = _fields(pixels, recipe, encoder, first_stage)
            for row, (part, example) in enumerate(batch):
                writer.add(part, example | {name: array[row] for name, array in fields.items()})
                counts[part] += 1
            bar.update(len(batch))
        if not counts["train"] or not counts["test"]:
            raise InputError(f"patches found: {counts}; training needs some in train and in test")
        writer.close(metadata)
        for name, model in (("encoder", data.encoder), ("autoencoder", data.autoencoder)):
            if model:
                copy_model(model, temporary / name)
        if data.split:
            shutil.copyfile(demo.resolve(data.split), temporary / "split.json")
    logging.info("wrote %s to %s", counts, output)


def _check_extras(
    data: ConfigDict, encoder: SSLEncoder | None, first_stage: FirstStage | None
) -> None:
    """InputError for entries of the recipe that its models cannot serve."""
    asked = recipe_of(data)
    if asked["variants"] not in VARIANTS:
        raise InputError(
            f"config.data.variants is {asked['variants']!r}, expected one of 1, 2, 4, 8"
        )
    if asked["patch_tokens"] and not encoder:
        raise InputError("config.data.patch_tokens needs an encoder; name one in data.encoder")
    if asked["posterior"] and not (first_stage and not first_stage.network.codebook):
        found = "which quantises vectors and has no posterior" if first_stage else "which is none"
        raise InputError(
            f"config.data.posterior needs a KL autoencoder; found {data.autoencoder!r}, {found}: "
            "name another in data.autoencoder, or set posterior to False"
        )


def _batches(
    images: list[str], data: ConfigDict, split: Split | None, variants: int
) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """(split, example) pairs, `BATCH` at a time; training patches in so many variants."""
    pairs = (
        (
            name,
            {
                "image": symmetry(patch.pixels, variant),
                "x": patch.x,
                "y": patch.y,
                "source": demo.resolve(path).name,
            }
            | ({"variant": variant} if variants > 1 else {}),
        )
        for path in images
        for name, patch in split_patches(path, data, split)
        for variant in range(variants if name == "train" else 1)
    )
    while batch := list(itertools.islice(pairs, BATCH)):
        yield batch


def _fields(
    pixels: UInt8[np.ndarray, "n h w 3"],
    recipe: dict[str, Any],
    encoder: SSLEncoder | None,
    first_stage: FirstStage | None,
) -> dict[str, np.ndarray]:
    """What is stored beside images: arrays [n, ...] by feature.

    Every variant of a patch is embedded and encoded itself: a flipped latent is not the latent of
    the flipped image.
    """
    fields: dict[str, np.ndarray] = {}
    if encoder and recipe["patch_tokens"]:
        fields["embedding"], tokens = encoder.embed_with_patches(pixels)
        fields["tokens"] = tokens.astype(np.float16)
    elif encoder:
        fields["embedding"] = encoder.embed(pixels)
    if first_stage and recipe["posterior"]:
        mean, deviation = _posterior(first_stage, pixels)
        fields["latent"], fields["latent_std"] = (
            mean.astype(np.float16),
            deviation.astype(np.float16),
        )
    elif first_stage:
        fields["latent"] = first_stage.encode(pixels).astype(np.float16)
    return fields


def _posterior(
    stage: FirstStage, pixels: UInt8[np.ndarray, "n H W 3"]
) -> tuple[Float[np.ndarray, "n h w c"], Float[np.ndarray, "n h w c"]]:
    """Mean and standard deviation of raw latents, in chunks of one size as `encode` has them."""
    parts = []
    for start in range(0, len(pixels), CHUNK):
        chunk = pixels[start : start + CHUNK]
        padding = np.zeros((CHUNK - len(chunk), *chunk.shape[1:]), np.uint8)
        moments = _moments(stage.network, stage.params, np.concatenate([chunk, padding]))
        parts.append([np.asarray(array)[: len(chunk)] for array in moments])
    mean, log_variance = map(np.concatenate, zip(*parts, strict=True))
    return mean, np.exp(0.5 * log_variance)


@partial(jax.jit, static_argnums=0)
def _moments(network: Autoencoder, params: PyTree, images: Array):
    return network.apply({"params": params}, images / 127.5 - 1.0, method="moments")


def _split(data: ConfigDict, images: list[str]) -> Split | None:
    """The split file, drawn and written first if it does not exist; None where folders split."""
    if not data.split:
        return None
    names = [Path(path).name for path in images]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"{data.images} holds several images called {', '.join(twice)}; a split file knows "
            "images by name: rename them"
        )
    if not demo.resolve(data.split).exists():
        # One after the other: a plain image is in memory whole while it is looked at.
        pictures = (open_image(path).at(data.mpp, data.get("source_mpp")) for path in images)
        drawn = draw_split(
            pictures,
            seed=0,
            mpp=data.mpp,
            patch_px=data.patch_px,
            min_saturation=data.min_saturation,
            block_px=4 * data.patch_px,
        )
        write_json(data.split, drawn)
        logging.info("drew the split %s: %s", data.split, drawn["drawn"])
    split = read_split(data.split)
    if split.mpp not in (None, data.mpp):
        raise InputError(
            f"the blocks of split {data.split} count at {split.mpp:g} µm per pixel, but "
            f"config.data.mpp is {data.mpp:g}; use another split file"
        )
    return split


def _recipe(data: ConfigDict, images: list[str], split: Split | None) -> dict[str, Any]:
    """What the records depend on: the `data` section, and hashes of files, split and models."""
    recipe = recipe_of(data)
    files = [(path, demo.resolve(path).stat().st_size) for path in images]
    recipe["files_sha256"] = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    recipe["split_sha256"] = split.sha256 if split else recipe["files_sha256"]
    for name in ("encoder", "autoencoder"):
        if data[name]:
            folder = demo.resolve(data[name])
            if not (folder / WEIGHTS).is_file():
                raise InputError(f"no {name} in {data[name]}. {data.get('instructions', '')}")
            recipe[f"{name}_sha256"] = [sha256(folder / file) for file in (SPEC, WEIGHTS)]
    return recipe


if __name__ == "__main__":
    cli.run(main, FLAGS)
