"""Crops of large images for a Crop-FID: what a patch network sees of an image it cannot take whole.

Graikos et al. (CVPR 2024) compare crops of 256 px at random places of 1024 px images;
Chai et al. (2022, arXiv 2204.07156) measure any-resolution images by such patches. The
size, the count for each image and the seed move the number, so they are fixed here and go into the
report.
"""

import numpy as np
from jaxtyping import Int, UInt8

from ssl_diffusion.errors import InputError

CROP_PX = 256
CROPS_PER_IMAGE = 16  # as many as tile 1024 px
CROP_SEED = 0


def crops(
    image: UInt8[np.ndarray, "h w 3"],
    size: int = CROP_PX,
    count: int = CROPS_PER_IMAGE,
    seed: int = CROP_SEED,
) -> UInt8[np.ndarray, "count {size} {size} 3"]:
    """Squares of `size` px at uniform places, which may overlap.

    The places depend on the image's height and width and on the seed alone: give the image of one
    index in a real and in a generated set one seed (CROP_SEED + index), and both are cropped at the
    same places. Raises InputError for an image below `size` px.
    """
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise InputError(
            f"an image of {width}x{height} px has no crops of {size} px; give larger images or a "
            "smaller crop"
        )
    return np.stack(
        [image[y : y + size, x : x + size] for y, x in corners(height, width, size, count, seed)]
    )


def corners(
    height: int, width: int, size: int, count: int, seed: int
) -> Int[np.ndarray, "count 2"]:
    """Upper left corners (y, x), px, each place as likely as another."""
    highest = np.array([height - size, width - size])
    return np.random.default_rng(seed).integers(0, highest, size=(count, 2), endpoint=True)
