"""The `data` section of a config: what records are made of, and how."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_diffusion.errors import InputError

# What records depend on, with what a section that lacks the entry means; a type stands for an
# entry of that type that is not given.
RECIPE: dict[str, Any] = {
    "source": "",  # a slide, raster or image; a folder of them; a layout of data/imports; tfds:NAME
    "manifest": "",  # CSV file: file, split, label, text, group, mpp (data/manifest.py)
    "split": "",  # folders, manifest, sources, blocks, records, or a split file; told by the source
    "held_out": (0.1, 0.1),  # parts of the sources that are drawn into val and test
    "patch_px": 256,
    "mpp": 0.5,  # µm per pixel of the records; 1e6 is one metre
    "source_mpp": float,  # of images that do not say it
    "stride_px": 256,
    "min_saturation": 0.07,  # mean HSV saturation of a patch, above which it is tissue; 0 keeps all
    "nodata": int,  # value of pixels without data, in files that do not say it
    "max_nodata": 0.0,  # part of a patch that may be without data
    "bands": (1, 2, 3),  # of a raster, as red, green and blue
    "value_range": (),  # (low, high) of a raster's samples, shown as 0 to 255; () for 8 bits
    "jpeg_quality": int,  # of the images in records; without, PNG, which loses nothing
    "slides": "",  # folder of the slides that embeddings and coordinates of `source` belong to
    "annotations": "",  # folder of SLIDE.geojson as QuPath exports them: patches take its labels
    "features": "",  # where embeddings of patches in `source` are, if it has several or none
    "patch_size_level0": int,  # px of the slide that a patch of `source` covers, if nothing says it
    "tfds_dir": "",  # where tfds:NAME was prepared; "" is where TFDS looks
    "encoder": "",  # model folder, or module:function
    "autoencoder": "",
    "variants": 1,  # of every training patch: 1, 2, 4 or 8 of its `patches.symmetry`
    "posterior": False,  # whether the standard deviation of the latent's posterior is stored
    "patch_tokens": False,  # whether the encoder's patch tokens are stored
}
VARIANTS = (1, 2, 4, 8)
# What a training needs of its records; where they were cut from is no matter to it.
NEEDED = ("patch_px", "mpp", "encoder", "autoencoder", "variants", "posterior", "patch_tokens")


def section(**entries: Any) -> dict[str, Any]:
    """A whole `data` section: RECIPE, with these entries instead of its own."""
    told = {
        name: placeholder(value) if isinstance(value, type) else value
        for name, value in RECIPE.items()
    }
    return told | entries


def recipe_of(data: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The entries of RECIPE in a config's `data` section, or in the recipe of records (JSON)."""
    recipe = {}
    for name, missing in RECIPE.items():
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


def in_words(mpp: float) -> str:
    """A resolution as people write it: "0.5 µm" or "30 m" per pixel."""
    return f"{mpp / 1e6:g} m" if mpp >= 1e4 else f"{mpp:g} µm"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
