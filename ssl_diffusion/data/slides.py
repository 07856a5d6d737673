"""Opening slides, rasters and plain images as pictures."""

from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from ssl_diffusion import demo
from ssl_diffusion.data.picture import Picture
from ssl_diffusion.data.rasters import GEO_SUFFIXES, is_raster, open_raster
from ssl_diffusion.errors import InputError

Image.MAX_IMAGE_PIXELS = (
    None  # regions of interest are routinely larger than Pillow's alarm threshold
)


# Pillow's other readers start programs or only pretend to read.
PLAIN = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000", "GIF", "PPM")


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
    sides = [max(1, side) for side in slide.dimensions]
    downsamples = tuple(
        _whole(max(width / w, height / h))
        for (width, height), (w, h) in ((sides, level) for level in slide.level_dimensions)
    )

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


def _whole(downsample: float) -> float:
    """Scanners make levels by whole factors and cut off what is left at the edge."""
    nearest = round(downsample)
    return float(nearest if abs(downsample / nearest - 1) < 0.01 else downsample)


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
    file is missing or is neither.
    """
    file = demo.resolve(path)
    if not file.is_file():
        raise InputError(f"no image or slide at {path}; give an existing file")
    try:
        if openslide.OpenSlide.detect_format(str(file)):
            return openslide.OpenSlide(str(file))
        image = Image.open(file, formats=PLAIN)
        _check_whole(image, file)
        return _Plain(image)
    except (openslide.OpenSlideError, OSError, SyntaxError) as error:
        raise InputError(
            f"{path} is no slide that OpenSlide reads and no image that Pillow reads ({error})"
        ) from None


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
