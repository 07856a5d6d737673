"""Whether model, records, samples and encoders belong together, told before the work starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_diffusion.data.records import SOURCES, Records
from ssl_diffusion.data.split import read_split
from ssl_diffusion.encoders.encoder import SSLEncoder
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.image_sets import ImageSet
from ssl_diffusion.evaluation.spaces import FID_WEIGHTS, Space
from ssl_diffusion.files import read_json_lines
from ssl_diffusion.weights.model import Model


def check_split(model: Model, records: Records, unseen: bool) -> None:
    """Raises InputError unless the records have the split of the model, or, `unseen`, another."""
    # A converted model says nothing of splits: it was trained elsewhere.
    if "trained" not in model.spec:
        return
    same = model.spec["trained"].get("split_sha256") == records.metadata.get("split_sha256")
    if same and unseen:
        raise InputError(
            "--unseen, but these records have the split that the model was trained with; leave the "
            "flag out, or give records of another source"
        )
    if not same and not unseen:
        raise InputError(
            "the model was trained with another split, and may know patches that are held out in "
            "these records; use the records it was trained on, or say --unseen where their source "
            "was not in training"
        )


def check_encoder(encoder: SSLEncoder, records: Records, patch_px: int, split: str) -> None:
    """Raises InputError unless the embeddings of the records are those of `encoder`."""
    first = records.source(split, ("image", "embedding"))[0]
    if first["image"].shape[0] != patch_px:
        raise InputError(
            f"records of {first['image'].shape[0]} px patches, but the model makes "
            f"{patch_px} px; use the records it was trained on"
        )
    again = one_vector(encoder.embed(first["image"][None]), "first held-out patch")[0]
    stored = first["embedding"].reshape(-1)
    # Another device or number format moves an embedding a little; another encoder, far.
    near = 0.05 * np.linalg.norm(stored)
    if again.shape != stored.shape or np.linalg.norm(again - stored) > near:
        raise InputError(
            "the records' embeddings are not those of the model's encoder; use the records "
            "it was trained on, or prepare them with its encoder"
        )


def check_made_by(settings: Mapping[str, Any], name: str, model: Model | None) -> None:
    """Raises InputError unless the model made what was given as --`name`, by its settings."""
    if model and settings.get("model_sha256") != model.sha256:
        raise InputError(f"--{name} was made with another model; make it again with this one")


def check_made_from(settings: Mapping[str, Any], records: Records) -> None:
    """Raises InputError unless the samples' settings name these records."""
    if settings.get("recipe") != records.metadata["recipe"]:
        raise InputError("--samples was made from other records; sample from these")


def check_count(images: ImageSet) -> None:
    """Raises InputError below two images: one is no set, and has no spread to compare."""
    if len(images) < 2:
        raise InputError(f"{images.name}: {len(images)} image, expected at least 2; give more")


def check_train_records(train: Records, records: Records) -> None:
    """Raises InputError unless both have embeddings of one encoder, of patches of one size."""
    digests = [one.metadata["recipe"].get("encoder_sha256") for one in (train, records)]
    if digests[0] != digests[1]:
        raise InputError(
            "--train_records holds embeddings of another encoder than --records; prepare both with "
            "one"
        )
    sizes = [one.metadata["patch_px"] for one in (train, records)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"--train_records holds patches of {sizes[0]} px, --records of {sizes[1]}; prepare "
            "both with one --patch_px"
        )


def remarks(
    model: Model | None, spaces: Sequence[Space], records: Records, train: Records | None
) -> list[str]:
    """Sentences for the top of the report: what was given that may not be what it is taken for."""
    found = [
        f"{space.title}: the weights were not converted from a published port of FID's network "
        f"(SHA-256 {FID_WEIGHTS}...). It is no FID, and compares with values of the same weights "
        "alone."
        for space in spaces
        if space.settings.get("published_weights") is False
    ]
    if model and train and "trained" not in model.spec:
        found.append(
            f"The model does not say what it was trained on. Copies are looked for in the training "
            f"patches of {train.folder.name}, which need not be those it saw."
        )
    elif model and train:
        known = model.spec["trained"].get("split_sha256")
        if known != train.metadata.get("split_sha256"):
            found.append(
                f"Copies are looked for in the training patches of {train.folder.name}, whose "
                "split is not the one that the model was trained with: they need not be those it "
                "saw."
            )
    # Of one split, what is held out of a shared source was held out of training.
    if train and train.metadata.get("split_sha256") != records.metadata.get("split_sha256"):
        shared = shared_sources(records, train)
        if shared:
            some = ", ".join(shared[:3]) + ", ..." * (len(shared) > 3)
            found.append(
                f"{records.folder.name} and the records of the training patches "
                f"({train.folder.name}) share {len(shared)} source(s), by name or content: {some}. "
                "Real images that the model has seen are no measure of new ones."
            )
    return found


def shared_sources(records: Records, others: Records) -> list[str]:
    """Names of sources of `records` of which `others` hold the like: the name, or a digest."""
    theirs = _sources(others)
    names, digests = set(theirs), {digest for digest in theirs.values() if digest}
    return sorted(
        name for name, digest in _sources(records).items() if name in names or digest in digests
    )


def _sources(records: Records) -> dict[str, str]:
    """SHA-256 of each source's file by its name; "" where the records do not tell."""
    found = {Path(one["source"]).name: "" for one in read_json_lines(records.folder / SOURCES)}
    file: Path = records.folder / "split.json"
    return found | (dict(read_split(file).image_sha256) if file.is_file() else {})


def is_held_out(records: Records, name: str, region: list[int]) -> bool | None:
    """Whether held-out blocks cover the region (x, y, width, height px) of the image called `name`.

    None when the records do not tell: they were split by folder, or without this image.
    """
    file: Path = records.folder / "split.json"
    if not file.is_file() or name not in (split := read_split(file)).held_out:
        return None
    x, y, width, height = region
    covered = sum(
        max(0, min(x + width, block_x + split.block_px) - max(x, block_x))
        * max(0, min(y + height, block_y + split.block_px) - max(y, block_y))
        for block_x, block_y in split.held_out[name]
    )
    return covered == width * height
