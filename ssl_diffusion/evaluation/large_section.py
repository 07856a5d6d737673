"""Large images: stitched ones opened beside the regions that they were made from, and measured."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ssl_diffusion import demo
from ssl_diffusion.data.picture import Picture
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation import inputs
from ssl_diffusion.evaluation.checks import check_made_by, is_held_out
from ssl_diffusion.evaluation.crops import CROP_PX, CROP_SEED, CROPS_PER_IMAGE
from ssl_diffusion.evaluation.judging import CONDITIONING, JUDGE, WHOLE_IMAGES
from ssl_diffusion.evaluation.large_numbers import (
    LargeImage,
    cells_numbers,
    crop_numbers,
    lines_of,
    pixel_numbers,
    whole_numbers,
)
from ssl_diffusion.evaluation.real_features import RealFeatures
from ssl_diffusion.evaluation.roundtrip import reconstruct_region
from ssl_diffusion.weights.model import Model


@dataclasses.dataclass(frozen=True)
class Stitched:
    """An image of ssl_diffusion.generate, its settings, and the picture its embeddings are of."""

    image: UInt8[np.ndarray, "h w 3"]
    settings: dict[str, Any]
    reference: Picture


def open_stitched(path: str, model: Model | None, crop_px: int | None) -> list[Stitched]:
    """What --stitched names; InputError unless `model` made it and its region can be read.

    Also for an image of a single cell, which has no other to be told from, and for one smaller than
    crops of `crop_px`.
    """
    if model is None:
        raise InputError("--stitched needs --model: its autoencoder, and the size of its windows")
    found = []
    for file in inputs.stitched_files(Path(path)):
        image, settings = inputs.read_stitched(file)
        check_made_by(settings, "stitched", model)
        picture = open_image(settings["reference"]).at(model.mpp, settings.get("reference_mpp"))
        picture.check_region(*settings["region"])
        if max(image.shape[:2]) <= model.patch_px:
            raise InputError(
                f"{file} is one cell of {model.patch_px} px, which has no other to be told from; "
                "evaluate larger images"
            )
        found.append(Stitched(image, settings, picture))
    _crop_size([one.image.shape[:2] for one in found], model, crop_px)
    return found


def evaluate_large_images(
    real: RealFeatures,
    stitched: Sequence[Stitched],
    model: Model,
    crop_px: int | None,
    crop_count: int | None,
) -> tuple[dict[str, Any], list[LargeImage]]:
    """The section `large_image`, and the pictures to show.

    Crops have `crop_px`, or CROP_PX where every image is at least twice as large, else the size of
    a patch; there are `crop_count` of each image, or CROPS_PER_IMAGE.
    """
    images = [_large_image(one, model, real) for one in stitched]
    size = _crop_size([image.real.shape[:2] for image in images], model, crop_px)
    count = crop_count or CROPS_PER_IMAGE
    sizes = sorted({image.real.shape[:2] for image in images})
    section: dict[str, Any] = {
        "images": len(images),
        "sizes_px": [[width, height] for height, width in sizes],
        "seconds": float(sum(one.settings["seconds"] for one in stitched)),
        "held_out": _all_or_none([image.held_out for image in images]),
        "crops": {"size_px": size, "of_each_image": count, "seed": f"{CROP_SEED} + index of image"},
        "pixels": {"sets": pixel_numbers(images)},
        "cells": {},
    }
    for space in real.spaces:
        if space.name in (CONDITIONING, JUDGE):
            numbers = cells_numbers(images, space.embed, real.centre(space))
            section["cells"][space.name] = {"title": space.title} | numbers
    section["crop_spaces"] = crop_numbers(images, real.spaces, real.features, size, count)
    whole = [space for space in real.spaces if space.title in WHOLE_IMAGES]
    square = len(sizes) == 1 and sizes[0][0] == sizes[0][1]  # a tower squeezes others
    if whole and len(images) > 1 and square:
        section["whole_spaces"] = whole_numbers(images, whole, real.features)
    return section, images


def _crop_size(sizes: Sequence[tuple[int, int]], model: Model, crop_px: int | None) -> int:
    smallest = min(min(size) for size in sizes)
    size = crop_px or (CROP_PX if smallest >= 2 * CROP_PX else model.patch_px)
    if size > smallest:
        raise InputError(
            f"crops of {size} px, but the smallest side of the stitched images is {smallest} px; "
            "give --crop_px that is less"
        )
    return size


def _large_image(stitched: Stitched, model: Model, real: RealFeatures) -> LargeImage:
    x, y, width, height = stitched.settings["region"]
    region = stitched.reference.read(x, y, width, height)
    name = demo.resolve(stitched.reference.path).name
    patch, factor = model.patch_px, model.factor
    return LargeImage(
        real=region,
        reconstruction=reconstruct_region(
            model.encode, model.decode, region, factor, tile_px=2 * patch
        ),
        stitched=stitched.image,
        cell_px=patch,
        lines_y=lines_of(height, patch, factor, stitched.settings),
        lines_x=lines_of(width, patch, factor, stitched.settings),
        mpp=stitched.reference.mpp,
        origin=f"{name}, corner at x {x}, y {y} px",
        held_out=is_held_out(real.records, name, stitched.settings["region"]),
    )


def _all_or_none(flags: Sequence[bool | None]) -> bool | None:
    return None if None in flags else all(flags)
