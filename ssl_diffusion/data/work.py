"""One unit of work: some origins whole, from pixels to shards; done once, by whoever comes first.

A unit's folder holds the shards of its splits, `unit.json` (their sizes, what each origin gave, and
which of them turned out to be broken) and `patches.npz` (what each patch was, to find it twice).
It appears whole or not at all.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssl_diffusion.data.cutting import Broken, Cutters, Form, cut
from ssl_diffusion.data.encoding import Encoding
from ssl_diffusion.data.origins import SPLITS, Collection
from ssl_diffusion.data.plan import Plan
from ssl_diffusion.data.writer import Layout, Shards, ShardWriter
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, replacing, write_json

BATCH = 256  # patches embedded and encoded at a time


@dataclass
class Done:
    """What became of a unit.

    Attributes:
      shards: as `writer.ShardWriter.close` tells them.
      patches: {origin: {split: records}}, of those that could be used.
      failed: {origin: reason}, of the others.
      labels: {split: [records of each class ..., without label]}, where there are classes.
      origins: which the unit is of.
    """

    shards: Shards = field(default_factory=dict)
    patches: dict[int, dict[str, int]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    origins: list[int] = field(default_factory=list)


class Progress:
    """A bar of the patches that are looked at, which also tells how many were kept."""

    def __init__(self, total: int):
        self._bar = tqdm(total=total, desc="prepare", unit="patch", unit_scale=True)
        self._kept = 0

    def advance(self, looked_at: int, kept: int = 0) -> None:
        """So many more."""
        self._kept += kept
        self._bar.set_postfix(kept=f"{self._kept:,}", refresh=False)
        self._bar.update(looked_at)

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands, to come back to."""
        return self._bar.n, self._kept

    def back_to(self, place: tuple[int, int]) -> None:
        """Forgets what was counted since."""
        self.advance(place[0] - self._bar.n, place[1] - self._kept)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


@dataclass(frozen=True)
class Job:
    """Everything that doing a unit takes; it is the same in every process that shares the work."""

    collection: Collection
    plan: Plan
    encoding: Encoding
    form: Form
    mpp: float
    folder: Path

    def path(self, number: int) -> Path:
        """Folder of a unit."""
        return self.folder / f"{number:06d}"

    def is_done(self, number: int) -> bool:
        """Whether it is there, whole."""
        return (self.path(number) / "unit.json").is_file()

    def read(self, number: int) -> Done:
        """What became of a unit that is done; InputError if it is of another plan."""
        content = read_json(self.path(number) / "unit.json", "unit of work")
        by_index = ({int(i): value for i, value in content[name].items()} for name in _BY_INDEX)
        if content["origins"] != list(self.plan.units[number]):
            raise InputError(
                f"{self.path(number)} is work of another plan; delete {self.folder} and begin again"
            )
        return Done(content["shards"], *by_index, content["labels"], content["origins"])

    def do(self, number: int, cutters: Cutters, progress: Progress) -> None:
        """Does one unit.

        An origin that turns out to be broken on the way leaves nothing: the unit is begun again
        without it.
        """
        failed: dict[int, str] = {}
        while True:
            indices = [index for index in self.plan.units[number] if index not in failed]
            begun = progress.place
            try:
                with replacing(self.path(number)) as temporary:
                    temporary.mkdir(parents=True)
                    self._write(temporary, indices, failed, cutters, progress)
                return
            except Broken as broken:
                failed[broken.index] = broken.reason
                progress.back_to(begun)

    def _write(
        self,
        folder: Path,
        indices: list[int],
        failed: dict[int, str],
        cutters: Cutters,
        progress: Progress,
    ) -> None:
        layout = self.encoding.layout
        writer = ShardWriter(folder, layout)
        done = Done(patches={index: {} for index in indices}, failed=failed)
        done.origins = sorted({*indices, *failed})
        kept: list[tuple[int, int, int, int, int]] = []
        classes = {name: number for number, name in enumerate(layout.classes)}
        cuts = self._cuts(indices, cutters, progress)
        while batch := list(itertools.islice(cuts, BATCH)):
            fields = {}
            if self.encoding.needs_pixels:
                examples = [example for _, example in batch]
                pixels = np.stack([example["image"] for example in examples])
                fields = self.encoding.fields(pixels, examples)
            for row, (index, example) in enumerate(batch):
                split = example["split"]
                counts = done.patches[index]
                counts[split] = counts.get(split, 0) + 1
                if not example["variant"]:
                    at = example.get("x", 0), example.get("y", 0)
                    kept.append((example["digest"], index, *at, SPLITS.index(split)))
                own = {name: array[row] for name, array in fields.items()}
                record = self._record(index, example, layout, classes) | own
                writer.add(split, record)
                if classes:
                    counted = done.labels.setdefault(split, [0] * (len(classes) + 1))
                    counted[record["label"]] += 1  # -1, for none, is the last
            progress.advance(0, len(batch))
        done.shards = writer.close()
        names = ("digest", "origin", "x", "y", "split")
        types = (np.uint64, np.int32, np.int32, np.int32, np.int8)
        columns = list(zip(*kept, strict=True)) or [()] * len(names)
        arrays = map(np.array, columns, types)
        np.savez(folder / "patches.npz", **dict(zip(names, arrays, strict=True)))
        write_json(folder / "unit.json", asdict(done))

    def _record(
        self, index: int, example: dict[str, Any], layout: Layout, classes: dict[str, int]
    ) -> dict[str, Any]:
        record = {"x": 0, "y": 0} | example
        record |= {"image": example["encoded"], "mpp": self.mpp}
        record["source"] = self.collection.origins[index].name
        record["label"] = classes.get(example["label"], -1)
        return record

    def _cuts(
        self, indices: list[int], cutters: Cutters, progress: Progress
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(origin, example) of all of them, in order."""
        tasks = [
            (index, *rows)
            for index in indices
            for rows in self.plan.tasks(index, self.form.patch_px)
        ]
        calls = [
            (index, self.collection.origins[index], start, stop, self.form)
            for index, start, stop in tasks
        ]
        found = cutters.map(cut, calls)
        for (index, start, stop), examples in zip(tasks, found, strict=True):
            most, rows = (self.plan.surveys[index][name] for name in ("most", "rows"))
            progress.advance(most * stop // rows - most * start // rows)
            yield from ((index, example) for example in examples)


_BY_INDEX = ("patches", "failed")
