"""Reading what the other commands wrote, with one clear line when it does not fit together."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from ssl_diffusion.data.records import open_records
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.image_sets import (
    ImageSet,
    folder_images,
    large_image_patches,
    record_images,
)
from ssl_diffusion.files import read_json
from ssl_diffusion.training.logs import read_metrics


def read_png(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB image file; raises InputError when it is missing or cannot be read."""
    try:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"no image {path}; make it again") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{path} is not an image that can be read ({error}); make it again"
        ) from None


def read_samples(
    folder: Path, held_out: int, patch_px: int
) -> tuple[Int[np.ndarray, " n"], UInt8[np.ndarray, "n p p 3"], dict[str, Any]]:
    """A folder of ssl_diffusion.sample: indices in the held-out split, patches, its samples.json.

    Raises InputError when the indices do not fit a split of `held_out` patches, a patch is missing
    or unreadable, or a patch is not `patch_px` square.
    """
    settings = read_json(
        folder / "samples.json", "list of samples (write it with ssl_diffusion.sample)"
    )
    indices = settings.get("indices")
    if settings.get("split", "test") != "test":
        raise InputError(
            f"{folder} holds samples of split {settings['split']!r}; only held-out "
            "patches are evaluated, sample with --split=test"
        )
    if not isinstance(indices, list) or not indices or not all(type(i) is int for i in indices):
        raise InputError(f"{folder / 'samples.json'} lists no sample indices; sample again")
    if len(set(indices)) != len(indices) or min(indices) < 0 or max(indices) >= held_out:
        raise InputError(
            f"{folder / 'samples.json'} names {len(indices)} samples up to index "
            f"{max(indices)}, expected distinct ones of the {held_out} held-out patches; "
            "sample again from these records"
        )
    files = [folder / "patches" / f"{index:05d}.png" for index in indices]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(files)} samples are missing in {folder / 'patches'} "
            f"(first {missing[0]}); sample again"
        )
    patches = [read_png(file) for file in files]
    for file, patch in zip(files, patches, strict=True):
        if patch.shape[:2] != (patch_px, patch_px):
            raise InputError(
                f"{file} has {patch.shape[1]}x{patch.shape[0]} px, expected "
                f"{patch_px}x{patch_px} as the model makes; sample again"
            )
    return np.array(indices), np.stack(patches), settings


def is_paired(path: Path) -> bool:
    """Whether `path` is a folder of ssl_diffusion.sample: each image is of a known patch."""
    return (path / "samples.json").is_file()


def open_images(
    path: Path, patch_px: int, recipe: Mapping[str, Any] = MappingProxyType({})
) -> ImageSet:
    """A set of patches to be compared with real ones as a set, by what `path` is.

    Records (their split `test`, or `train` where there is none), a folder of images, or one large
    image, which is cut into patches side by side as `recipe`, that of the records to compare with,
    says. Raises InputError for another, and unless the patches have `patch_px`: distances move when
    the one set was resized and the other was not.
    """
    if (path / "dataset_info.json").is_file():
        records = open_records(path)
        images = record_images(records, "test" if records.count("test") else "train")
    elif path.is_dir():
        images = folder_images(path, path.name)
    elif path.is_file():
        images = large_image_patches(path, patch_px, patch_px, recipe)
    else:
        raise InputError(
            f"--samples={path} does not exist; give a folder of ssl_diffusion.sample, one of "
            "images, records, or a large image"
        )
    if tuple(images.size) != (patch_px, patch_px):
        height, width = images.size
        raise InputError(
            f"{path} holds images of {width}x{height} px, the records patches of "
            f"{patch_px}x{patch_px} px; give images of that size, so that no resize stands between"
        )
    return images


def stitched_files(path: Path) -> list[Path]:
    """The images of ssl_diffusion.generate at `path`: itself, or those of a folder, by name.

    Raises InputError for a folder without any.
    """
    if not path.is_dir():
        return [path]
    files = [file for file in sorted(path.iterdir()) if file.suffix in (".png", ".tif")]
    files = [file for file in files if file.with_suffix(".json").is_file()]
    if not files:
        raise InputError(
            f"no .png or .tif with its .json in {path}; give images that generate made with "
            "--reference"
        )
    return files


def read_stitched(path: Path) -> tuple[UInt8[np.ndarray, "h w 3"], dict[str, Any]]:
    """An image of ssl_diffusion.generate, .tif or .png, and the JSON beside it.

    Raises InputError when it cannot be read, or was not made from a reference region of its own
    size: then there is no real image to compare with.
    """
    picture = open_image(path)
    settings = read_json(
        path.with_suffix(".json"), "settings of the stitched image (generate writes it)"
    )
    names = ["reference", "region", "seconds"]
    if settings.get("scheme") != "shifted":
        names.append("stride")
    absent = [name for name in names if not settings.get(name)]
    if absent:
        raise InputError(
            f"{path.with_suffix('.json')} has no {', '.join(absent)}; evaluate an image "
            "that was generated with --reference"
        )
    size = [picture.width, picture.height]
    if list(settings["region"][2:]) != size:
        raise InputError(
            f"{path} has {size[0]}x{size[1]} px, its reference region "
            f"{settings['region']} (x, y, width, height) another size; generate it "
            "without --size"
        )
    return picture.read(0, 0, *size), settings


def read_training(workdir: Path) -> tuple[list[tuple[int, float]], dict[str, Any]]:
    """A workdir of ssl_diffusion.train: its losses and its summary, what it measured included.

    Raises InputError when the run is not finished.
    """
    summary = read_json(workdir / "summary.json", "training summary (train until the end)")
    losses = [(line["step"], line["loss"]) for line in read_metrics(workdir)]
    if not losses:
        raise InputError(f"{workdir} holds no metrics.jsonl with a loss; train again")
    return losses, summary | summary.pop("measured", {})


def writable_folder(path: str) -> Path:
    """Makes the folder; raises InputError where nothing can be written, before any work is done."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return Path(path)
    except OSError as error:
        raise InputError(
            f"cannot write into --output={path} ({error.strerror}); give another folder"
        ) from None
