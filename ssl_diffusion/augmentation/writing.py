"""Variations as records: made in units that are kept while the work goes on, joined at the end."""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from ssl_diffusion.augmentation.examples import Examples
from ssl_diffusion.augmentation.pixel_labels import Labels
from ssl_diffusion.augmentation.variations import FILE, Variations, embeddings_of
from ssl_diffusion.data.image_bytes import encode
from ssl_diffusion.data.page import write_page
from ssl_diffusion.data.records import Records, open_records
from ssl_diffusion.data.writer import Layout, ShardWriter, assemble
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, replacing, write_json
from ssl_diffusion.weights.folder import copy_model
from ssl_diffusion.weights.model import Model

UNIT = 256  # variations that are lost at most when the work is stopped
TOLD = "augmentation"  # what the records' metadata holds of how they were made
ASKED = "asked for"  # what an embedding is: that of the condition, not of the image
PATHS = ("model",)  # in what is told: where it lay, which its SHA-256 beside it does not depend on

Sample = Callable[
    [Float[np.ndarray, "b tokens dim"], Int[np.ndarray, " b"]], UInt8[np.ndarray, "b h w 3"]
]


@dataclass(frozen=True)
class Work:
    """Variations of the patches of `split`, to be written to `output`.

    Attributes:
      records: the real ones.
      split: whose patches are varied.
      model: makes the patches.
      labels: of the patches; None where the records get none.
      wanted: the variations.
      drawn: the prior's embeddings of these, None without a prior.
      told: all that the result depends on, JSON; what was begun by another is not gone on with.
      output: folder of the records.
    """

    records: Records
    split: str
    model: Model
    labels: Labels | None
    wanted: Variations
    drawn: Float[np.ndarray, "n tokens dim"] | None
    told: Mapping[str, Any]
    output: Path

    @property
    def folder(self) -> Path:
        """Where what is done lies until all is."""
        return unfinished(self.output)

    @property
    def layout(self) -> Layout:
        """Of the records. They have latents where the real ones do."""
        latent = self.records.shape("latent") if "latent" in self.records.features else None
        return Layout(
            embedding=self.records.shape("embedding"),
            latent=latent,
            classes=self.labels.names if self.labels else (),
            text="text" in self.records.features,
        )

    def do(self, sample: Sample, batch: int) -> None:
        """Makes what is not there yet, `batch` patches at a time."""
        starts = range(0, len(self.wanted), UNIT)
        with tqdm(total=len(self.wanted), desc="variations", unit="patch") as bar:
            for start in starts:
                if not (self.folder / f"{start:09d}" / "shards.json").is_file():
                    self._unit(start, sample, batch, bar)
                else:
                    bar.update(min(UNIT, len(self.wanted) - start))

    def _unit(self, start: int, sample: Sample, batch: int, bar: tqdm) -> None:
        source = self.records.source(self.split)
        with replacing(self.folder / f"{start:09d}") as temporary:
            temporary.mkdir()
            writer = ShardWriter(temporary, self.layout)
            stop = min(start + UNIT, len(self.wanted))
            for first in range(start, stop, batch):
                rows = np.arange(first, min(first + batch, stop))
                self._write(writer, source, rows, sample, batch)
                bar.update(len(rows))
            write_json(temporary / "shards.json", writer.close())

    def _write(
        self, writer: ShardWriter, source: Examples, rows: np.ndarray, sample: Sample, batch: int
    ) -> None:
        # Filled up with the last one, so that one compilation does.
        filled = np.minimum(np.arange(rows[0], rows[0] + batch), rows[-1])
        wanted = self.wanted.at(filled)
        drawn = None if self.drawn is None else self.drawn[filled]
        embedding = embeddings_of(source, wanted, drawn)
        images = sample(embedding, wanted.number)
        fields: dict[str, np.ndarray] = {"embedding": embedding}
        if self.layout.latent:
            fields["latent"] = self.model.first_stage.encode(images).astype(np.float16)
        for place, row in enumerate(rows):
            index = int(self.wanted.original[row])
            example = source[index] | {name: array[place] for name, array in fields.items()}
            example["image"] = encode(images[place])
            if self.labels:
                example["label"] = int(self.labels.index[index])
            writer.add("train", example)

    def finish(self) -> None:
        """Writes the records whole, and removes what they were made of."""
        parts = []
        for start in range(0, len(self.wanted), UNIT):
            folder = self.folder / f"{start:09d}"
            parts.append((folder, read_json(folder / "shards.json", "unit of work")))
        with replacing(self.output) as temporary:
            assemble(temporary, parts, ("train",), self.layout, self._metadata())
            self.wanted.save(temporary / FILE)
            for name in ("encoder", "autoencoder"):
                if (self.records.folder / name).is_dir():
                    copy_model(self.records.folder / name, temporary / name)
        write_page(self.output)
        shutil.rmtree(self.folder, ignore_errors=True)
        logging.info("wrote %d variations to %s", len(self.wanted), self.output)

    def _metadata(self) -> dict[str, Any]:
        about = self.records.metadata
        classes = self.labels.names if self.labels else ()
        counts = {}
        if self.labels:
            found = self.labels.index[self.wanted.original]
            counts["train"] = [*np.bincount(found, minlength=len(classes)).tolist(), 0]
        # Another source than the real records': prepare shall not take one for the other.
        own = {"source": f"{self.told['how']} variations of {about['recipe'].get('source')}"}
        own |= {"variants": 1, "posterior": False, "patch_tokens": False, "jpeg_quality": None}
        return {
            **about,
            "recipe": {**about["recipe"], **own},
            "image": {"format": "PNG"},
            "classes": list(classes),
            "label_counts": counts,
            "layout": "variations",
            "duplicates": None,
            TOLD: {**self.told, "embedding": ASKED},
        }


def unfinished(output: Path) -> Path:
    """Where the work for `output` lies until it is done."""
    return output.with_name(f"{output.name}.unfinished")


def is_done(output: Path, told: Mapping[str, Any]) -> bool:
    """Whether `output` holds these very variations.

    Raises InputError if it is a file, or holds anything else.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"--output={output} is a file; give a folder")
    if not output.exists() or not any(output.iterdir()):
        return False
    found = open_records(output, "It is not empty: choose another --output.").metadata.get(TOLD)
    _check_same(found, told, output)
    return True


def begin(output: Path, told: Mapping[str, Any]) -> None:
    """Makes the folder of the work; InputError if there is work of other variations in it."""
    file = unfinished(output) / "augmentation.json"
    if file.is_file():
        _check_same(read_json(file, "work"), told, file.parent)
        return
    write_json(file, dict(told))


def _check_same(found: Mapping[str, Any] | None, told: Mapping[str, Any], where: Path) -> None:
    own = {name: value for name, value in told.items() if name not in PATHS}
    found = {name: value for name, value in (found or {}).items() if name in own}
    if differing := difference(found, own):
        raise InputError(
            f"{where} holds variations made otherwise ({differing}); delete it or choose another "
            "--output"
        )


def difference(found: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first entry that both do not have alike, in words; None where there is none."""
    for name in now | found:
        value, other = now.get(name), found.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            if within := difference(other, value):
                return f"{name}.{within}"
        elif other != value:
            return f"{name}: {_short(other)}, now {_short(value)}"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
