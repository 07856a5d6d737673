"""Grids of embeddings out of records: what a prior learns from."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ssl_diffusion.data.origins import SPLITS
from ssl_diffusion.data.records import Records
from ssl_diffusion.errors import InputError

FACTS = ("label", "text")  # of a patch, where the records hold them


@dataclasses.dataclass(frozen=True)
class Grids:
    """Random access to the grids of a split: `len()`, and `grids[i]` as a dict of arrays.

    A grid is what lies a patch's size apart in one source, to the right of and below a patch: there
    is one for each patch, wherever training patches overlap. Cells that were not recorded
    (background, or another split's) are not present. In it are

        embedding  float16 [window, window, tokens, dim], zeros where a cell is not present
        present    bool    [window, window], true at the top left
        facts      int32   [window, window] each, -1 where a cell is not present or not known

    Attributes:
      name: of the records and the split, for messages.
      window: cells along a side.
      spacing_px: from cell to cell.
      sources: names of the images.
      texts: all that patches say.
      source, x, y: of each patch: index of its image and pixels of its corner.
      embedding: of each patch; held in memory, 3 GB for a million patches of 1536 numbers, and
        twice that while they are read.
      facts: whole numbers of each patch by name: "row" (its record), "label", "text" (an index in
        `texts`), and what is added by `with_facts`; -1 is unknown.
      order: the patches whose grids these are. One may come several times.
    """

    name: str
    window: int
    spacing_px: int
    sources: tuple[str, ...]
    texts: tuple[str, ...]
    source: Int[np.ndarray, " n"]
    x: Int[np.ndarray, " n"]
    y: Int[np.ndarray, " n"]
    embedding: Float[np.ndarray, "n tokens dim"]
    facts: Mapping[str, Int[np.ndarray, " n"]]
    order: Int[np.ndarray, " m"]

    @cached_property
    def _at(self) -> dict[tuple[int, int, int], int]:
        """The patch at each (source, x, y); InputError where some share a place."""
        places = zip(self.source.tolist(), self.x.tolist(), self.y.tolist(), strict=True)
        at = {place: index for index, place in enumerate(places)}
        if self.window > 1 and len(at) < len(self.source):
            raise InputError(
                f"{self.name}: {len(self.source)} patches lie at {len(at)} places, so that which "
                "are neighbours is not known; set config.data.window to 1 for single embeddings"
            )
        return at

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        patch = self.patches(index)
        present = patch >= 0
        embedding = np.where(present[..., None, None], self.embedding[patch], np.float16(0))
        facts = {
            name: np.where(present, values[patch], -1).astype(np.int32)
            for name, values in self.facts.items()
        }
        return {"embedding": embedding, "present": present, **facts}

    def patches(self, index: int) -> Int[np.ndarray, "window window"]:
        """Which patches a grid is of, -1 where there is none."""
        first = int(self.order[index])
        if self.window == 1:  # where patches lie does not matter, and may not be known
            return np.array([[first]])
        source, x, y = int(self.source[first]), int(self.x[first]), int(self.y[first])
        steps = [step * self.spacing_px for step in range(self.window)]
        found = [[self._at.get((source, x + dx, y + dy), -1) for dx in steps] for dy in steps]
        return np.array(found)

    def place(self, index: int) -> str:
        """Where a grid begins, in words."""
        first = self.order[index]
        source = self.sources[self.source[first]]
        return f"{self.name} grid {index}, {source} at x={self.x[first]} y={self.y[first]}"

    def balanced(self, fact: str) -> "Grids":
        """Grids of which every value of a fact begins about as many; those not known are one more.

        Those of a rarer value come several times, the nearest whole number.
        """
        values, counts = np.unique(self.facts[fact][self.order], return_counts=True)
        repeats = dict(zip(values.tolist(), np.round(counts.max() / counts), strict=True))
        times = [int(repeats[value]) for value in self.facts[fact][self.order].tolist()]
        return dataclasses.replace(self, order=np.repeat(self.order, times))

    def with_facts(self, **facts: Int[np.ndarray, " n"]) -> "Grids":
        """The same grids with further facts."""
        return dataclasses.replace(self, facts=dict(self.facts) | facts)


def open_grids(records: Records, window: int, splits: Sequence[str] = SPLITS) -> dict[str, Grids]:
    """The grids of those splits that there are, whose sources and texts have the same numbers.

    Of patches that were recorded in several variants they hold the one as it was cut.

    Raises InputError for records without any of the splits or without embeddings, and where no
    patch has a neighbour a patch's size away.
    """
    sources: dict[str, int] = {}
    texts: dict[str, int] = {}
    columns = {
        split: _read(records, split, sources, texts)
        for split in splits
        if records.count(split) or len(splits) == 1
    }
    if not columns:
        raise InputError(f"records in {records.folder} have none of {', '.join(splits)} to read")
    grids = {
        split: Grids(
            name=f"{records.folder} {split}",
            window=window,
            spacing_px=records.metadata["patch_px"],
            sources=tuple(sources),
            texts=tuple(texts),
            **{name: arrays.pop(name) for name in ("source", "x", "y", "embedding")},
            facts=arrays,
            order=np.arange(len(arrays["row"])),
        )
        for split, arrays in columns.items()
    }
    if window > 1:
        for each in grids.values():
            _ = each._at  # refused now, and not at the first grid that is read
    first = next(iter(grids.values()))
    if window > 1 and not any((first.patches(i) >= 0).sum() > 1 for i in range(len(first))):
        raise InputError(
            f"{first.name}: no patch has a neighbour {first.spacing_px} px away, so there are no "
            "grids but of one cell; prepare the records with a stride_px that divides patch_px, or "
            "set config.data.window to 1"
        )
    return grids


def _read(
    records: Records, split: str, sources: dict[str, int], texts: dict[str, int]
) -> dict[str, np.ndarray]:
    """Columns of a split's patches; new sources and texts are numbered on."""
    known = [name for name in FACTS if name in records.features]
    if not records.metadata.get("classes"):
        known = [name for name in known if name != "label"]
    variant = ["variant"] if "variant" in records.features else []
    source = records.source(split, ("source", "x", "y", "embedding", *known, *variant))
    columns: dict[str, list] = {name: [] for name in ("row", "source", "x", "y", *known)}
    embeddings: list[np.ndarray] = []
    for row in tqdm(range(len(source)), desc=f"{split} patches", unit="patch"):
        patch = source[row]
        if patch.get("variant", 0):
            continue
        patch["row"] = row
        patch["source"] = sources.setdefault(patch["source"], len(sources))
        if "text" in patch:
            text = patch["text"].strip()
            patch["text"] = texts.setdefault(text, len(texts)) if text else -1
        embeddings.append(patch["embedding"].astype(np.float16))
        for name, values in columns.items():
            values.append(patch[name])
    embedding = np.stack(embeddings)
    if bad := int((~np.isfinite(embedding)).any(axis=(1, 2)).sum()):
        raise InputError(
            f"records in {records.folder}, split {split!r}: {bad} embeddings are not finite in "
            "float16; prepare them with an encoder whose embeddings are"
        )
    arrays = {name: np.array(values, np.int64) for name, values in columns.items()}
    return arrays | {"embedding": embedding}
