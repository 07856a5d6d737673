"""Reading regions of slides and plain images at a physical resolution."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from ssl_diffusion import demo
from ssl_diffusion.errors import InputError

Image.MAX_IMAGE_PIXELS = (
    None  # regions of interest are routinely larger than Pillow's alarm threshold
)
SAME_RESOLUTION = 0.02  # relative difference below which resampling would only blur (0.499 is 0.5)


@dataclass(frozen=True)
class Picture:
    """An RGB image read region by region; `width`, `height` in pixels, `mpp` µm per pixel."""

    path: str
    width: int
    height: int
    mpp: float | None
    _read: Callable[[int, int, int, int], np.ndarray]
    downsamples: tuple[float, ...] = (1.0,)  # of the levels that the file has

    def downsample(self, level: int) -> float:
        """How much coarser a level of the file is than its first; InputError without that level."""
        if level >= len(self.downsamples):
            raise InputError(
                f"level {level} of {self.path}, which has {len(self.downsamples)}; expected 0 to "
                f"{len(self.downsamples) - 1}"
            )
        return self.downsamples[level]

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region with corner (x, y): uint8 [height, width, 3]; InputError if not inside."""
        self.check_region(x, y, width, height)
        return self._read(x, y, width, height)

    def check_region(self, x: int, y: int, width: int, height: int) -> None:
        """Raises InputError unless the region is not empty and lies inside."""
        inside = 0 <= x and 0 <= y and x + width <= self.width and y + height <= self.height
        if width <= 0 or height <= 0 or not inside:
            raise InputError(
                f"region {x},{y},{width},{height} (x, y, width, height) is not inside {self.path}, "
                f"which has {self.width}x{self.height} px; choose one that is"
            )

    def at(self, mpp: float, assumed_mpp: float | None = None) -> "Picture":
        """The same image as if scanned at `mpp` µm per pixel (Lanczos resampling).

        `assumed_mpp` stands in where the file does not say its own resolution. Raises InputError if
        neither is known.
        """
        own = self.mpp or assumed_mpp
        if own is None:
            raise InputError(
                f"{self.path} does not say its µm per pixel; say it: prepare takes it as "
                "config.data.source_mpp, generate as --reference_mpp"
            )
        scale = mpp / own
        if abs(scale - 1) < SAME_RESOLUTION:
            return Picture(self.path, self.width, self.height, own, self._read)
        if scale < 1 - SAME_RESOLUTION:
            raise InputError(
                f"{self.path} has {own:g} µm per pixel, coarser than the {mpp:g} asked for; "
                "use images at least as fine"
            )

        def read(x: int, y: int, width: int, height: int) -> np.ndarray:
            box = np.array([x, y, x + width, y + height]) * scale
            # As far as the Lanczos kernel reaches, so that neighbours fit without a seam.
            margin = int(np.ceil(3 * scale))
            low = np.maximum(np.floor(box[:2]).astype(int) - margin, 0)
            limit = np.array([self.width, self.height])
            high = np.minimum(np.ceil(box[2:]).astype(int) + margin, limit)
            pixels = Image.fromarray(self._read(*low.tolist(), *(high - low).tolist()))
            local = np.clip(box - np.tile(low, 2), 0, np.tile(high - low, 2))
            return np.asarray(
                pixels.resize((width, height), Image.Resampling.LANCZOS, box=tuple(local))
            )

        return Picture(self.path, int(self.width / scale), int(self.height / scale), mpp, read)


def open_image(path: str | Path) -> Picture:
    """Opens a slide or a plain image as a picture; InputError as `open_slide` raises it."""
    slide = open_slide(path)
    mpp = slide.properties.get(openslide.PROPERTY_NAME_MPP_X)

    def read(x: int, y: int, width: int, height: int) -> np.ndarray:
        try:
            pixels = slide.read_region((int(x), int(y)), 0, (int(width), int(height)))
        except openslide.OpenSlideError as error:
            raise InputError(f"slide {path} cannot be read at x={x} y={y} ({error})") from None
        # A slide has no pixels outside its scanned areas: glass is white.
        white = Image.new("RGBA", pixels.size, "white")
        return np.asarray(Image.alpha_composite(white, pixels).convert("RGB"))

    mpp = float(mpp) if mpp else None
    return Picture(str(path), *slide.dimensions, mpp, read, slide.level_downsamples)


def open_slide(path: str | Path) -> openslide.AbstractSlide:
    """Opens a slide through OpenSlide, or a plain image (PNG, JPEG) through Pillow, whole.

    Raises InputError if the file is missing or is neither.
    """
    file = demo.resolve(path)
    if not file.is_file():
        raise InputError(f"no image or slide at {path}; give an existing file")
    try:
        if openslide.OpenSlide.detect_format(str(file)):
            return openslide.OpenSlide(str(file))
        with Image.open(file) as opened:
            return openslide.ImageSlide(opened.convert("RGB"))
    except (openslide.OpenSlideError, OSError, SyntaxError) as error:
        raise InputError(
            f"{path} is no slide that OpenSlide reads and no image that Pillow reads ({error})"
        ) from None
