"""Opening slides, rasters and plain images as pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ssl_diffusion import demo
from ssl_diffusion.data.picture import Picture
from ssl_diffusion.data.rasters import GEO_SUFFIXES, is_raster, open_raster
from ssl_diffusion.errors import InputError

Image.MAX_IMAGE_PIXELS = (
    None  # regions of interest are routinely larger than Pillow's alarm threshold
)


# Pillow's other readers start programs or only pretend to read.
PLAIN = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000", "GIF", "PPM")
# µm per pixel. No microscope is coarser; a TIFF that says so has the resolution of a printer: 72
# dpi, which many programs write without being asked, are 353 µm.
COARSEST = 25.0
_BITS_PER_SAMPLE = 258  # tag of TIFF


def open_image(
    path: str | Path,
    *,
    nodata: int | None = None,
    bands: tuple[int, int, int] = (1, 2, 3),
    value_range: tuple[float, ...] = (),
) -> Picture:
    """Opens a slide, a raster or a plain image as a picture.

    Rasters are what GDAL reads and has a place on the ground; `bands` and `value_range` are of
    those. `nodata` is the value that pixels without data have in all channels, where the file does
    not say it. Raises InputError as `open_slide` and `open_raster` do.
    """
    file = demo.resolve(path)
    if file.suffix.lower() in GEO_SUFFIXES and file.is_file() and is_raster(file):
        return open_raster(file, nodata, bands, value_range)
    slide = open_slide(path)
    properties = slide.properties
    mpp, mpp_y = (
        _positive(properties.get(name))
        for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    )
    if max(mpp or 0, mpp_y or 0) > COARSEST:
        mpp = mpp_y = None
    downsamples = tuple(_downsample(slide.dimensions, level) for level in slide.level_dimensions)

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        corner = round(x * downsamples[level]), round(y * downsamples[level])
        try:
            pixels = np.asarray(slide.read_region(corner, level, (int(width), int(height))))
        except (openslide.OpenSlideError, OSError, SyntaxError) as error:
            raise InputError(f"slide {path} cannot be read at x={x} y={y} ({error})") from None
        return _without(pixels, nodata)

    about = {"format": _format(slide, file)} | {
        name: properties[key]
        for name, key in (("objective", openslide.PROPERTY_NAME_OBJECTIVE_POWER),)
        if key in properties
    }
    quality = properties.get("aperio.Q")
    if quality:
        about["jpeg_quality"] = quality
    return Picture(str(path), *slide.dimensions, mpp, read, downsamples, mpp_y, about)


def _format(slide: openslide.AbstractSlide, file: Path) -> str:
    vendor = slide.properties.get(openslide.PROPERTY_NAME_VENDOR)
    return vendor or file.suffix.lower().lstrip(".")


def _downsample(finest: tuple[int, int], level: tuple[int, int]) -> float:
    """How much coarser a level is, from the (width, height) in pixels of the finest and its own.

    Scanners make levels by whole factors and cut off what is left at the edge, or fill it up: two
    pixels of the level at most. What differs by more was not made by a whole factor.
    """
    nearest = max(1, round(max(finest) / max(level)))
    if all(abs(n - m * nearest) <= 2 * nearest for n, m in zip(finest, level, strict=True)):
        return float(nearest)
    return max(max(1, n) / m for n, m in zip(finest, level, strict=True))


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _without(pixels: np.ndarray, nodata: int | None) -> np.ndarray:
    if nodata is None:
        return pixels
    pixels = pixels.copy()
    pixels[(pixels[..., :3] == nodata).all(-1), 3] = 0
    return pixels


def open_slide(path: str | Path) -> openslide.AbstractSlide:
    """Opens a slide through OpenSlide, or a plain image (PNG, JPEG) through Pillow, whole.

    The pixels of a plain image are decoded when the first of them is read. Raises InputError if the
    file is missing or is neither, and for samples of more than 8 bits.
    """
    file = demo.resolve(path)
    if not file.is_file():
        raise InputError(f"no image or slide at {path}; give an existing file")
    try:
        vendor = openslide.OpenSlide.detect_format(str(file))
        if vendor == "generic-tiff":  # scanners' own formats have 8 bits, or OpenSlide refuses them
            check_samples(_tags(file), "", file)
        if vendor:
            return openslide.OpenSlide(str(file))
        image = Image.open(file, formats=PLAIN)
        check_samples(getattr(image, "tag_v2", {}), image.mode, file)
        _check_whole(image, file)
        return _Plain(image)
    except (openslide.OpenSlideError, OSError, SyntaxError) as error:
        raise InputError(
            f"{path} is no slide that OpenSlide reads and no image that Pillow reads ({error})"
        ) from None


def _tags(file: Path) -> Mapping[int, Any]:
    """Tags of the first image of a TIFF, also where Pillow does not read its pixels."""
    with file.open("rb") as stream:
        head = stream.read(8)
        if 43 in head[2:4]:  # BigTIFF
            head += stream.read(8)
        tags = ImageFileDirectory_v2(head)
        stream.seek(tags.next)
        tags.load(stream)
    return tags


def check_samples(tags: Mapping[int, Any], mode: str, file: Path) -> None:
    """InputError for more than 8 bits: both libraries would clip or shift them to white or black.

    `tags` are those of a TIFF, `mode` is Pillow's. A PNG in RGB of 16 bits passes: it fills its
    range by definition.
    """
    if max(_numbers(tags.get(_BITS_PER_SAMPLE)), default=8) > 8 or mode.startswith(("I", "F")):
        raise InputError(
            f"{file} has samples of more than 8 bits; convert them to 8, or where it is a "
            "georeferenced raster give --value_range=LOW,HIGH"
        )


def _check_whole(image: Image.Image, file: Path) -> None:
    """InputError if a TIFF ends before its pixels do: OpenSlide only says that it is none."""
    tags = getattr(image, "tag_v2", {})
    for offsets, sizes in ((273, 279), (324, 325)):  # of strips, of tiles
        pairs = zip(_numbers(tags.get(offsets)), _numbers(tags.get(sizes)), strict=False)
        end = max((offset + size for offset, size in pairs), default=0)
        if end > file.stat().st_size:
            raise InputError(
                f"{file} is cut off: its pixels reach to byte {end}, the file has "
                f"{file.stat().st_size}; copy it again"
            )


def _numbers(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value or ())


class _Plain(openslide.ImageSlide):
    """An image of Pillow, RGB or with an alpha channel, read region by region."""

    def read_region(self, location, level, size):
        """The region as RGBA; the file is decoded at the first."""
        if self._image.mode != "RGBA":
            self._image = self._image.convert("RGBA")
        return super().read_region(location, level, size)
