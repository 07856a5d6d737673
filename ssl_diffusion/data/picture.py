"""A picture: regions of an image at a physical resolution, wherever its pixels come from."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from ssl_diffusion.errors import InputError

SAME_RESOLUTION = 0.005  # relative difference below which resampling would only blur
LARGEST_LEVEL = 2**26  # px of a file's level that are read for a thumbnail: 256 MB
RESAMPLING = "Lanczos, 3 lobes, from the coarsest level that is at least as fine"
COLOUR = "RGB as the file decodes, its colour profile not applied; glass outside a scan is white"


@dataclass(frozen=True)
class Picture:
    """An RGB image read region by region; `width`, `height` in pixels.

    `mpp` is µm per pixel across; `mpp_y` down, where that is another. `about` says in JSON what the
    file is. `scale` is pixels of the file for one of the picture, (across, down).
    """

    path: str
    width: int
    height: int
    mpp: float | None
    # (level, x, y, width, height), all in pixels of that level -> uint8 [height, width, 4]
    _read: Callable[[int, int, int, int, int], np.ndarray]
    downsamples: tuple[float, ...] = (1.0,)  # of the levels that the file has
    mpp_y: float | None = None
    about: dict[str, Any] = field(default_factory=dict)
    scale: tuple[float, float] = (1.0, 1.0)

    def downsample(self, level: int) -> float:
        """How much coarser a level of the file is than its first; InputError without that level."""
        if level >= len(self.downsamples):
            raise InputError(
                f"level {level} of {self.path}, which has {len(self.downsamples)}; expected 0 to "
                f"{len(self.downsamples) - 1}"
            )
        return self.downsamples[level]

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region with corner (x, y): uint8 [height, width, 3]; InputError if not inside.

        What has no data is white.
        """
        return self.read_with_mask(x, y, width, height)[0]

    def read_with_mask(
        self, x: int, y: int, width: int, height: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `read`, and which pixels have data: bool [height, width]."""
        self.check_region(x, y, width, height)
        pixels = self._read(0, x, y, width, height)
        valid = pixels[..., 3] >= 128
        if pixels[..., 3].min() == 255:
            return pixels[..., :3], valid
        image = Image.fromarray(pixels)
        white = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(white, image).convert("RGB")), valid

    def thumbnail(self, longest: int) -> np.ndarray:
        """All of it, `longest` px at most on its long side: uint8 [h, w, 3].

        It is read from the coarsest level that suffices. Raises InputError if that is too large to
        be read for this.
        """
        factor = max(1.0, max(self.width, self.height) / longest)
        level = max(i for i, down in enumerate(self.downsamples) if down <= factor)
        down = self.downsamples[level]
        width, height = int(self.width / down), int(self.height / down)
        if width * height > LARGEST_LEVEL:
            raise InputError(
                f"{self.path} has no coarse level: a thumbnail of it would take {width}x{height} px"
            )
        image = Image.fromarray(self._read(level, 0, 0, width, height))
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        white = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(white, image).convert("RGB"))

    def check_region(self, x: int, y: int, width: int, height: int) -> None:
        """Raises InputError unless the region is not empty and lies inside."""
        inside = 0 <= x and 0 <= y and x + width <= self.width and y + height <= self.height
        if width <= 0 or height <= 0 or not inside:
            raise InputError(
                f"region {x},{y},{width},{height} (x, y, width, height) is not inside {self.path}, "
                f"which has {self.width}x{self.height} px; choose one that is"
            )

    def at(self, mpp: float, assumed_mpp: float | None = None) -> "Picture":
        """The same image as if scanned at `mpp` µm per pixel, by RESAMPLING.

        `assumed_mpp` stands in where the file does not say its own resolution. Raises InputError if
        neither is known.
        """
        own = self.mpp or assumed_mpp
        if own is None:
            raise InputError(
                f"{self.path} does not say its µm per pixel; say it: prepare takes it as "
                "--source_mpp (config.data.source_mpp; --mpp is what records shall have), generate "
                "as --reference_mpp"
            )
        scale = np.array([mpp / own, mpp / (self.mpp_y or own)])
        if (np.abs(scale - 1) < SAME_RESOLUTION).all():
            return replace(self, mpp=own)
        if (scale < 1 - SAME_RESOLUTION).any():
            raise InputError(
                f"{self.path} has {own:g} µm per pixel, coarser than the {mpp:g} asked for; "
                "use images at least as fine"
            )
        finest = scale.min() * (1 + SAME_RESOLUTION)
        level = max(i for i, down in enumerate(self.downsamples) if down <= finest)
        down = self.downsamples[level]
        step = scale / down
        limit = np.array([self.width, self.height]) // down

        def read(_: int, x: int, y: int, width: int, height: int) -> np.ndarray:
            box = np.array([x, y, x + width, y + height]) * np.tile(step, 2)
            # As far as the Lanczos kernel reaches, so that neighbours fit without a seam.
            margin = np.ceil(3 * np.maximum(step, 1)).astype(int)
            low = np.maximum(np.floor(box[:2]).astype(int) - margin, 0)
            high = np.minimum(np.ceil(box[2:]).astype(int) + margin, limit).astype(int)
            pixels = Image.fromarray(self._read(level, *low.tolist(), *(high - low).tolist()))
            local = np.clip(box - np.tile(low, 2), 0, np.tile(high - low, 2))
            return np.asarray(
                pixels.resize((width, height), Image.Resampling.LANCZOS, box=tuple(local))
            )

        return Picture(
            self.path,
            int(self.width / scale[0]),
            int(self.height / scale[1]),
            mpp,
            read,
            about=self.about | {"level": level, "resampled": True},
            scale=tuple(scale.tolist()),
        )
