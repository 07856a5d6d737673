"""Records: patches with their embeddings and latents, as a TFDS data set in ArrayRecord files.

The folder is read by `tfds.builder_from_directory(DIR).as_data_source()` too. Features: `image`
(PNG or JPEG bytes), `x`, `y` (pixels at the records' resolution), `mpp` (µm per pixel), `source`
(path below the folder that was prepared); where they are known, `label` (index of the class) and
`text`; where the records were made with an encoder and an autoencoder, `embedding` float32
[tokens, dim] and `latent` float16 [h, w, c] (raw); where their recipe asks for it, `latent_std`
float16 [h, w, c] (the standard deviation of the posterior whose mean is `latent`), `tokens` float16
[n, dim] (the encoder's patch tokens, row by row) and `variant` (which symmetry of the patch `image`
is, see `patches.symmetry`). Beside the records lie the `encoder/` and `autoencoder/` model folders
that made them, `split.json` if blocks were held out, `sources.jsonl` (what each was, and how many
patches of it went where), `failed.jsonl` (what could not be used, and why) and `index.html`.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from ssl_diffusion.data.image_bytes import decode
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json

SOURCES, FAILED = "sources.jsonl", "failed.jsonl"  # beside the records
MADE_WITH = {
    "embedding": "an encoder",
    "latent": "an autoencoder",
    "latent_std": "config.data.posterior",
    "tokens": "config.data.patch_tokens",
    "variant": "config.data.variants",
}
REPAIR = "copy them again from where they are whole, or delete them and prepare them again"


class Source:
    """Random access to one split: `len()`, and `source[i]` as described in `Records.source`.

    A record that is damaged raises InputError when it is read: ArrayRecord holds checksums.
    """

    def __init__(
        self,
        name: str,
        data: ArrayRecordDataSource,
        features: tfds.features.FeaturesDict,
        fields: tuple[str, ...],
        scaling: tuple[float, float] | None,
    ):
        self._name, self._data, self._features = name, data, features
        self._fields, self._scaling = fields, scaling
        self._decoder = self._decoder_of(fields)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict:
        example = self._read(index, self._decoder)
        if "image" in example:
            example["image"] = decode(example["image"])
        for name in ("source", "text"):
            if name in example:
                example[name] = example[name].decode()
        if self._scaling:
            shift, scale = self._scaling
            if "latent" in example:
                example["latent"] = (example["latent"].astype(np.float32) - shift) * scale
            if "latent_std" in example:
                example["latent_std"] = example["latent_std"].astype(np.float32) * scale
        return example

    def place(self, index: int) -> str:
        """Where a record lies and what it was cut from, in words."""
        origin = self._read(index, self._decoder_of(("source", "x", "y")))
        source, x, y = origin["source"].decode(), origin["x"], origin["y"]
        return f"{self._name}[{index}], {source} at x={x} y={y}"

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

    def _decoder_of(self, fields: tuple[str, ...]) -> tfds.features.FeaturesDict:
        """It decodes these fields alone and skips the rest of a record."""
        return tfds.features.FeaturesDict({field: self._features[field] for field in fields})

    def _read(self, index: int, decoder: tfds.features.FeaturesDict) -> dict:
        try:
            record = self._data[index]
        except RuntimeError as error:  # all that ArrayRecord raises, for what it finds on the disk
            raise InputError(
                f"record {self._name}[{index}] cannot be read ({error}): the records are damaged; "
                f"{REPAIR}"
            ) from None
        return decoder.deserialize_example_np(record)


class Records:
    """An opened data set; see `open_records`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._info = tfds.builder_from_directory(str(folder)).info
        self.metadata: dict = dict(self._info.metadata)
        self.features = tuple(self._info.features)

    def count(self, split: str) -> int:
        """How many records a split has; 0 if there is no such split."""
        return self._info.splits[split].num_examples if split in self._info.splits else 0

    def shape(self, field: str) -> tuple[int, ...]:
        """Shape of a field as it is stored (an image as bytes: ()); InputError if it is not."""
        if field not in self.features:
            raise InputError(
                f"records in {self.folder} hold {sorted(self.features)}, not {field}; prepare them "
                f"with {MADE_WITH.get(field, 'that')}"
            )
        return tuple(self._info.features[field].shape)

    def source(
        self, split: str, fields: tuple[str, ...] | None = None, raw: bool = False
    ) -> Source:
        """Random access to `split`; each example is a dict of the `fields` (all by default):

        image uint8 [h, w, 3], embedding float32 [tokens, dim], latent and latent_std float32
        [h, w, c] scaled as the denoiser sees them (with `raw`, float16 as they are stored: half of
        what goes to a device, which can scale them itself), tokens float16 [n, dim], x, y, variant
        int, source str. Raises InputError for an unknown split or field, and for shards that are
        missing or cut off.
        """
        if not self.count(split):
            splits = {name: self.count(name) for name in self._info.splits}
            raise InputError(
                f"records in {self.folder} have splits {splits}, none of {split!r} to read"
            )
        fields = fields or self.features
        for name in fields:
            self.shape(name)
        latent = self.metadata.get("latent") or {"shift": 0.0, "scale": 1.0}
        scaling = None if raw else (latent["shift"], latent["scale"])
        name = f"{self.folder} {split}"
        return Source(name, self._open(split), self._info.features, fields, scaling)

    def _open(self, split: str) -> ArrayRecordDataSource:
        """The records of a split, as bytes; InputError unless every shard is there and whole."""
        paths = [str(path) for path in self._info.splits[split].filepaths]
        damaged = [Path(path).name for path in paths if not Path(path).is_file()]
        if not damaged:
            try:
                data = ArrayRecordDataSource(paths)  # it reads the end of every shard: its index
            except RuntimeError:
                damaged = [Path(path).name for path in paths if not _opens(path)]
        expected = self.count(split)
        if not damaged and len(data) == expected:
            return data
        found = "missing or cut off: " + ", ".join(damaged) if damaged else f"{len(data)} in them"
        raise InputError(
            f"records in {self.folder}: split {split!r} has {expected} in {len(paths)} shards, "
            f"found {found}; {REPAIR}"
        )


def _opens(path: str) -> bool:
    try:
        ArrayRecordDataSource(path)
    except RuntimeError:
        return False
    return True


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
