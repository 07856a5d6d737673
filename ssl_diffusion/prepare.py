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
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from ssl_diffusion import cli, demo
from ssl_diffusion.data.records import RecordsWriter, open_records
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.data.sources import RECIPE, SPLITS, find_images, split_patches
from ssl_diffusion.data.split import Split, draw_split, read_split
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing, sha256, write_json
from ssl_diffusion.weights.folder import SPEC, WEIGHTS, copy_model
from ssl_diffusion.weights.model import load_autoencoder, load_encoder

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; its `data` section is the recipe.", flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the records; config.data.dir by default.", flag_values=FLAGS
)

BATCH = 256


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
        if found != recipe:
            changed = [
                name for name in sorted(recipe | found) if recipe.get(name) != found.get(name)
            ]
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
    metadata: dict[str, Any] = {
        "recipe": recipe,
        "patch_px": data.patch_px,
        "mpp": data.mpp,
        "split_sha256": recipe["split_sha256"],
    }
    embedding_shape = latent_shape = None
    if encoder:
        metadata["embedding"] = dict(encoder.spec["embedding"])
        embedding_shape = (encoder.spec["embedding"]["tokens"], encoder.spec["embedding"]["dim"])
    if first_stage:
        metadata["latent"] = first_stage.spec["latent"]
        side = data.patch_px // first_stage.network.factor
        latent_shape = (side, side, first_stage.network.latent_channels)

    with replacing(output) as temporary, tqdm(desc="prepare", unit="patch") as bar:
        writer = RecordsWriter(temporary, SPLITS, embedding_shape, latent_shape)
        counts = dict.fromkeys(SPLITS, 0)
        for batch in _batches(images, data, split):
            pixels = np.stack([example["image"] for _, example in batch])
            embeddings = encoder.embed(pixels) if encoder else [None] * len(batch)
            latents = first_stage.encode(pixels).astype(np.float16) if first_stage else embeddings
            for (part, example), embedding, latent in zip(batch, embeddings, latents, strict=True):
                if encoder:
                    example["embedding"] = embedding
                if first_stage:
                    example["latent"] = latent
                writer.add(part, example)
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


def _batches(
    images: list[str], data: ConfigDict, split: Split | None
) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """(split, example) pairs, `BATCH` at a time."""
    pairs = (
        (
            name,
            {
                "image": patch.pixels,
                "x": patch.x,
                "y": patch.y,
                "source": demo.resolve(path).name,
            },
        )
        for path in images
        for name, patch in split_patches(path, data, split)
    )
    while batch := list(itertools.islice(pairs, BATCH)):
        yield batch


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
    recipe = {name: data.get(name) for name in RECIPE}
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
