"""Sets of images to be compared: a folder, a split of records, an array, the patches of one image.

An image is uint8 RGB. What has another number of channels becomes that: grey is repeated, palettes
are looked up, CMYK is converted as Pillow does, transparent pixels lie on white (as in records).
Colour profiles and the orientation of cameras are not applied.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from ssl_diffusion.data.imports.patch_files import walk
from ssl_diffusion.data.patches import rows_of, tissue_row
from ssl_diffusion.data.records import Records, Source
from ssl_diffusion.data.slides import PLAIN, check_samples, open_image
from ssl_diffusion.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".gif", ".ppm")
THREADS = min(8, os.cpu_count() or 1)  # that decode; Pillow lets others run meanwhile


class ImageSet:
    """Images of one size in a fixed order, read when they are asked for.

    Attributes:
      name: what messages, progress and reports call it.
      size: (height, width), pixels.
      settings: what a report pins, as JSON: `kind`, `name`, `count`, `height`, `width`, `format` of
        the files, and `sha256` of all pixels, which is None until `chunks` has gone through them.
    """

    def __init__(self, name: str, count: int, size: tuple[int, int], settings: Mapping[str, Any]):
        self.name, self.size, self._count = name, size, count
        self.settings: dict[str, Any] = {
            "name": name,
            "count": count,
            "height": size[0],
            "width": size[1],
            "sha256": None,
            **settings,
        }

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """One image; InputError naming it if it cannot be read."""
        raise NotImplementedError

    def chunks(self, size: int = 256) -> Iterator[UInt8[np.ndarray, "k h w 3"]]:
        """All images in order, `size` at a time (the last chunk has what is left)."""
        digest = hashlib.sha256(f"{len(self)} {self.size} ".encode())
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(self), size):
                indices = range(start, min(start + size, len(self)))
                chunk = np.stack(self._read(indices, pool))
                digest.update(chunk)
                yield chunk
        self.settings["sha256"] = digest.hexdigest()

    def pin(self) -> None:
        """Fills in the `sha256` of the settings; all pixels are read if they have not been."""
        if self.settings["sha256"] is None:
            with tqdm(total=len(self), desc=f"digest of {self.name}", unit="image") as bar:
                for chunk in self.chunks():
                    bar.update(len(chunk))

    def _read(self, indices: range, pool: ThreadPoolExecutor) -> list[np.ndarray]:
        return list(pool.map(self.__getitem__, indices))


class _Folder(ImageSet):
    def __init__(self, folder: Path, files: list[str], name: str):
        self._folder, self._files = folder, files
        with ThreadPoolExecutor(THREADS) as pool:
            heads = pool.map(self._head, range(len(files)))
            bar = tqdm(heads, total=len(files), unit="image", desc=f"open {name}", leave=False)
            formats, sizes = zip(*bar, strict=True)
        first = sizes[0]
        odd = next((i for i, size in enumerate(sizes) if size != first), None)
        if odd is not None:
            raise InputError(
                f"{folder}: {files[odd]} has {sizes[odd][1]}x{sizes[odd][0]} px, {files[0]} has "
                f"{first[1]}x{first[0]} px; expected images of one size: sort them into folders"
            )
        kinds = {"kind": "folder", "path": folder.name, "format": dict(Counter(formats))}
        super().__init__(name, len(files), first, kinds)

    def _head(self, index: int) -> tuple[str, tuple[int, int]]:
        """(format, (height, width)) of a file, its pixels not decoded."""
        with _opened(self._folder / self._files[index]) as image:
            return image.format, (image.height, image.width)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return read_image(self._folder / self._files[index])


class _RecordImages(ImageSet):
    def __init__(self, source: Source, name: str, settings: Mapping[str, Any]):
        self._source = source
        height, width = source[0]["image"].shape[:2]
        super().__init__(name, len(source), (height, width), settings)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self._source[index]["image"]


class _Array(ImageSet):
    def __init__(self, images: UInt8[np.ndarray, "n h w 3"], name: str):
        self._images = images
        height, width = images.shape[1:3]
        super().__init__(name, len(images), (height, width), {"kind": "array", "format": None})

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self._images[index]


class _Patches(ImageSet):
    """Read by strips: of a row of patches, no more pixels than lie in those that are asked for."""

    def __init__(self, path: Path, size_px: int, stride_px: int, recipe: Mapping[str, Any]):
        picture = open_image(
            path,
            nodata=recipe.get("nodata"),
            bands=tuple(recipe.get("bands") or (1, 2, 3)),
            value_range=tuple(recipe.get("value_range") or ()),
        )
        mpp, least = recipe.get("mpp"), recipe.get("min_saturation") or 0.0
        if mpp and picture.mpp is None:
            logging.warning(
                "%s does not say its µm per pixel; it is taken to have %g, as the records",
                path,
                mpp,
            )
        elif mpp:
            picture = picture.at(mpp)
        self._picture, self._size = picture, size_px
        rows = rows_of(picture, size_px, stride_px)
        looked_at = len(rows) * len(range(0, picture.width - size_px + 1, stride_px))
        if not looked_at:
            raise InputError(
                f"{path} has {picture.width}x{picture.height} px, less than one patch of "
                f"{size_px} px; ask for smaller ones"
            )
        most = recipe.get("max_nodata") or 0.0
        bar = tqdm(rows, desc=f"tissue of {path.name}", unit="row", leave=False)
        self._corners = [
            (patch.x, y)
            for y in bar
            for patch in tissue_row(picture, y, size_px, stride_px, least, most)
        ]
        if not self._corners:
            raise InputError(
                f"{path}: none of {looked_at} patches is tissue as the records' are (mean "
                f"saturation above {least:g}); give another image"
            )
        about = {"kind": "patches", "path": path.name, "format": picture.about.get("format")}
        about |= {"stride_px": stride_px, "image_px": [picture.width, picture.height]}
        about |= {"mpp": picture.mpp, "min_saturation": least, "no_tissue": looked_at}
        about["no_tissue"] -= len(self._corners)
        logging.info(
            "%s: %d patches; %d left out, as the records' recipe says",
            path,
            len(self._corners),
            about["no_tissue"],
        )
        super().__init__(path.name, len(self._corners), (size_px, size_px), about)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self._strip([self._corners[index]])[0]

    def _strip(self, corners: list[tuple[int, int]]) -> list[np.ndarray]:
        """Patches of one row, cut from one region."""
        lefts, size = [x for x, _ in corners], self._size
        strip = self._picture.read(lefts[0], corners[0][1], lefts[-1] + size - lefts[0], size)
        return [strip[:, left - lefts[0] : left - lefts[0] + size] for left in lefts]

    def _read(self, indices: range, pool: ThreadPoolExecutor) -> list[np.ndarray]:
        del pool  # pictures are read one region at a time
        asked = self._corners[indices.start : indices.stop]
        return [
            patch
            for _, row in groupby(asked, key=lambda corner: corner[1])
            for patch in self._strip(list(row))
        ]


def folder_images(folder: str | Path, name: str) -> ImageSet:
    """The images below a folder, by name: PNG, JPEG, TIFF, BMP, WebP, JPEG 2000, GIF, PPM.

    Links are followed; hidden files and other names are left out, with a line in the log. Raises
    InputError for a folder without images, for images of several sizes, and for one that cannot be
    read or has more than 8 bits.
    """
    folder = Path(folder)
    if not folder.is_dir():
        missing = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {missing}; give a folder of images")
    names = sorted(walk(folder, ("",)))
    shown = [n for n in names if not any(part.startswith(".") for part in Path(n).parts)]
    files = [n for n in shown if n.lower().endswith(SUFFIXES)]
    if other := sorted(set(names) - set(files)):
        some = ", ".join(other[:3]) + ", ..." * (len(other) > 3)
        logging.info("%s: %d files that are no images by their names: %s", folder, len(other), some)
    if not files:
        raise InputError(
            f"{folder} has no images ({len(other)} other files); expected some of "
            f"{', '.join(SUFFIXES)}"
        )
    return _Folder(folder, files, name)


def record_images(records: Records, split: str) -> ImageSet:
    """The images of a split, in the order of the records; InputError as `Records.source`."""
    source = records.source(split, ("image",))
    recipe = {key: records.metadata.get(key) for key in ("mpp", "split_sha256")}
    settings = {"kind": "records", "path": records.folder.name, "split": split, **recipe}
    settings["format"] = records.metadata.get("image")
    return _RecordImages(source, f"{records.folder.name} {split}", settings)


def array_images(images: UInt8[np.ndarray, "n h w 3"], name: str) -> ImageSet:
    """Images that are in memory; InputError if there are none."""
    if 0 in images.shape:
        raise InputError(
            f"{name}: images of shape {images.shape}, expected one or more, with pixels"
        )
    return _Array(images, name)


def large_image_patches(
    path: str | Path, size_px: int, stride_px: int, recipe: Mapping[str, Any] = MappingProxyType({})
) -> ImageSet:
    """The patches of one slide, OME-TIFF, raster or plain image on a regular grid, row by row.

    `recipe`, that of records, says at which `mpp` (an image without one is taken to have it), which
    `min_saturation` makes a patch tissue and how much of it may be without data (`max_nodata`), as
    `prepare` does; without it all are taken, as they lie. A tiled image is never in memory as a
    whole (a PNG or JPEG is decoded whole). Raises InputError as `data.slides.open_image`, for an
    image smaller than a patch or coarser than `mpp`, and where nothing is tissue.
    """
    return _Patches(Path(path), size_px, stride_px, recipe)


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB; InputError if it cannot be read or has samples of more than 8 bits."""
    with _opened(path) as image:
        try:
            if image.has_transparency_data:
                image = Image.alpha_composite(
                    Image.new("RGBA", image.size, "white"), image.convert("RGBA")
                )
            return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(path, error) from None


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=PLAIN)
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from None
    check_samples(getattr(image, "tag_v2", {}), image.mode, path)
    return image


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(
        f"image {path} cannot be read ({reason}); copy it again, or take it out of the folder"
    )
