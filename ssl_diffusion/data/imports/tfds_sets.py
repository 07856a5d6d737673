"""Data sets that TFDS has prepared: `tfds:NAME[/CONFIG][:VERSION]`, or the folder of one.

    TFDS_DATA_DIR/NAME[/CONFIG]/VERSION/dataset_info.json, features.json, label.labels.txt,
                                        NAME-SPLIT.tfrecord-00000-of-00004, ...

Nothing is generated or downloaded, and TensorFlow is not needed: records are protocol buffers in
ArrayRecord or TFRecord files. Of their features `image` is taken, as the PNG or JPEG file that it
is stored as, and `label` where it is a ClassLabel. Splits called train, validation (val, valid) and
test are taken as they are, others left out.
"""

import contextlib
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from ml_collections import ConfigDict
from tensorflow_datasets.core import example_parser

from ssl_diffusion import demo
from ssl_diffusion.data.imports.patch_files import PER_ORIGIN, ROW, check_patch
from ssl_diffusion.data.imports.tfrecords import TFRecords
from ssl_diffusion.data.origins import SPLITS, Collection, Example
from ssl_diffusion.data.recipe import recipe_of
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json

PREFIX = "tfds:"
NAME = re.compile(r"tfds:(\w+)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?")
DRAWN = "records"
VERSION = re.compile(r"\d+\.\d+\.\d+")
CALLED = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
READERS = {"array_record": ArrayRecordDataSource, "tfrecord": TFRecords}


@dataclass(frozen=True)
class PreparedRecords:
    """At most PER_ORIGIN records of one split: an `Origin`.

    Attributes:
      path: the folder of the data set.
      theirs: the split as the data set calls it.
      start, stop: which records, in the order of the files or, if `drawn`, of a permutation.
    """

    name: str
    path: str
    split: str
    group: str
    theirs: str
    start: int
    stop: int
    patch_px: int
    drawn: bool = False
    label: str = ""
    text: str = ""

    def open(self) -> "_OpenedRecords":
        """The files of the split; InputError if one is missing or cut off."""
        return _OpenedRecords(self)


class _OpenedRecords:
    def __init__(self, origin: PreparedRecords):
        self._origin = origin
        info = _info(Path(origin.path))
        self._data = _open_split(info, origin.theirs)
        self._indices = np.arange(len(self._data))
        if origin.drawn:
            self._indices = np.random.default_rng(0).permutation(self._indices)
        self._indices = np.sort(self._indices[origin.start : origin.stop])
        kept = {name: info.features[name] for name in ("image", "label") if name in info.features}
        features = tfds.features.FeaturesDict(kept)
        self._parser = example_parser.ExampleParserNp(features.get_serialized_info())
        self._classes = _classes(info)
        self.most = len(self._indices)
        self.rows = -(-self.most // ROW)
        self.about: dict[str, Any] = {"format": f"TFDS, {info.file_format.value}"}

    def cut(self, row: int) -> list[Example]:
        """The records of a row."""
        return [self._example(i) for i in self._indices[row * ROW : (row + 1) * ROW].tolist()]

    def _example(self, index: int) -> Example:
        origin = self._origin
        place = f"record {index} of split {origin.theirs} in {origin.path}"
        try:
            record = self._parser.parse_example(self._data[index])
            data, label = record["image"], record.get("label", -1)
        except Exception as error:  # of protobuf, ArrayRecord or TFDS: all of a damaged record
            raise InputError(f"{place} cannot be read ({error}); prepare it again") from None
        example = check_patch(place, data, origin.patch_px) | Example(split=origin.split, x=0, y=0)
        if 0 <= label < len(self._classes):  # -1 where nobody knows it
            example["label"] = self._classes[label]
        return example


def recognise(source: str) -> bool:
    """Whether this names a TFDS data set, or is the folder of one."""
    root = demo.resolve(source)
    return source.startswith(PREFIX) or all(
        (root / name).is_file() for name in ("dataset_info.json", "features.json")
    )


def collect(data: ConfigDict) -> Collection:
    """The records of a prepared data set, by its own splits.

    It is looked for in `data.tfds_dir`, or else where TFDS keeps its data sets. Where it has only a
    split train, `data.split` = "records" has single ones drawn by `data.held_out`. Raises
    InputError for what was not prepared, has no `image`, or no records to test on.
    """
    folder = _find(data) if data.source.startswith(PREFIX) else demo.resolve(data.source)
    info = _info(folder)
    image = info.features["image"] if "image" in info.features else None
    if not isinstance(image, tfds.features.Image):
        raise InputError(
            f"{folder} has features {sorted(info.features)}, expected images in `image`; choose "
            "another data set"
        )
    taken = {name: split for name, split in CALLED.items() if name in info.splits}
    counts = {name: len(_open_split(info, name)) for name in taken}
    taken = {name: split for name, split in taken.items() if counts[name]}
    drawn = list(taken.values()) == ["train"]
    if drawn and data.get("split") != DRAWN:
        raise InputError(
            f"{folder} has a split train and none to test on, and its records do not say their "
            "slides; to draw single records, although neighbours may come into two splits, set "
            f"config.data.split to {DRAWN!r}"
        )
    if not drawn and not {"train", "test"} <= {*taken.values()}:
        raise InputError(
            f"{folder} has splits {dict.fromkeys(info.splits)}, expected train and test, with or "
            "without validation"
        )
    if drawn:
        val, test = recipe_of(data)["held_out"]
        edges = np.round(np.cumsum([0, 1 - val - test, val, test]) * counts["train"])
        edges = edges.astype(int).tolist()
        parts = [(s, "train", *edges[i : i + 2]) for i, s in enumerate(SPLITS)]
    else:
        parts = [(split, name, 0, counts[name]) for name, split in taken.items()]
    origins = []
    for split, theirs, first, end in parts:
        for number, start in enumerate(range(first, end, PER_ORIGIN)):
            name = f"{split if drawn else theirs}-{number}"
            stop = min(start + PER_ORIGIN, end)
            origins.append(
                PreparedRecords(
                    name, str(folder), split, name, theirs, start, stop, data.patch_px, drawn
                )
            )
    return Collection(
        origins,
        "TFDS",
        classes=_classes(info),
        settings={
            "name": info.full_name,
            "splits": taken,
            "left_out": sorted({*info.splits} - {*taken}),
            "split": "drawn by record" if drawn else "the data set's",
        },
    )


def _find(data: ConfigDict) -> Path:
    """The folder of the data set named; InputError if there is none, or several."""
    match = NAME.fullmatch(data.source)
    if not match:
        raise InputError(
            f"config.data.source={data.source}, expected tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME/CONFIG:1.0.0"
        )
    name, config, version = match.groups()
    home = data.get("tfds_dir") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = Path(home).expanduser() / name
    if config:
        folder /= config
    elif folder.is_dir() and not _versions(folder):
        configs = sorted(path.name for path in folder.iterdir() if _versions(path))
        if len(configs) > 1:
            raise InputError(f"{folder} has configs {configs}; name one: tfds:{name}/CONFIG")
        folder = folder / configs[0] if configs else folder
    versions = _versions(folder)
    if not versions or (version and version not in versions):
        raise InputError(
            f"no {data.source} in {folder} (versions there: {versions or 'none'}); prepare it with "
            f"`tfds build {name}`, or say where it is: TFDS_DATA_DIR or config.data.tfds_dir"
        )
    return folder / (version or versions[-1])


def _versions(folder: Path) -> list[str]:
    """Versions that were prepared, oldest first."""
    names = [path.parent.name for path in folder.glob("*/dataset_info.json")]
    found = [name for name in names if VERSION.fullmatch(name)]
    return sorted(found, key=lambda name: tuple(map(int, name.split("."))))


def _info(folder: Path) -> tfds.core.DatasetInfo:
    """What TFDS knows of the data set; InputError if it cannot be read."""
    read_json(folder / "dataset_info.json", "description of a TFDS data set")
    _check_features(read_json(folder / "features.json", "list of features of a TFDS data set"))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it remarks on missing generator code
            return tfds.builder_from_directory(str(folder)).info
    except Exception as error:  # whatever is wrong with those two files
        text = str(error).splitlines()[:1]
        raise InputError(f"{folder} is no TFDS data set ({text}); prepare it again") from None


def _check_features(description: Any) -> None:
    """InputError if features are of classes that are not TFDS's own: it would import them."""
    names = re.findall(r'"pythonClassName": "([^"]*)"', json.dumps(description))
    foreign = [name for name in names if not name.startswith("tensorflow_datasets.core.features.")]
    if foreign:
        raise InputError(
            f"features.json names the class {foreign[0][:80]}, which is not TFDS's own and is not "
            "imported here; save the data set with image and label alone"
        )


def _classes(info: tfds.core.DatasetInfo) -> tuple[str, ...]:
    label = info.features["label"] if "label" in info.features else None
    return tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()


def _open_split(info: tfds.core.DatasetInfo, name: str) -> ArrayRecordDataSource | TFRecords:
    """The records of a split, as bytes; InputError unless they are all there."""
    split, kind = info.splits[name], info.file_format.value
    if kind not in READERS:
        raise InputError(
            f"{info.data_dir} is in {kind} files, expected {' or '.join(READERS)}; prepare it "
            "again with --file_format=array_record"
        )
    try:
        paths = [str(path) for path in split.filepaths]
    except ValueError as error:  # of the template that file names are made from
        raise InputError(f"{info.data_dir} has a damaged dataset_info.json ({error})") from None
    for path in paths:
        if Path(path).parent != Path(info.data_dir) or not Path(path).is_file():
            raise InputError(
                f"{path} is missing in {info.data_dir}, a shard of split {name}; prepare it again"
            )
    try:
        records = READERS[kind](paths) if paths else TFRecords([])
    except RuntimeError as error:  # all that ArrayRecord raises
        raise InputError(f"split {name} in {info.data_dir} is damaged ({error})") from None
    if len(records) != split.num_examples and paths:
        raise InputError(
            f"split {name} in {info.data_dir} has {split.num_examples} records, found "
            f"{len(records)} in its files; prepare it again"
        )
    return records
