"""Records: patches with their embeddings and latents, as a TFDS data set in ArrayRecord files.

The folder is read by `tfds.builder_from_directory(DIR).as_data_source()` too. Features: `image`
(PNG bytes), `x`, `y` (pixels at the records' resolution), `source` (file name), and, where the
records were made with an encoder and an autoencoder, `embedding` float32 [tokens, dim] and `latent`
float16 [h, w, c] (raw). Beside the records lie the `encoder/` and `autoencoder/` model folders that
made them and `split.json`.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json

PER_SHARD = 10_000


class RecordsWriter:
    """Appends examples to the splits of a new data set at `folder`; nothing is held in memory."""

    def __init__(
        self,
        folder: Path,
        splits: Iterable[str],
        embedding_shape: tuple[int, int] | None,
        latent_shape: tuple[int, int, int] | None,
    ):
        features = {
            "image": tfds.features.Tensor(shape=(), dtype=np.object_),
            "x": np.int32,
            "y": np.int32,
            "source": tfds.features.Tensor(shape=(), dtype=np.object_),
        }
        if embedding_shape:
            features["embedding"] = tfds.features.Tensor(shape=embedding_shape, dtype=np.float32)
        if latent_shape:
            features["latent"] = tfds.features.Tensor(shape=latent_shape, dtype=np.float16)
        identity = tfds.core.dataset_info.DatasetIdentity(
            name="patches", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
        )
        folder.mkdir(parents=True, exist_ok=True)
        info = tfds.core.DatasetInfo(
            builder=identity,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
        )
        self._info = info
        self._writer = tfds.core.SequentialWriter(info, PER_SHARD, file_format="array_record")
        self._writer.initialize_splits(list(splits))

    def add(self, split: str, example: dict) -> None:
        """Appends one example; `example["image"]` is uint8 [h, w, 3]."""
        self._writer.add_examples({split: [example | {"image": encode_png(example["image"])}]})

    def close(self, metadata: dict) -> None:
        """Writes the data set's description; without it the folder is no data set."""
        self._info.metadata.update(metadata)
        self._writer.close_all()


class Source:
    """Random access to one split: `len()`, and `source[i]` as described in `Records.source`."""

    def __init__(self, raw, fields: tuple[str, ...], shift: float, scale: float):
        self._raw, self._fields, self._shift, self._scale = raw, fields, shift, scale

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index: int) -> dict:
        record = self._raw[index]
        example = {name: record[name] for name in self._fields}
        if "image" in example:
            example["image"] = decode_png(record["image"])
        if "latent" in example:
            example["latent"] = (record["latent"].astype(np.float32) - self._shift) * self._scale
        if "source" in example:
            example["source"] = record["source"].decode()
        return example

    def __repr__(self) -> str:  # Grain stores it in a checkpoint to recognise the source
        return f"Source(length={len(self)}, fields={self._fields})"

    def spread(self, most: int) -> dict[str, np.ndarray]:
        """At most so many examples, stacked, spread over the split.

        Its beginning alone would be one corner of one slide.
        """
        picks = np.linspace(0, len(self) - 1, min(most, len(self))).astype(int).tolist()
        examples = [self[i] for i in picks]
        return {name: np.stack([example[name] for example in examples]) for name in self._fields}

    def chunks(self, field: str, size: int = 1024) -> Iterator[np.ndarray]:
        """All values of one field, in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield np.stack([self[i][field] for i in range(start, min(start + size, len(self)))])


class Records:
    """An opened data set; see `open_records`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._builder = tfds.builder_from_directory(str(folder))
        self.metadata: dict = dict(self._builder.info.metadata)
        self.features = tuple(self._builder.info.features)

    def source(self, split: str, fields: tuple[str, ...] | None = None) -> Source:
        """Random access to `split`; each example is a dict of the `fields` (all by default):

        image uint8 [h, w, 3], embedding float32 [tokens, dim], latent float32 [h, w, c] scaled as
        the denoiser sees it, x, y int, source str. Raises InputError for an unknown split or field.
        """
        splits = {name: info.num_examples for name, info in self._builder.info.splits.items()}
        if not splits.get(split):
            raise InputError(
                f"records in {self.folder} have splits {splits}, none of {split!r} to read"
            )
        fields = fields or self.features
        missing = sorted(set(fields) - set(self.features))
        if missing:
            raise InputError(
                f"records in {self.folder} hold {sorted(self.features)}, not {missing}; prepare "
                "them with an encoder and an autoencoder"
            )
        latent = self.metadata.get("latent") or {"shift": 0.0, "scale": 1.0}
        return Source(self._builder.as_data_source(split), fields, latent["shift"], latent["scale"])


def open_records(folder: str | Path, instructions: str = "") -> Records:
    """Opens the records in `folder`; InputError, with `instructions`, if there are none."""
    folder = Path(folder)
    advice = instructions or "Make them with python -m ssl_diffusion.prepare."
    if not (folder / "dataset_info.json").is_file():
        raise InputError(f"no records in {folder}. {advice}")
    read_json(folder / "dataset_info.json", "records description")
    with contextlib.redirect_stderr(io.StringIO()):  # tfds remarks on the missing generator code
        records = Records(folder)
    if "recipe" not in records.metadata:
        raise InputError(f"{folder} is a data set, but none of ssl_diffusion.prepare. {advice}")
    return records


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [h, w, 3] -> PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """PNG bytes -> uint8 [h, w, 3]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
