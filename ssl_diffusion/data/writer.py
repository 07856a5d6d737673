"""Writing records: ArrayRecord shards, and the description that makes a TFDS data set of them."""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from ssl_diffusion.data.image_bytes import encode

PER_SHARD = 10_000
NAME = "patches"
Shards = dict[str, list[list[int]]]  # by split: [records, bytes] of each shard


@dataclass(frozen=True)
class Layout:
    """Which features records have, besides image, source, x, y and mpp, and their shapes.

    Attributes:
      embedding: [tokens, dim] of `embedding`, float32.
      latent: [h, w, c] of `latent`, float16, raw.
      posterior: whether there is `latent_std`, float16, as large.
      tokens: [n, dim] of `tokens`, float16.
      variants: whether there is `variant`.
      classes: names of the classes of `label`, an index into them or -1; empty for no labels.
      text: whether there is `text`.
    """

    embedding: tuple[int, int] | None = None
    latent: tuple[int, int, int] | None = None
    posterior: bool = False
    tokens: tuple[int, int] | None = None
    variants: bool = False
    classes: tuple[str, ...] = ()
    text: bool = False

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and number format of the arrays, by name."""
        shapes = {
            "embedding": (self.embedding, np.float32),
            "latent": (self.latent, np.float16),
            "latent_std": (self.latent if self.posterior else None, np.float16),
            "tokens": (self.tokens, np.float16),
        }
        return {name: entry for name, entry in shapes.items() if entry[0]}

    @property
    def array_bytes(self) -> int:
        """Bytes of a record besides its image, about."""
        shapes = self.arrays.values()
        return 200 + sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes)

    def features(self) -> tfds.features.FeaturesDict:
        """As TFDS has them."""
        text = tfds.features.Tensor(shape=(), dtype=np.object_)
        features: dict[str, Any] = {"image": text, "x": np.int32, "y": np.int32, "source": text}
        features["mpp"] = np.float32
        if self.variants:
            features["variant"] = np.int32
        if self.classes:
            features["label"] = tfds.features.ClassLabel(names=list(self.classes))
        if self.text:
            features["text"] = text
        for name, (shape, dtype) in self.arrays.items():
            # As bytes an array is read in half the time that a list of numbers takes.
            features[name] = tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")
        return tfds.features.FeaturesDict(features)


class ShardWriter:
    """Appends examples to shards of their splits in `folder`; nothing is held in memory."""

    def __init__(self, folder: Path, layout: Layout):
        self._folder = folder
        self._features = layout.features()
        self._writers: dict[str, ArrayRecordWriter] = {}
        self._shards: Shards = {}

    def add(self, split: str, example: Mapping[str, Any]) -> None:
        """Appends one; its `image` is the bytes of a PNG or JPEG, what else it has is let go."""
        chosen = {name: example[name] for name in self._features}
        data = self._features.serialize_example(chosen)
        shards = self._shards.setdefault(split, [])
        if not shards or shards[-1][0] == PER_SHARD:
            self._close(split)
            path = self._folder / shard_name(split, len(shards))
            # One record a chunk: they are read at random.
            self._writers[split] = ArrayRecordWriter(str(path), "group_size:1")
            shards.append([0, 0])
        self._writers[split].write(data)
        shards[-1][0] += 1
        shards[-1][1] += len(data)

    def close(self) -> Shards:
        """Ends the shards; their sizes."""
        for split in list(self._writers):
            self._close(split)
        return self._shards

    def _close(self, split: str) -> None:
        if split in self._writers:
            self._writers.pop(split).close()


def shard_name(split: str, number: int) -> str:
    """File name of a shard among those of its folder."""
    return f"{split}-{number:05d}.array_record"


def assemble(
    folder: Path,
    parts: Iterable[tuple[Path, Shards]],
    splits: Iterable[str],
    layout: Layout,
    metadata: Mapping[str, Any],
) -> None:
    """Makes a data set in `folder` of the shards in other folders, in their order.

    Shards are linked where the file system can, so that they are neither copied nor lost if this is
    cut short.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(parts)
    infos = []
    for split in splits:
        shards = [
            (path / shard_name(split, number), size)
            for path, own in parts
            for number, size in enumerate(own.get(split, ()))
        ]
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=NAME, split=split, filetype_suffix="array_record"
        )
        for number, (path, _) in enumerate(shards):
            target = template.sharded_filepath(shard_index=number, num_shards=len(shards))
            _link(path, Path(target))
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[size[0] for _, size in shards],
                num_bytes=sum(size[1] for _, size in shards),
                filename_template=template,
            )
        )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=layout.features(),
        metadata=tfds.core.MetadataDict(metadata),
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(str(folder))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class RecordsWriter:
    """Writes a whole data set at `folder`, example by example."""

    def __init__(self, folder: Path, splits: Iterable[str], layout: Layout | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._splits, self._layout = folder, list(splits), layout or Layout()
        self._shards = folder / "shards"
        self._shards.mkdir()
        self._writer = ShardWriter(self._shards, self._layout)

    def add(self, split: str, example: Mapping[str, Any]) -> None:
        """Appends one example; its `image` is uint8 [h, w, 3]."""
        known = {"mpp": np.nan} | dict(example) | {"image": encode(example["image"])}
        self._writer.add(split, known)

    def close(self, metadata: Mapping[str, Any]) -> None:
        """Writes the data set's description; without it the folder is no data set."""
        parts = [(self._shards, self._writer.close())]
        assemble(self._folder, parts, self._splits, self._layout, metadata)
        shutil.rmtree(self._shards)
