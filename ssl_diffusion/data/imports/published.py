"""The training data of the published large-image model and its kin: lists of JPEG patches.

What the data set classes of cvlab-stonybrook/Large-Image-Diffusion (ldm/data/hybrid_cond/) read,
with 20x for the magnification:

    BRCA  patch_list_20x.npy                paths below pyramid/
          ssl_features/*.h5                 `feat_20x` [patches, dim], by the list's index
          train_test_split/train_all.npz    `indices_train_20x` into the list; train.npz without it
    CRC   patches_20x_all.npy               paths below the folder itself; no splits
          features.h5                       `feat_20x`
    NAIP  naip_ldm_metadata/patch_list.npz  a list of paths below naip_patches/ by split
          naip_ldm_metadata/features.h5     `feat_train` and so on, by that list's index

The published model of BRCA attends to a second token, of the region at 5x; its row is paired by
position in a split of both levels. One record holds tokens of one width, so it is left out.
Where no file says the split, whole patients or slides are drawn.
"""

import re
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_diffusion import demo
from ssl_diffusion.data import groups
from ssl_diffusion.data.imports import arrays
from ssl_diffusion.data.imports.names import origin_name, slide_of, tile_of
from ssl_diffusion.data.imports.patch_files import PER_ORIGIN, ROW, read_patch
from ssl_diffusion.data.origins import SPLITS, Collection, Example
from ssl_diffusion.data.recipe import recipe_of
from ssl_diffusion.errors import InputError

LISTS = ("patch_list_*.npy", "patches_*_all.npy")
MAGNIFICATION = re.compile(r"_(\d+(?:\.\d+)?)x(?:_all)?$")
SATELLITE = Path("naip_ldm_metadata/patch_list.npz")
UM_AT_1X = 10.0  # µm per pixel times magnification
TOLERANCE = 1.25  # scanners that say 40x differ by so much; the next magnification by 2
TRIED = 100  # patches looked at for one that is whole


@dataclass(frozen=True)
class _List:
    """One list of patches, and what goes with it; `split` None where nothing says it."""

    file: Path
    key: str  # in a .npz; "" for .npy
    images: Path
    feature_key: str
    split: str | None
    indices: np.ndarray | None  # of the split's patches; None for all


@dataclass(frozen=True, eq=False)
class ListedPatches:
    """At most PER_ORIGIN patches of one slide: an `Origin`."""

    name: str
    path: str
    split: str | None
    group: str
    key: str
    images: str
    features: str  # "" without
    feature_key: str
    indices: np.ndarray  # int64, ascending
    patch_px: int
    label: str = ""
    text: str = ""

    def open(self) -> "_OpenedList":
        """The list and the features; InputError if one cannot be read."""
        return _OpenedList(self)


class _OpenedList:
    def __init__(self, origin: ListedPatches):
        self._origin = origin
        self._names = _names(Path(origin.path), origin.key)[origin.indices]
        self._features = None
        if origin.features:
            self._file = arrays.open_h5(origin.features)  # open as long as its data set is read
            self._features = arrays.dataset(self._file, origin.feature_key)
        self.most = len(origin.indices)
        self.rows = -(-self.most // ROW)
        self.about: dict[str, Any] = {"format": "list of patches"}

    def cut(self, row: int) -> list[Example]:
        """The patches of a row; those smaller than asked for are left out."""
        origin, part = self._origin, slice(row * ROW, (row + 1) * ROW)
        embeddings: Any = [None] * ROW
        if self._features is not None:
            embeddings = arrays.read_rows(self._features, origin.indices[part])
        examples = []
        for name, embedding in zip(map(arrays.text, self._names[part]), embeddings, strict=False):
            patch = read_patch(arrays.inside(origin.images, name, origin.path), origin.patch_px)
            if patch is None:
                continue
            column, line = tile_of(name)
            patch |= Example(
                split=origin.split, x=column * origin.patch_px, y=line * origin.patch_px
            )
            examples.append(patch if embedding is None else patch | {"embedding": embedding})
        return examples


def recognise(source: str) -> bool:
    """Whether a folder holds one of the lists."""
    root = demo.resolve(source)
    return (root / SATELLITE).is_file() or any(next(root.glob(name), None) for name in LISTS)


def collect(data: ConfigDict) -> Collection:
    """The patches of the list whose magnification is that of `data.mpp`.

    `data.features` names the file of the embeddings where there are several. Raises InputError for
    lists and features that do not go together.
    """
    root = demo.resolve(data.source)
    if (root / SATELLITE).is_file():
        lists = _satellite(root)
    else:
        lists = _pathology(root, _choose(root, data.mpp))
    features = _features(root, data, sorted({entry.feature_key for entry in lists}))
    origins, shapes = [], set()
    for entry in lists:
        names = _names(entry.file, entry.key)
        if features:
            with arrays.open_h5(features) as file:
                found = arrays.dataset(file, entry.feature_key)
                shapes.add(arrays.embedding_shape(found))
                if len(found) != len(names):
                    raise InputError(
                        f"{entry.feature_key} of {features} has {len(found)} rows, and the list "
                        f"{entry.file} {len(names)} patches; expected one row for each"
                    )
        origins += _origins(entry, names, features, data)
    if len(shapes) > 1:
        raise InputError(f"{features} holds embeddings of shapes {sorted(shapes)}, expected one")
    if not origins:
        raise InputError(f"the lists in {root} name no patches; expected some for train and test")
    _check_size(origins)
    return Collection(
        origins,
        "published",
        embedding=next(iter(shapes), None),
        settings={
            "lists": [entry.file.relative_to(root).as_posix() for entry in lists],
            "features": Path(features).name,
            "split": "the file's" if lists[0].split else "drawn by patient or slide",
        },
    )


def _choose(root: Path, mpp: float) -> Path:
    """The list whose magnification goes with `mpp`."""
    found = sorted(path for name in LISTS for path in root.glob(name))
    said = {path: MAGNIFICATION.search(path.stem) for path in found}
    matching = [
        path
        for path, match in said.items()
        if match and 1 / TOLERANCE < UM_AT_1X / float(match[1]) / mpp < TOLERANCE
    ]
    if len(matching) != 1:
        raise InputError(
            f"{root} holds {', '.join(path.name for path in found)}, {len(matching)} of them of "
            f"{UM_AT_1X / mpp:g}x; set config.data.mpp (µm per pixel: 0.5 for 20x, 2 for 5x)"
        )
    return matching[0]


def _pathology(root: Path, file: Path) -> list[_List]:
    magnification = MAGNIFICATION.search(file.stem)[1] + "x"
    images = root / "pyramid" if (root / "pyramid").is_dir() else root
    common = (file, "", images, f"feat_{magnification}")
    lists = []
    for split in SPLITS:
        for path in (root / "train_test_split" / f"{split}{end}.npz" for end in ("_all", "")):
            key = f"indices_{split}_{magnification}"
            found = arrays.read_npz(path) if path.is_file() else {}
            if key in found:
                lists.append(_List(*common, split, _indices(found[key], path, key)))
                break
    if not lists and (root / "train_test_split").is_dir():
        raise InputError(
            f"{root}/train_test_split holds no SPLIT_all.npz or SPLIT.npz with "
            f"indices_SPLIT_{magnification}; add them, or take the folder away to have splits drawn"
        )
    return lists or [_List(*common, None, None)]


def _satellite(root: Path) -> list[_List]:
    file = root / SATELLITE
    found = arrays.read_npz(file)
    return [
        _List(file, split, root / "naip_patches", f"feat_{split}", split, None)
        for split in SPLITS
        if split in found
    ]


def _indices(values: np.ndarray, path: Path, key: str) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(
            f"{key} of {path} is {values.dtype} {list(values.shape)}, expected a list of indices"
        )
    return values.astype(np.int64)


def _names(file: Path, key: str) -> np.ndarray:
    if not key:
        return arrays.texts(arrays.read_npy(file, mapped=True), file)
    return arrays.texts(arrays.read_npz(file)[key], f"{key} of {file}")


def _features(root: Path, data: ConfigDict, keys: list[str]) -> str:
    """The one file of features that holds all the keys; "" where there is no file."""
    if data.get("features"):
        return str(demo.resolve(data.features))
    places = (root, root / "ssl_features", (root / SATELLITE).parent)
    files = [path for place in places for path in sorted(place.glob("*.h5"))]
    holding = []
    for path in files:
        with arrays.open_h5(path) as file:
            holding += [path] if arrays.holds(file, keys) else []
    if len(holding) == 1 or not files:
        return str(holding[0]) if holding else ""
    raise InputError(
        f"{root} holds {', '.join(path.name for path in files)}, of which {len(holding)} have "
        f"{', '.join(keys)}; name one in config.data.features"
    )


def _origins(
    entry: _List, names: np.ndarray, features: str, data: ConfigDict
) -> list[ListedPatches]:
    """The patches of a list, slide by slide."""
    if entry.indices is None:
        indices = np.arange(len(names))
    else:
        indices = np.unique(entry.indices)
    if len(indices) and not 0 <= indices[0] <= indices[-1] < len(names):
        raise InputError(
            f"the {entry.split} split has indices {indices[0]} to {indices[-1]}, and {entry.file} "
            f"{len(names)} patches; expected indices into that list"
        )
    slides: dict[str, array] = {}
    for index in indices.tolist():
        name = arrays.text(names[index])
        arrays.check_path(entry.images, name, entry.file)
        slides.setdefault(slide_of(name), array("q")).append(index)
    origins = [
        ListedPatches(
            name=origin_name(slide, entry.split, start // PER_ORIGIN),
            path=str(entry.file),
            split=entry.split,
            # Published splits are of slides, and may have two of one patient in both.
            group=slide if entry.split else groups.group_of(slide),
            key=entry.key,
            images=str(entry.images),
            features=features,
            feature_key=entry.feature_key,
            indices=np.array(members[start : start + PER_ORIGIN], np.int64),
            patch_px=data.patch_px,
        )
        for slide, members in slides.items()
        for start in range(0, len(members), PER_ORIGIN)
    ]
    return origins if entry.split else groups.draw(origins, tuple(recipe_of(data)["held_out"]))


def _check_size(origins: list[ListedPatches]) -> None:
    """InputError if the first patches are all smaller than asked for: none would be left."""
    origin = origins[0]
    names = _names(Path(origin.path), origin.key)[origin.indices[:TRIED]]
    for name in map(arrays.text, names):
        path = arrays.inside(origin.images, name, origin.path)
        if read_patch(path, origin.patch_px) is not None:
            return
    raise InputError(
        f"{path} and the {len(names) - 1} patches before it are smaller than "
        f"{origin.patch_px}x{origin.patch_px} px; set config.data.patch_px to their side"
    )
