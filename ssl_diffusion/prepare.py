"""Images -> records: `python -m ssl_diffusion.prepare --config=configs/demo.py [--output=DIR]`.

Cuts tissue patches, embeds and encodes them in batches, and writes a TFDS data set in ArrayRecord
files. Nothing holds the data set in memory. The folder appears whole or not at all; an existing one
that was made by the same recipe is kept as it is.
"""

import itertools
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
from ssl_diffusion.data.sources import find_images, split_patches
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing, sha256
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
SPLITS = ("train", "val", "test")


def main() -> None:
    """Reads the flags and prepares."""
    if CONFIG.value is None:
        raise InputError("needs --config=FILE.py")
    prepare(CONFIG.value.data, Path(OUTPUT.value or CONFIG.value.data.dir))


def prepare(data: ConfigDict, output: Path) -> None:
    """Writes the records of one config's `data` section to `output`."""
    recipe = _recipe(data)
    if output.exists():
        found = open_records(output).metadata["recipe"]
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
    images = find_images(data)
    encoder = load_encoder(data.encoder) if data.encoder else None
    first_stage = load_autoencoder(data.autoencoder) if data.autoencoder else None
    metadata: dict[str, Any] = {
        "recipe": recipe,
        "patch_px": data.patch_px,
        "mpp": data.mpp,
        "split_sha256": sha256(demo.resolve(data.split)) if data.split else "by folder",
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
        counts, embedding_sum = dict.fromkeys(SPLITS, 0), 0.0
        for batch in _batches(images, data):
            pixels = np.stack([example["image"] for _, example in batch])
            embeddings = encoder.embed(pixels) if encoder else [None] * len(batch)
            latents = first_stage.encode(pixels).astype(np.float16) if first_stage else embeddings
            for (split, example), embedding, latent in zip(batch, embeddings, latents, strict=True):
                if encoder:
                    example["embedding"] = embedding
                    embedding_sum += embedding.astype(np.float64) * (split == "train")
                if first_stage:
                    example["latent"] = latent
                writer.add(split, example)
                counts[split] += 1
            bar.update(len(batch))
        if not counts["train"] or not counts["test"]:
            raise InputError(f"patches found: {counts}; training needs some in train and in test")
        if encoder:
            metadata["embedding"]["train_mean"] = (embedding_sum / counts["train"]).tolist()
        writer.close(metadata)
        for name, model in (("encoder", data.encoder), ("autoencoder", data.autoencoder)):
            if model:
                copy_model(model, temporary / name)
        if data.split:
            shutil.copyfile(demo.resolve(data.split), temporary / "split.json")
    logging.info("wrote %s to %s", counts, output)


def _batches(images: list[str], data: ConfigDict) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """(split, example) pairs, `BATCH` at a time."""
    pairs = (
        (
            split,
            {"image": patch.pixels, "x": patch.x, "y": patch.y, "source": demo.resolve(path).name},
        )
        for path in images
        for split, _, patch in split_patches(path, data)
    )
    while batch := list(itertools.islice(pairs, BATCH)):
        yield batch


def _recipe(data: ConfigDict) -> dict[str, Any]:
    """What the records depend on: the `data` section, and the hashes of the models."""
    recipe = {
        name: data.get(name)
        for name in (
            "images",
            "split",
            "patch_px",
            "mpp",
            "source_mpp",
            "stride_px",
            "min_saturation",
            "encoder",
            "autoencoder",
        )
    }
    for name in ("encoder", "autoencoder"):
        if data[name]:
            folder = demo.resolve(data[name])
            if not (folder / WEIGHTS).is_file():
                raise InputError(f"no {name} in {data[name]}. {data.get('instructions', '')}")
            recipe[f"{name}_sha256"] = [sha256(folder / file) for file in (SPEC, WEIGHTS)]
    return recipe


if __name__ == "__main__":
    cli.run(main, FLAGS)
