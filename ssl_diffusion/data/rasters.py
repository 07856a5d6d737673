"""Georeferenced rasters (GeoTIFF, JPEG 2000, VRT, ...) through rasterio, by windows."""

import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # what transforms raise; rasterio.errors lacks it
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window

from ssl_diffusion.data.picture import Picture
from ssl_diffusion.errors import InputError

GEO_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img", ".ntf", ".dat")
LONGITUDE_LATITUDE = "EPSG:4326"  # of WGS84, whose axes follow
EQUATORIAL, FLATTENING = 6_378_137.0, 1 / 298.257223563  # m, 1
# Projections whose metres are true at the equator, or a parallel, alone.
_STRETCHED = re.compile(r'PROJECTION\["(Mercator_[12]SP|Equirectangular|Plate_Carree)"')


def is_raster(file: Path) -> bool:
    """Whether GDAL reads the file and it says where on the ground its pixels lie."""
    try:
        with _open(file) as dataset:
            return dataset.crs is not None or not dataset.transform.is_identity
    except RasterioError:
        return False


def outline(file: Path) -> np.ndarray | None:
    """The corners of a raster, (longitude, latitude) in degrees: float64 [4, 2], in turn.

    Longitudes do not jump: they pass 180 where the scene does. None for what GDAL does not read and
    for what has no place on the ground.
    """
    try:
        with _open(file) as dataset:
            bounds = _bounds(dataset)
            if bounds is None:
                return None
            turn = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
            corners = _degrees(dataset, turn * (dataset.width, dataset.height))
    except RasterioError:
        return None
    west, south, east, north = bounds
    east += 360 * (east < west)
    if corners is None or east - west > 180:  # around a pole, or the world
        return np.array([(west, south), (east, south), (east, north), (west, north)])
    middle = (west + east) / 2
    corners[:, 0] = middle + (corners[:, 0] - middle + 180) % 360 - 180
    return corners


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
            "--bands=1,1,1 (config.data.bands)"
        )
    types = {base.dtypes[band - 1] for band in bands}
    if types != {"uint8"} and not value_range:
        raise InputError(
            f"{file} has samples of {', '.join(sorted(types))}; say which values shall be black "
            "and white: --value_range=0,3000 (config.data.value_range)"
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
    bounds = _bounds(base)
    if bounds:
        about["bounds"] = bounds
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
    """µm on the ground per pixel across and down, at the centre of the scene.

    None where the file does not say where on the ground it lies.
    """
    crs, t = dataset.crs, dataset.transform
    if crs is None or not (crs.is_geographic or crs.is_projected):
        return None, None
    if crs.is_projected and not _STRETCHED.search(crs.to_wkt()):
        metres = crs.linear_units_factor[1]
        return math.hypot(t.a, t.d) * metres * 1e6, math.hypot(t.b, t.e) * metres * 1e6
    centre = np.array((dataset.width, dataset.height)) / 2
    edges = _degrees(dataset, centre + [(-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)])
    if edges is None:
        return None, None
    latitude = math.radians(edges[:, 1].mean())
    # Radii of curvature along the meridian and across it: Snyder, Map Projections (USGS
    # Professional Paper 1395, 1987), equations 4-18 and 4-20.
    squared = FLATTENING * (2 - FLATTENING)  # eccentricity
    root = math.sqrt(1 - squared * math.sin(latitude) ** 2)
    along, across = EQUATORIAL * (1 - squared) / root**3, EQUATORIAL / root
    east, north = np.radians(edges[1::2] - edges[::2]).T
    east = np.remainder(east + math.pi, 2 * math.pi) - math.pi  # across 180 degrees
    sizes = np.hypot(east * across * math.cos(latitude), north * along) * 1e6
    return float(sizes[0]), float(sizes[1])


def _degrees(dataset: rasterio.DatasetReader, at: np.ndarray) -> np.ndarray | None:
    """(longitude, latitude) of points [points, (x, y)] in pixels, alike; None if not on Earth.

    A file may call metres degrees, or be of another planet.
    """
    t, (x, y) = dataset.transform, at.T
    xs, ys = t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f
    try:
        degrees = np.stack(transform(dataset.crs, LONGITUDE_LATITUDE, xs, ys)[:2], -1)
    except (RasterioError, CPLE_BaseError):
        return None
    return degrees if np.isfinite(degrees).all() and np.abs(degrees[:, 1]).max() <= 90 else None


def _bounds(dataset: rasterio.DatasetReader) -> list[float] | None:
    """[west, south, east, north] in degrees; west > east across 180. None if not on Earth."""
    if dataset.crs is None:
        return None
    left, bottom, right, top = dataset.bounds
    bottom, top = sorted((bottom, top))  # rows may go north
    try:
        found = transform_bounds(dataset.crs, LONGITUDE_LATITUDE, left, bottom, right, top)
    except (RasterioError, CPLE_BaseError):
        return None
    _, south, _, north = found
    return list(found) if np.isfinite(found).all() and -90 <= south < north <= 90 else None


def _open(file: Path, **options: int) -> rasterio.DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(file, **options)
