"""Slides with a file of features each, as CLAM and TRIDENT write them.

    TRIDENT  JOB/20x_256px_0px_overlap/features_ENCODER/SLIDE.h5  `features`, `coords`
             JOB/20x_256px_0px_overlap/patches/SLIDE_patches.h5   `coords`
    CLAM     FEATURES/h5_files/SLIDE.h5                           `features`, `coords`
             RESULTS/patches/SLIDE.h5                             `coords`

`features` are [n, dim] or [n, tokens, dim], `coords` [n, 2] are (x, y) of patches' corners in
pixels of the slide's finest level; some published files have both in a batch of one. Attributes of
`coords` say how large a patch is there (`patch_sizes`); CLAM's files of features have none. Pixels
are cut from the slide of the same name. Patches that reach over its edge are left out: what the
encoder saw there is not in the slide.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ssl_diffusion import demo
from ssl_diffusion.data import groups
from ssl_diffusion.data.imports import arrays
from ssl_diffusion.data.imports.names import origin_name
from ssl_diffusion.data.imports.patch_files import PER_ORIGIN, ROW, walk
from ssl_diffusion.data.imports.patch_sizes import coordinates, corners_of, said_side
from ssl_diffusion.data.origins import Collection, Example
from ssl_diffusion.data.recipe import recipe_of
from ssl_diffusion.data.slides import Picture, open_image
from ssl_diffusion.errors import InputError

SLIDES = (
    *(".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi"),
    *(".ome.tiff", ".ome.tif", ".tiff", ".tif", ".png", ".jpeg", ".jpg"),
)
WHOLE_SLIDES = "slide_features_"  # folders in which TRIDENT keeps one vector a slide
MOST = 10_000_000  # patches of a slide; a file that claims more is damaged or no slide's
TOLERANCE = 1.25  # scanners that say 40x differ by so much; the next magnification by 2


@dataclass(frozen=True)
class SlideWithFeatures:
    """At most PER_ORIGIN patches of one slide: an `Origin`.

    Attributes:
      slides: files of the slide's name; one is expected.
      start: index of the first patch.
      patch_size_level0: as the config says it; 0 where the file has to.
      beside: files with coordinates that may say it, too.
    """

    name: str
    path: str
    split: str | None
    group: str
    slides: tuple[str, ...]
    start: int
    patch_px: int
    mpp: float
    patch_size_level0: int
    beside: tuple[str, ...]
    label: str = ""
    text: str = ""

    def open(self) -> "_OpenedSlide":
        """Slide and features; InputError if one is missing or they do not go together."""
        return _OpenedSlide(self)


class _OpenedSlide:
    def __init__(self, origin: SlideWithFeatures):
        self._origin = origin
        if len(origin.slides) != 1:
            found = ", ".join(origin.slides) or "none"
            raise InputError(
                f"{origin.path} needs the slide of its name in config.data.slides, found {found}; "
                "put one there"
            )
        self._file = arrays.open_h5(origin.path)  # open as long as its features are read
        self._features, coords = _checked(self._file)
        self._batched = coords.ndim == 3
        self._side = origin.patch_size_level0 or said_side(coords, origin.beside)
        self._slide = open_image(origin.slides[0])
        patch_mpp = self._check_resolution(self._slide)
        corners = corners_of(coords)[origin.start : origin.start + PER_ORIGIN]
        size = np.array([self._slide.width, self._slide.height])
        if ((corners < 0) | (corners >= size)).any():
            raise InputError(
                f"{origin.path} has patches outside {origin.slides[0]} ({size[0]}x{size[1]} px): "
                "is it of another slide? Put the right one in config.data.slides"
            )
        inside = (corners + self._side <= size).all(axis=1)
        self._corners = corners[inside]
        self._rows = origin.start + np.flatnonzero(inside)
        self.most = len(self._rows)
        self.rows = -(-self.most // ROW)
        self.about: dict[str, Any] = {
            "format": "slide with features",
            "picture": origin.slides[0],
            "scale": [self._side / origin.patch_px] * 2,
            "width": self._slide.width,
            "height": self._slide.height,
            "patch_size_level0": self._side,
            "over_the_edge": int((~inside).sum()),
        }
        if self._slide.mpp:
            self.about |= {"mpp": self._slide.mpp, "patch_mpp": patch_mpp}

    def cut(self, row: int) -> list[Example]:
        """The patches of a row, resampled to `patch_px` (Lanczos)."""
        origin, part = self._origin, slice(row * ROW, (row + 1) * ROW)
        embeddings = arrays.read_rows(self._features, self._rows[part], self._batched)
        scale = origin.patch_px / self._side
        examples = []
        for corner, embedding in zip(self._corners[part], embeddings, strict=True):
            pixels = self._slide.read(*corner.tolist(), self._side, self._side)
            if self._side != origin.patch_px:
                image = Image.fromarray(pixels)
                side = (origin.patch_px, origin.patch_px)
                pixels = np.asarray(image.resize(side, Image.Resampling.LANCZOS))
            x, y = np.round(corner * scale).astype(int).tolist()
            examples.append(
                Example(image=pixels, split=origin.split, x=x, y=y, embedding=embedding)
            )
        return examples

    def _check_resolution(self, slide: Picture) -> float | None:
        """µm per pixel of the patches; InputError if they are of another magnification."""
        if not slide.mpp:
            return None
        origin = self._origin
        found = slide.mpp * self._side / origin.patch_px
        if not 1 / TOLERANCE < found / origin.mpp < TOLERANCE:
            raise InputError(
                f"patches of {origin.path} are {self._side} px of {slide.mpp:g} µm: {found:g} µm "
                f"per pixel at {origin.patch_px} px, but config.data.mpp is {origin.mpp:g}; set it "
                "or config.data.patch_px"
            )
        return found


def recognise(source: str) -> bool:
    """Whether this is an HDF5 file with `features` and `coords`, or a folder that holds some."""
    return bool(_folders(demo.resolve(source)))


def collect(data: ConfigDict) -> Collection:
    """The patches of all slides; whole patients or slides are drawn for the splits.

    `data.slides` is their folder; `data.patch_size_level0` says how large patches are in pixels of
    the finest level, where the files do not. Files that cannot be read fail when they are opened.
    Raises InputError where no file can be read or their widths differ.
    """
    root = demo.resolve(data.source)
    folders = _folders(root)
    if len(folders) > 1:
        raise InputError(
            f"{root} holds features in {len(folders)} folders "
            f"({', '.join(map(str, folders[:5]))}); give one of them as config.data.source"
        )
    if not data.get("slides"):
        raise InputError(f"features in {root} need slides; name their folder: config.data.slides")
    files = [root] if root.is_file() else sorted(folders[0].glob("*.h5"))
    slides = _find_slides(demo.resolve(data.slides))
    counts, shapes, errors = {}, {}, []
    for path in files:
        try:
            with arrays.open_h5(path) as file:
                features, coords = _checked(file)
                counts[path] = coords.shape[-2]
                shapes.setdefault(arrays.embedding_shape(features, coords.ndim == 3), path)
        except InputError as error:
            counts[path] = 1  # one origin, of which opening tells the reason
            errors.append(error)
    if not shapes:
        raise errors[0]
    if len(shapes) > 1:
        found = ", ".join(f"{list(shape)} in {path}" for shape, path in shapes.items())
        raise InputError(f"embeddings have different shapes: {found}; prepare them apart")
    origins = [
        SlideWithFeatures(
            name=origin_name(path.stem, None, start // PER_ORIGIN),
            path=str(path),
            split=None,
            group=groups.group_of(path.stem),
            slides=slides.get(path.stem, ()),
            start=start,
            patch_px=data.patch_px,
            mpp=data.mpp,
            patch_size_level0=data.get("patch_size_level0") or 0,
            beside=coordinates(path),
        )
        for path in files
        for start in range(0, counts[path], PER_ORIGIN)
    ]
    origins = groups.draw(origins, tuple(recipe_of(data)["held_out"]))
    return Collection(origins, "features of slides", embedding=next(iter(shapes)))


def _folders(root: Path) -> list[Path]:
    """Folders at or below `root` whose first HDF5 file that can be read holds features."""
    if root.is_file():
        return [root.parent] if _holds_features(root) else []
    firsts: dict[Path, bool | None] = {}
    for path in (root / name for name in walk(root, (".h5",))):
        if path.parent.name.startswith(WHOLE_SLIDES):
            continue
        if firsts.get(path.parent) is None:
            firsts[path.parent] = _holds_features(path)
    return sorted(folder for folder, holds in firsts.items() if holds)


def _holds_features(path: Path) -> bool | None:
    """None if nobody can say: the file is no HDF5, or damaged."""
    try:
        with arrays.open_h5(path) as file:
            return arrays.holds(file, ("features", "coords"))
    except InputError:
        return None


def _checked(file: h5py.File) -> tuple[h5py.Dataset, h5py.Dataset]:
    """Features and coordinates; InputError unless there are as many of one as of the other.

    Raises InputError for a file without patches, too, and for one of more than MOST.
    """
    features, coords = arrays.dataset(file, "features"), arrays.dataset(file, "coords")
    batched = coords.ndim == 3
    arrays.embedding_shape(features, batched)
    shape = coords.shape[batched:]
    if coords.dtype.kind not in "iu" or len(shape) != 2 or shape[1] != 2:
        raise InputError(
            f"coords of {file.filename} are {coords.dtype} {list(coords.shape)}, expected whole "
            "numbers [n, 2]"
        )
    if batched and (coords.shape[0], features.shape[0]) != (1, 1):
        raise InputError(f"{file.filename} holds a batch of {len(coords)} slides, expected one")
    if features.shape[batched] != shape[0]:
        raise InputError(
            f"{file.filename} has {features.shape[batched]} features for {shape[0]} coords, "
            "expected one for each; extract them again"
        )
    if not 0 < shape[0] <= MOST:
        held = f"{shape[0]} patches, expected {MOST} at most" if shape[0] else "no patches"
        raise InputError(f"{file.filename} holds {held}; extract it again, or remove it")
    return features, coords


def _find_slides(root: Path) -> dict[str, tuple[str, ...]]:
    """Slides by their name without its ending; those of one name in several folders together."""
    if not root.exists():
        raise InputError(f"config.data.slides={root} does not exist; name the folder of the slides")
    found: dict[str, tuple[str, ...]] = {}
    for path in [root] if root.is_file() else (root / name for name in walk(root, SLIDES)):
        for ending in SLIDES:
            if path.name.lower().endswith(ending):
                stem = path.name[: -len(ending)]
                found[stem] = (*found.get(stem, ()), str(path))
                break
    return found
