"""Slides and rasters that tests make: real files of the formats that scanners and GDAL write."""

from pathlib import Path

import numpy as np
import rasterio
import tifffile
from PIL import Image
from rasterio.transform import from_origin


def texture(seed: int, height: int, width: int) -> np.ndarray:
    """Coloured blobs, saturated enough to be tissue: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_slide(
    path: Path, pixels: np.ndarray, mpp: float | tuple[float, float] | None, levels: int = 3
) -> Path:
    """A pyramidal tiled TIFF, as OpenSlide calls generic; `mpp` µm per pixel (x, y) or neither."""
    across, down = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    options = {"tile": (256, 256), "compression": "deflate", "photometric": "rgb"}
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            step = 2**level
            image = pixels
            if level:
                size = pixels.shape[1] // step, pixels.shape[0] // step
                box = 0, 0, size[0] * step, size[1] * step  # what is left at the edge is cut off
                image = Image.fromarray(pixels).resize(size, Image.Resampling.BOX, box)
                image = np.asarray(image)
            if mpp:
                options["resolution"] = (1e4 / across / step, 1e4 / down / step)
                options["resolutionunit"] = "CENTIMETER"
            writer.write(image, subfiletype=int(level > 0), metadata=None, **options)
    return path


def write_raster(
    path: Path,
    bands: np.ndarray,
    metres: float | tuple[float, float],
    crs: str = "EPSG:32721",
    corner: tuple[float, float] = (500_000, 7_000_000),
    **options,
) -> Path:
    """A GeoTIFF of [bands, height, width] with pixels of so many metres (x, y), or units of crs."""
    across, down = metres if isinstance(metres, tuple) else (metres, metres)
    count, height, width = bands.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=count,
        dtype=bands.dtype,
        crs=crs,
        transform=from_origin(*corner, across, down),
        tiled=True,
        blockxsize=256,
        blockysize=256,
        **options,
    ) as dataset:
        dataset.write(bands)
    return path
