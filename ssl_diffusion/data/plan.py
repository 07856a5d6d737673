"""What is to be done, before it is begun: units of work, how much they will hold, what fails."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ssl_diffusion.data.cutting import TASK_BYTES, Broken, Cutters, Form, check_usable, cut, survey
from ssl_diffusion.data.origins import Collection
from ssl_diffusion.files import read_json, replacing

UNIT = 1_000  # patches at most that origins are put together for; a larger one is a unit itself
SAMPLED, SAMPLED_ROWS = 6, 3  # origins, and rows of each, that the need of disk is told from


@dataclass(frozen=True)
class Plan:
    """`surveys[i]` is what `cutting.survey` found of origin i; a unit is the indices of some."""

    surveys: tuple[dict[str, Any], ...]
    units: tuple[tuple[int, ...], ...]

    @property
    def failed(self) -> dict[int, str]:
        """Why some origins cannot even be opened, by index."""
        return {i: found["reason"] for i, found in enumerate(self.surveys) if "reason" in found}

    def most(self, indices: Sequence[int]) -> int:
        """How many patches these origins hold at most."""
        return sum(self.surveys[index]["most"] for index in indices)

    def tasks(self, index: int, patch_px: int) -> list[tuple[int, int]]:
        """The rows (start, stop) of one origin that are cut at a time."""
        found = self.surveys[index]
        patches = max(1, TASK_BYTES // (3 * patch_px**2))
        step = max(1, patches * found["rows"] // max(1, found["most"]))
        return [(row, min(row + step, found["rows"])) for row in range(0, found["rows"], step)]


def make_plan(collection: Collection, cutters: Cutters) -> Plan:
    """Opens every origin once. Raises InputError if none can be."""
    count = len(collection.origins)
    calls = enumerate(collection.origins)
    found = tqdm(cutters.map(survey, calls), "open", count, unit="file", disable=count < 100)
    surveys = tuple(found)
    check_usable(surveys)
    return Plan(surveys, tuple(_units(surveys)))


def _units(surveys: Sequence[dict[str, Any]]) -> Iterator[tuple[int, ...]]:
    unit: list[int] = []
    most = 0
    for index, found in enumerate(surveys):
        if "reason" in found:
            continue
        if unit and most + found["most"] > UNIT:
            yield tuple(unit)
            unit, most = [], 0
        unit.append(index)
        most += found["most"]
    if unit:
        yield tuple(unit)


def write_plan(file: Path, plan: Plan) -> None:
    """Keeps a plan, so that who goes on or shares the work need not open everything again."""
    with replacing(file) as temporary:
        content = {"surveys": plan.surveys, "units": plan.units}
        temporary.write_text(json.dumps(content), encoding="utf-8")


def read_plan(file: Path) -> Plan:
    """The plan as it was kept."""
    content = read_json(file, "plan")
    return Plan(tuple(content["surveys"]), tuple(map(tuple, content["units"])))


def expected(plan: Plan, collection: Collection, cutters: Cutters, form: Form) -> tuple[int, int]:
    """(records, bytes of their images) to expect, told from a few rows of a few origins."""
    usable = [index for unit in plan.units for index in unit]
    step = max(1, len(usable) // SAMPLED)
    calls = [
        (index, collection.origins[index], row, row + 1, form)
        for index in usable[step // 2 :: step][:SAMPLED]
        for rows in (plan.surveys[index]["rows"],)
        for row in sorted({rows * (2 * k + 1) // (2 * SAMPLED_ROWS) for k in range(SAMPLED_ROWS)})
    ]
    looked_at = sum(plan.most([call[0]]) / plan.surveys[call[0]]["rows"] for call in calls)
    found, size = 0, 0
    cutting = cutters.map(_sample, calls)
    for examples in cutting:
        found += len(examples)
        size += sum(examples)
    total = plan.most(usable)
    share = total / max(1.0, looked_at)
    return round(found * share), round(size * share)


def _sample(*call: Any) -> list[int]:
    """Sizes of the images of a row; nothing of an origin that turns out to be broken."""
    try:
        return [len(example["encoded"]) for example in cut(*call)]
    except Broken:
        return []
