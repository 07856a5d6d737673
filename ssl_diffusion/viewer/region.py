"""A region of a slide as a slide of its own, for OpenSlide's Deep Zoom tiles."""

import openslide
from PIL import Image

LARGEST = 2**24  # px that a coarsest level may have: a tile of an overview reads all of it
SHRINK = 16
BLOCK = 256 * SHRINK  # px read at once


class Region:
    """What DeepZoomGenerator asks of a slide, for the region with corner (x, y) in level 0 px.

    A coarsest level of more than `LARGEST` px gets a coarser one, made in memory: it is read once
    then, block by block, instead of whole for every tile of an overview. Reading is thread-safe.
    """

    def __init__(self, slide: openslide.AbstractSlide, x: int, y: int, width: int, height: int):
        self._slide, self._corner = slide, (x, y)
        self.properties = slide.properties
        self.level_downsamples = slide.level_downsamples
        self.level_dimensions = tuple(
            (max(1, round(width / factor)), max(1, round(height / factor)))
            for factor in slide.level_downsamples
        )
        self._overview = None
        columns, rows = self.level_dimensions[-1]
        if columns * rows > LARGEST:
            self._overview = self._shrunk(columns, rows)
            self.level_dimensions += (self._overview.size,)
            self.level_downsamples += (self.level_downsamples[-1] * SHRINK,)

    def get_best_level_for_downsample(self, downsample: int | float) -> int:
        """The coarsest level that is no coarser than `downsample`."""
        return max(0, sum(factor <= downsample for factor in self.level_downsamples) - 1)

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        """RGBA of `size` at `level`; `location` in level 0 px from the region's corner."""
        if self._overview and level == len(self.level_downsamples) - 1:
            x, y = (round(place / self.level_downsamples[level]) for place in location)
            return self._overview.crop((x, y, x + size[0], y + size[1]))
        x, y = (place + corner for place, corner in zip(location, self._corner, strict=True))
        return self._slide.read_region((x, y), level, size)

    def _shrunk(self, columns: int, rows: int) -> Image.Image:
        """The coarsest level, shrunk: RGBA, read block by block."""
        level = len(self.level_downsamples) - 1
        shrunk = Image.new("RGBA", (-(-columns // SHRINK), -(-rows // SHRINK)))
        for y in range(0, rows, BLOCK):
            for x in range(0, columns, BLOCK):
                corner = tuple(int(place * self.level_downsamples[level]) for place in (x, y))
                size = min(BLOCK, columns - x), min(BLOCK, rows - y)
                pixels = self.read_region(corner, level, size).reduce(SHRINK)
                shrunk.paste(pixels, (x // SHRINK, y // SHRINK))
        return shrunk
