"""Pictures as origins: slides, rasters and plain images, cut row by row on a regular grid."""

from dataclasses import dataclass
from typing import Any

from ssl_diffusion.data.annotations import read_annotations
from ssl_diffusion.data.origins import Example
from ssl_diffusion.data.patches import rows_of, tissue_row
from ssl_diffusion.data.picture import Picture
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.data.split import Blocks
from ssl_diffusion.errors import InputError


@dataclass(frozen=True)
class Cutting:
    """How pictures are read and cut, as `recipe.RECIPE` describes it."""

    patch_px: int
    mpp: float
    stride_px: int
    min_saturation: float
    max_nodata: float
    nodata: int | None
    bands: tuple[int, int, int]
    value_range: tuple[float, ...]

    def open(self, path: str, source_mpp: float | None) -> Picture:
        """The picture at the records' resolution; InputError as `open_image` and `Picture.at`."""
        return self.image(path).at(self.mpp, source_mpp)

    def image(self, path: str) -> Picture:
        """The picture at its own resolution; InputError as `open_image`."""
        return open_image(path, nodata=self.nodata, bands=self.bands, value_range=self.value_range)


def cutting_of(recipe: dict[str, Any]) -> Cutting:
    """The entries of a recipe that say how pictures are cut."""
    return Cutting(
        **{name: recipe[name] for name in ("patch_px", "mpp", "stride_px", "min_saturation")},
        **{name: recipe[name] for name in ("max_nodata", "nodata")},
        **{name: tuple(recipe[name]) for name in ("bands", "value_range")},
    )


@dataclass(frozen=True)
class ImageOrigin:
    """A picture to cut, see `origins.Origin`; `mpp` is assumed where the file does not say it.

    With `blocks`, training patches keep clear of every held-out block, and "test" patches tile the
    blocks without overlap. Otherwise all are of one `split`, which overlap only in training. With
    `annotations`, a GeoJSON file, only patches whose centre lies in a region are cut, and take its
    label.
    """

    name: str
    path: str
    cutting: Cutting
    split: str | None = None
    group: str = ""
    label: str = ""
    text: str = ""
    mpp: float | None = None
    blocks: Blocks | None = None
    annotations: str = ""

    def open(self) -> "_Rows":
        """Opens the picture; InputError as `Cutting.open`, and if it holds no whole patch."""
        return _Rows(self)


class _Rows:
    def __init__(self, origin: ImageOrigin):
        cutting = origin.cutting
        self._origin, self._picture = origin, cutting.open(origin.path, origin.mpp)
        picture, size = self._picture, cutting.patch_px
        dense = origin.split in (None, "train")
        self._stride = cutting.stride_px if dense else size
        self._regions = read_annotations(origin.annotations) if origin.annotations else None
        self._edges = rows_of(picture, size, self._stride)
        self.rows = len(self._edges)
        self.most = self.rows * len(range(0, picture.width - size + 1, self._stride))
        if not self.most:
            raise InputError(
                f"{origin.path} has {picture.width}x{picture.height} px at {cutting.mpp:g} µm per "
                f"pixel, less than a patch of {size} px"
            )
        self.about = picture.about | {
            "width": round(picture.width * picture.scale[0]),
            "height": round(picture.height * picture.scale[1]),
            "mpp": picture.mpp and picture.mpp / picture.scale[0],
            "scale": list(picture.scale),
        }

    def cut(self, row: int) -> list[Example]:
        """The examples of one row of patches."""
        origin, cutting = self._origin, self._origin.cutting
        found: list[Example] = []
        for patch in tissue_row(
            self._picture,
            self._edges[row],
            cutting.patch_px,
            self._stride,
            cutting.min_saturation,
            cutting.max_nodata,
        ):
            split = origin.split
            if origin.blocks:
                split = origin.blocks.split_of(patch.x, patch.y, cutting.patch_px)
            if not split:
                continue
            example = Example(image=patch.pixels, split=split, x=patch.x, y=patch.y)
            if self._regions:
                half, (across, down) = cutting.patch_px / 2, self._picture.scale
                label = self._regions.label_at((patch.x + half) * across, (patch.y + half) * down)
                if label is None:
                    continue
                example["label"] = label
            found.append(example)
        return found
