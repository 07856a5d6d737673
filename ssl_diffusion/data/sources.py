"""From a config's `data` section to a stream of (split, patch)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssl_diffusion import demo
from ssl_diffusion.data.patches import Patch, tissue_patches
from ssl_diffusion.data.slides import Picture, open_image
from ssl_diffusion.data.split import Split
from ssl_diffusion.errors import InputError

SPLITS = ("train", "val", "test")
# What of a config's `data` section records depend on, with what a section (or a recipe of older
# records) that lacks it means.
RECIPE = {
    "images": None,
    "split": None,
    "patch_px": None,
    "mpp": None,
    "source_mpp": None,
    "stride_px": None,
    "min_saturation": None,
    "encoder": None,
    "autoencoder": None,
    "variants": 1,  # of every training patch: 1, 2, 4 or 8 of its `patches.symmetry`
    "posterior": False,  # whether the standard deviation of the latent's posterior is stored
    "patch_tokens": False,  # whether the encoder's patch tokens are stored
}
IMAGE_SUFFIXES = (
    ".svs",
    ".tif",
    ".tiff",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".bif",
    ".png",
    ".jpg",
    ".jpeg",
)


def recipe_of(data: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """The entries of RECIPE in a config's `data` section, or in the recipe of records."""
    return {name: data.get(name, missing) for name, missing in RECIPE.items()}


def find_images(data: ConfigDict) -> list[str]:
    """The image files of `data.images` (one file, or a folder searched recursively), sorted.

    Raises InputError with `data.instructions` (how to get the data set) when there is nothing.
    """
    for name in ("patch_px", "stride_px", "mpp"):
        if not data[name] > 0:
            raise InputError(f"config.data.{name} is {data[name]}, expected more than 0")
    root = demo.resolve(data.images)
    if root.is_file():
        return [data.images]
    found = [path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise InputError(f"no images in {data.images}. {data.get('instructions', '')}")
    return sorted(str(path) for path in found)


def split_patches(path: str, data: ConfigDict, split: Split | None) -> Iterator[tuple[str, Patch]]:
    """The tissue patches of one image at `data.mpp`, each with its split.

    With a `split`, training patches keep clear of every held-out block, and "test" patches tile the
    blocks without overlap. Without one, the folder below `data.images` names the split (train, val
    or test). Coordinates are pixels at `data.mpp`.
    """
    image = open_image(path).at(data.mpp, data.get("source_mpp"))
    if split:
        split.check_image(path)
        yield from _by_blocks(path, image, data, split)
        return
    folder, *below = Path(path).relative_to(data.images).parts or ("",)
    if folder not in SPLITS or not below:
        raise InputError(
            f"{path}: without a split file, images lie in train/, val/ and test/ below data.images "
            f"({data.images}); sort them so, or name a split file in config.data.split"
        )
    stride = data.stride_px if folder == "train" else data.patch_px
    for patch in tissue_patches(image, data.patch_px, stride, data.min_saturation):
        yield folder, patch


def _by_blocks(
    path: str, image: Picture, data: ConfigDict, split: Split
) -> Iterator[tuple[str, Patch]]:
    size = data.patch_px
    if size % data.stride_px or split.block_px % size:
        raise InputError(
            f"stride {data.stride_px} and patches of {size} px with held-out blocks of "
            f"{split.block_px} px; expected one to divide the next"
        )
    for patch in tissue_patches(image, size, data.stride_px, data.min_saturation):
        if not split.touches_held_out(path, patch.x, patch.y, size):
            yield "train", patch
        elif patch.x % size == 0 and patch.y % size == 0:  # blocks start on multiples of the patch
            if any(
                x <= patch.x <= x + split.block_px - size
                and y <= patch.y <= y + split.block_px - size
                for x, y in split.blocks(path)
            ):
                yield "test", patch
