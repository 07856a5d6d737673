"""How many bytes leave a chip in a compiled program: its collective operations, from the HLO."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4}
BYTES |= {"s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(rf"= (.+?) ({_KINDS})(-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|to_apply|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")


class _Computation(NamedTuple):
    """Bytes by kind of its own operations, and what it calls how often."""

    moved: dict[str, float]
    calls: list[tuple[str, int]]


def collective_bytes(hlo: str) -> dict[str, float]:
    """Bytes that each chip sends in one run of a compiled program, by kind of operation.

    As rings send them, n chips to a group: of an all-reduce 2 (n - 1) / n of its size, of an
    all-gather and a reduce-scatter (n - 1) / n of the whole, of an all-to-all (n - 1) / n. Loops
    are counted as often as they run, where the program says it.
    """
    computations, entry = {}, ""
    for name, is_entry, lines in _computations(hlo):
        computations[name] = _read(lines)
        entry = name if is_entry else entry
    total: dict[str, float] = defaultdict(float)

    def count(name: str, times: int) -> None:
        if name not in computations:
            return
        for kind, moved in computations[name].moved.items():
            total[kind] += times * moved
        for called, trips in computations[name].calls:
            count(called, times * trips)

    count(entry, 1)
    return dict(total)


def _computations(hlo: str) -> Iterator[tuple[str, bool, list[str]]]:
    name, is_entry, lines = "", False, []
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line):
            name, is_entry, lines = found[2], bool(found[1]), []
        elif line.startswith("}"):
            yield name, is_entry, lines
        else:
            lines.append(line)


def _read(lines: list[str]) -> _Computation:
    moved: dict[str, float] = defaultdict(float)
    calls = []
    for line in lines:
        if found := _OPERATION.search(line):
            moved[found[2]] += _sent(found[2], found[1], bool(found[3]), line)
            continue  # what it applies adds numbers
        trips = int(found[1]) if (found := _TRIPS.search(line)) else 1
        for called in _CALLED.findall(line):
            calls += [(name.strip(" %"), trips) for name in called.split(",")]
    return _Computation(moved, calls)


def _sent(kind: str, result: str, starts: bool, line: str) -> float:
    sizes = [
        BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for dtype, shape in _SHAPE.findall(result)
    ]
    # What starts gives its operands before its results (an all-reduce gives results alone).
    if starts and kind in ("all-gather", "collective-permute"):
        sizes = sizes[len(sizes) // 2 :] if kind == "all-gather" else sizes[1:2]
    size, n = sum(sizes), _group(line)
    match kind:
        case "all-reduce":
            return 2 * size * (n - 1) / n
        case "reduce-scatter":  # its result is one part
            return size * (n - 1)
        case "collective-permute":
            return size
    return size * (n - 1) / n


def _group(line: str) -> int:
    if found := _GROUPS.search(line):
        return int(found[2])
    if found := _LISTED.search(line):
        return len(found[1].split(","))
    return 1
