"""Georeferenced rasters (GeoTIFF, JPEG 2000, ENVI, VRT, ...) through rasterio, by windows."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from ssl_diffusion.data.picture import Picture
from ssl_diffusion.errors import InputError

GEO_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img", ".ntf", ".dat")


def is_raster(file: Path) -> bool:
    """Whether GDAL reads the file and it says where on the ground its pixels lie."""
    try:
        with _open(file) as dataset:
            return dataset.crs is not None or not dataset.transform.is_identity
    except RasterioError:
        return False


def open_raster(
    file: Path, nodata: int | None, bands: tuple[int, int, int], value_range: tuple[float, ...]
) -> Picture:
    """Opens a raster as a picture, in three bands of 8 bits.

    Pixels are without data where the file's mask or nodata value says so of all three bands, else
    where these have `nodata`; a sample that is no number has no data either. `value_range` (low,
    high) is stretched to 0 to 255. Raises InputError for bands that are not there, for samples of
    more than 8 bits without a range, and for a file that cannot be read.
    """
    try:
        levels = [_open(file)]
        levels += [_open(file, overview_level=i) for i in range(len(levels[0].overviews(1)))]
    except RasterioError as error:
        raise InputError(f"{file} cannot be read as a raster ({error})") from None
    base = levels[0]
    if max(bands) > base.count:
        raise InputError(
            f"{file} has {base.count} bands, expected {list(bands)}; choose others by "
            "config.data.bands, as (1, 1, 1)"
        )
    types = {base.dtypes[band - 1] for band in bands}
    if types != {"uint8"} and not value_range:
        raise InputError(
            f"{file} has samples of {', '.join(sorted(types))}; say which values shall be black "
            "and white, as config.data.value_range=(0, 3000)"
        )

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        window = Window(x, y, width, height)
        try:
            samples = levels[level].read(bands, window=window)
            mask = levels[level].read_masks(bands, window=window).max(0)
        except RasterioError as error:
            raise InputError(f"raster {file} cannot be read at x={x} y={y} ({error})") from None
        if base.nodata is None and nodata is not None:
            mask = np.where((samples == nodata).all(0), 0, mask)
        mask = np.where(np.isfinite(samples).all(0), mask, 0)
        if value_range:
            low, high = value_range
            unit = (np.nan_to_num(samples.astype(np.float32)) - low) / (high - low)
            samples = np.round(np.clip(unit, 0, 1) * 255)
        return np.concatenate([samples, mask[None]]).transpose(1, 2, 0).astype(np.uint8)

    mpp, mpp_y = _resolution(base)
    about: dict[str, Any] = {"format": base.driver, "crs": str(base.crs)}
    downsamples = tuple(round(max(base.width / d.width, base.height / d.height)) for d in levels)
    return Picture(
        str(file),
        base.width,
        base.height,
        mpp,
        read,
        tuple(map(float, downsamples)),
        mpp_y,
        about,
    )


def _resolution(dataset: rasterio.DatasetReader) -> tuple[float | None, float | None]:
    """µm per pixel across and down; None where pixels are degrees, or nothing is said."""
    if dataset.crs is None or not dataset.crs.is_projected:
        return None, None
    metres = dataset.crs.linear_units_factor[1]
    t = dataset.transform
    return math.hypot(t.a, t.d) * metres * 1e6, math.hypot(t.b, t.e) * metres * 1e6


def _open(file: Path, **options: int) -> rasterio.DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(file, **options)
