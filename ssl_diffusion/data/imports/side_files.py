"""Patches with files of numbers beside them: the training data of the pan-cancer model PixCell.

What cvlab-stonybrook/PixCell reads (diffusion/data/datasets/pan_cancer.py) and writes
(tools/extract_features.py):

    patches/DATA/ORGAN/single_1024/SLIDE/COLUMN_ROW.jpeg
    features/DATA/ORGAN/single_1024/SLIDE/COLUMN_ROW_uni.npy      [tokens, dim] or [dim]
    features/DATA/ORGAN/single_1024/SLIDE/COLUMN_ROW_sd3_vae.npy  [32, h, w] or [2, 16, h, w]

Its index, patches/metadata/patch_names_all.hdf5, names the same patches and is not read.
Without those two folders the files lie beside the patches (so its README), or below features/. A
token is the embedding of 256 px, tokens go row by row. The latent is raw: mean, then standard
deviation, of side / 8. A patch larger than `data.patch_px` is cut into pieces of that size with
their tokens and their part of the latent, as the published training does below 1024 px.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from ssl_diffusion import demo
from ssl_diffusion.data import groups
from ssl_diffusion.data.imports import arrays
from ssl_diffusion.data.imports.names import origin_name, slide_of, tile_of
from ssl_diffusion.data.imports.patch_files import (
    PER_ORIGIN,
    ROW,
    SUFFIXES,
    read_patch,
    read_pixels,
    size_of,
    walk,
)
from ssl_diffusion.data.origins import SPLITS, Collection, Example
from ssl_diffusion.data.recipe import recipe_of
from ssl_diffusion.errors import InputError

EMBEDDING, LATENT = "_uni.npy", "_sd3_vae.npy"
CHANNELS, FACTOR = 16, 8  # of the first stage, Stable Diffusion 3's
SCALING = 0.0609, 1.5305  # shift and scale of its latents


@dataclass(frozen=True)
class Layout:
    """What all patches have in common; `pieces` that each is cut into along a side."""

    images: str
    features: str
    patch_px: int
    pieces: int
    tokens: tuple[int, int] | None  # [tokens, dim] of a whole patch
    latent: bool

    def beside(self, name: str, ending: str) -> Path:
        """The file of a patch that has this ending."""
        path = PurePosixPath(name)
        return Path(self.features, path.parent, path.stem + ending)


@dataclass(frozen=True)
class PatchesWithFiles:
    """At most PER_ORIGIN patches of one slide: an `Origin`."""

    name: str
    path: str
    split: str | None
    group: str
    names: tuple[str, ...]
    layout: Layout
    label: str = ""
    text: str = ""

    def open(self) -> "_OpenedFiles":
        """Nothing is read yet: every patch is a file of its own."""
        return _OpenedFiles(self)


class _OpenedFiles:
    def __init__(self, origin: PatchesWithFiles):
        self._origin = origin
        pieces = origin.layout.pieces**2
        self._step = max(1, ROW // pieces)
        self.rows = -(-len(origin.names) // self._step)
        self.most = len(origin.names) * pieces
        self.about: dict[str, Any] = {"format": "patches with side files"}

    def cut(self, row: int) -> list[Example]:
        """The patches of a row, or the pieces of them, row by row."""
        names = self._origin.names[row * self._step : (row + 1) * self._step]
        return [piece for name in names for piece in self._pieces(name)]

    def _pieces(self, name: str) -> list[Example]:
        layout = self._origin.layout
        n, side = layout.pieces, layout.patch_px
        path = Path(layout.images, name)
        if n > 1:
            examples = [Example(image=piece) for piece in _tiles(read_pixels(path, n * side), n)]
        else:
            patch = read_patch(path, side)
            if patch is None:
                raise InputError(f"{path} is smaller than {side}x{side} px; take it away")
            examples = [patch]
        column, line = tile_of(name)
        for index, example in enumerate(examples):
            y, x = divmod(index, n)
            example |= Example(
                split=self._origin.split, x=(column * n + x) * side, y=(line * n + y) * side
            )
        if layout.tokens:
            tokens = _embedding(layout.beside(name, EMBEDDING), layout.tokens)
            for example, part in zip(examples, _token_pieces(tokens, n), strict=True):
                example["embedding"] = part
        if layout.latent:
            moments = _latent(layout.beside(name, LATENT), n * side // FACTOR)
            for example, mean, deviation in zip(
                examples, *(_tiles(moment, n) for moment in moments), strict=True
            ):
                example["latent"], example["latent_std"] = mean, deviation
        return examples


def recognise(source: str) -> bool:
    """Whether a folder holds a file of one of the two endings."""
    root = demo.resolve(source)
    return next(walk(root, (EMBEDDING, LATENT)), None) is not None


def collect(data: ConfigDict) -> Collection:
    """The patches below `data.source` with what lies beside them.

    Folders train/, val/ and test/ above all patches are their splits; otherwise whole patients or
    slides are drawn. `data.features` names another folder of side files with the same paths. Raises
    InputError unless every patch has the same kinds of file.
    """
    root = demo.resolve(data.source)
    images = root / "patches" if (root / "patches").is_dir() else root
    features = root / "features" if (root / "features").is_dir() else images
    features = demo.resolve(data.features) if data.get("features") else features
    names = list(walk(images))
    if not names:
        raise InputError(f"{images} holds no patches ({', '.join(SUFFIXES)}); give their folder")
    layout = _layout(names[0], images, features, data.patch_px)
    for ending in (EMBEDDING, LATENT):
        missing = [name for name in names if not layout.beside(name, ending).is_file()]
        if missing and len(missing) < len(names):
            raise InputError(
                f"{images} holds {len(names)} patches, {features} {len(names) - len(missing)} "
                f"files *{ending} for them: {layout.beside(missing[0], ending)} is missing; make "
                "the rest"
            )
    tokens = layout.tokens and (layout.tokens[0] // layout.pieces**2, layout.tokens[1])
    side = data.patch_px // FACTOR
    origins = _origins(names, layout, data)
    return Collection(
        origins,
        "side files",
        embedding=tokens,
        latent=(side, side, CHANNELS) if layout.latent else None,
        latent_std=layout.latent,
        latent_scaling=SCALING,
        settings={"pieces": layout.pieces**2},
    )


def _layout(first: str, images: Path, features: Path, patch_px: int) -> Layout:
    """What the first patch and its files say of all."""
    size = size_of(images / first)
    pieces = size[0] // patch_px
    if size[0] != size[1] or size[0] % patch_px or patch_px % FACTOR or not pieces:
        raise InputError(
            f"{images / first} has {size[0]}x{size[1]} px, expected a square of "
            f"config.data.patch_px ({patch_px}) or a multiple of it; set that accordingly"
        )
    layout = Layout(str(images), str(features), patch_px, pieces, None, False)
    tokens = None
    if (path := layout.beside(first, EMBEDDING)).is_file():
        tokens = _embedding(path, None).shape
        grid = math.isqrt(tokens[0])
        if pieces > 1 and (grid**2 != tokens[0] or grid % pieces):
            raise InputError(
                f"{path} has {tokens[0]} tokens for {size[0]}x{size[0]} px, which cannot be shared "
                f"by {pieces}x{pieces} pieces of {patch_px} px; set config.data.patch_px to "
                f"{size[0]}"
            )
    return replace(layout, tokens=tokens, latent=layout.beside(first, LATENT).is_file())


def _origins(names: list[str], layout: Layout, data: ConfigDict) -> list[PatchesWithFiles]:
    """The patches, slide by slide."""
    slides: dict[str, list[str]] = {}
    for name in names:
        slides.setdefault(slide_of(name), []).append(name)
    above = {slide: PurePosixPath(slide).parts[:1] for slide in slides}
    by_folder = all(above.values()) and {part for (part,) in above.values()} <= {*SPLITS}
    origins = [
        PatchesWithFiles(
            name=origin_name(slide, None, start // PER_ORIGIN),
            path=str(Path(layout.images, members[start])),
            split=above[slide][0] if by_folder else None,
            group=groups.group_of(slide.partition("/")[2] or slide if by_folder else slide),
            names=tuple(members[start : start + PER_ORIGIN]),
            layout=layout,
        )
        for slide, members in slides.items()
        for start in range(0, len(members), PER_ORIGIN)
    ]
    return origins if by_folder else groups.draw(origins, tuple(recipe_of(data)["held_out"]))


def _embedding(path: Path, expected: tuple[int, int] | None) -> Float[np.ndarray, "tokens dim"]:
    values = arrays.read_npy(path)
    shape = (1, *values.shape) if values.ndim == 1 else values.shape
    if values.dtype.kind != "f" or len(shape) != 2 or (expected and shape != expected):
        raise InputError(
            f"{path} is {values.dtype} {list(values.shape)}, expected real numbers "
            f"{list(expected or ()) or '[dim] or [tokens, dim]'}; make it again"
        )
    return arrays.finite(values.reshape(shape).astype(np.float32), str(path))


def _latent(path: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, both float16 [side, side, CHANNELS]."""
    values = arrays.read_npy(path)
    shapes = ((2 * CHANNELS, side, side), (2, CHANNELS, side, side))
    if values.dtype.kind != "f" or values.shape not in shapes:
        raise InputError(
            f"{path} is {values.dtype} {list(values.shape)}, expected mean and standard deviation "
            f"as {list(shapes[0])} or {list(shapes[1])}; make it again"
        )
    arrays.finite(values, str(path))
    mean, deviation = np.moveaxis(values.reshape(shapes[1]), 1, 3).astype(np.float16)
    if (deviation < 0).any():
        raise InputError(
            f"{path} holds negative standard deviations ({deviation.min():g}): log variances? "
            "Save the mean and exp(log_variance / 2)"
        )
    return mean, deviation


def _token_pieces(tokens: np.ndarray, n: int) -> list[np.ndarray]:
    """Tokens [n n k k, dim] of a patch, row by row -> those of its n x n pieces, [k k, dim]."""
    if n == 1:
        return [tokens]
    grid, dim = math.isqrt(len(tokens)), tokens.shape[1]
    return [piece.reshape(-1, dim) for piece in _tiles(tokens.reshape(grid, grid, dim), n)]


def _tiles(values: np.ndarray, n: int) -> list[np.ndarray]:
    """[n h, n w, c] -> n x n pieces [h, w, c], row by row."""
    return [tile for band in np.split(values, n) for tile in np.split(band, n, axis=1)]
