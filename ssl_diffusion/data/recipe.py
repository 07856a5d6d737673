"""The `data` section of a config: what records are made of, and how."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_diffusion.errors import InputError


class Entry(NamedTuple):
    """What a section that lacks the entry means by that, and what the entry is.

    A type as `missing` stands for an entry of that type that is not given.
    """

    missing: Any
    help: str


RECIPE: dict[str, Entry] = {  # what records depend on
    "source": Entry("", "slide, raster or image, a folder of them, a known layout, or tfds:NAME"),
    "manifest": Entry("", "CSV file: file, and split, label, text, group, mpp where there are"),
    "annotations": Entry("", "folder of SLIDE.geojson as QuPath exports them, for labels"),
    "split": Entry(
        "", "folders, manifest, sources, blocks, records, or a split file; else the source tells"
    ),
    "held_out": Entry((0.1, 0.1), "parts of the sources that are drawn into val and test"),
    "patch_px": Entry(256, "side of a patch"),
    "stride_px": Entry(256, "from one training patch to the next"),
    "mpp": Entry(0.5, "µm per pixel of the records; as a flag also metres, as 30m"),
    "source_mpp": Entry(float, "the same of images that do not say it"),
    "min_saturation": Entry(0.07, "mean HSV saturation above which a patch is tissue; 0 keeps all"),
    "nodata": Entry(int, "value of pixels without data, in files that do not say it"),
    "max_nodata": Entry(0.0, "part of a patch that may be without data"),
    "bands": Entry((1, 2, 3), "of a raster, as red, green and blue"),
    "value_range": Entry((), "low,high of a raster's samples, shown as 0 to 255; none for 8 bits"),
    "jpeg_quality": Entry(int, "of the images in records; without, PNG, which loses nothing"),
    "slides": Entry("", "folder of the slides that features with coordinates belong to"),
    "features": Entry("", "file or folder of the patches' embeddings, if the source has several"),
    "patch_size_level0": Entry(int, "px of the slide that a patch with features covers"),
    "tfds_dir": Entry("", "where tfds:NAME was prepared; where TFDS looks otherwise"),
    "encoder": Entry("", "model folder, or module:function"),
    "autoencoder": Entry("", "model folder"),
    "variants": Entry(1, "of every training patch, by the symmetries of the square: 1, 2, 4 or 8"),
    "posterior": Entry(False, "whether the deviation of the latent's posterior is stored"),
    "patch_tokens": Entry(False, "whether the encoder's patch tokens are stored"),
}
VARIANTS = (1, 2, 4, 8)
LENGTHS = ("mpp", "source_mpp")
# What a training needs of its records; where they were cut from is no matter to it.
NEEDED = ("patch_px", "mpp", "encoder", "autoencoder", "variants", "posterior", "patch_tokens")


def section(**entries: Any) -> dict[str, Any]:
    """A whole `data` section: RECIPE, with these entries instead of its own."""
    told = {
        name: placeholder(missing) if isinstance(missing, type) else missing
        for name, (missing, _) in RECIPE.items()
    }
    return told | entries


def recipe_of(data: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The entries of RECIPE in a config's `data` section, or in the recipe of records (JSON)."""
    recipe = {}
    for name, (missing, _) in RECIPE.items():
        value = data.get(name, None if isinstance(missing, type) else missing)
        recipe[name] = list(value) if isinstance(value, tuple) else value
    return recipe


def check(data: ConfigDict) -> None:
    """Raises InputError for entries that no records can be made by."""
    recipe = recipe_of(data)
    for name in ("patch_px", "stride_px", "mpp", "source_mpp"):
        value = recipe[name]
        if value is not None and not (_number(value) and value > 0):
            raise InputError(f"config.data.{name} is {value}, expected more than 0")
    for name in ("min_saturation", "max_nodata"):
        if not (_number(recipe[name]) and 0 <= recipe[name] < 1):
            raise InputError(f"config.data.{name} is {recipe[name]}, expected 0 to 1")
    parts = recipe["held_out"]
    if len(parts) != 2 or not all(_number(part) and part >= 0 for part in parts) or sum(parts) >= 1:
        raise InputError(
            f"config.data.held_out is {parts}, expected the parts of val and test, as (0.1, 0.1)"
        )
    if len(recipe["bands"]) != 3 or not all(type(b) is int and b > 0 for b in recipe["bands"]):
        raise InputError(f"config.data.bands is {recipe['bands']}, expected three, from 1")
    ends = recipe["value_range"]
    if ends and not (len(ends) == 2 and all(map(_number, ends)) and ends[0] < ends[1]):
        raise InputError(f"config.data.value_range is {ends}, expected (low, high)")
    quality = recipe["jpeg_quality"]
    if quality is not None and not 1 <= quality <= 100:
        raise InputError(f"config.data.jpeg_quality is {quality}, expected 1 to 100")
    if recipe["variants"] not in VARIANTS:
        raise InputError(
            f"config.data.variants is {recipe['variants']!r}, expected one of 1, 2, 4, 8"
        )


def parse_mpp(text: str, flag: str) -> float:
    """µm per pixel of "0.5", "0.5um" or "30m" (metres); InputError for anything else."""
    number, factor = text.strip(), 1.0
    for unit, size in (("um", 1.0), ("µm", 1.0), ("m", 1e6)):
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), size
            break
    try:
        value = float(number) * factor
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"--{flag}={text}; expected µm per pixel, as 0.5, or metres, as 30m")
    return value


def parse_list(text: list[str], flag: str) -> tuple[float, ...]:
    """The numbers of a flag that is a list; InputError if they are none."""
    try:
        return tuple(int(word) if word.lstrip("-").isdecimal() else float(word) for word in text)
    except ValueError:
        raise InputError(f"--{flag}={','.join(text)}; expected numbers by commas") from None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
