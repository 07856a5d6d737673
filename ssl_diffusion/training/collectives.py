"""How many bytes leave a chip in a compiled program: its collective operations, from the HLO."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4}
BYTES |= {"s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_PARTITIONS = re.compile(r"num_partitions=(\d+)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(rf"= (.+?) ({_KINDS})(-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|to_apply|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
# A TPU's compiler cuts a collective into pieces, to be spread over other work: each has the whole
# operation in it, and all but the first take flags of the piece before.
_LATER_PIECE = re.compile(r'"flag_start":"\d+"')
# How it writes a reduce-scatter: an all-reduce of which one part is kept, in one computation.
_REDUCE_SCATTER = "all-reduce-scatter"
_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}")
_SIZE = re.compile(r"'(\w+)'=(\d+)")
_AXIS = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")  # the second number: a part of the axis


class _Computation(NamedTuple):
    """What a computation moves and calls.

    Attributes:
      moved: bytes by kind of its own operations.
      calls: (the computation called, how often; None if its loop's condition says it, that one).
      limit: as a condition, how often its loop runs.
    """

    moved: dict[str, float]
    calls: list[tuple[str, int | None, str]]
    limit: int


def collective_bytes(hlo: str) -> dict[str, float]:
    """Bytes that each chip sends in one run of a compiled program, by kind of operation.

    As rings send them, n chips to a group: of an all-reduce 2 (n - 1) / n of its size, of an
    all-gather and a reduce-scatter (n - 1) / n of the whole, of an all-to-all (n - 1) / n. Loops
    are counted as often as they run, where the program says it.
    """
    found = _PARTITIONS.search(hlo)
    chips = int(found[1]) if found else 1
    computations, entry = {}, ""
    for name, is_entry, lines in _computations(hlo):
        computations[name] = _read(name, lines, chips)
        entry = name if is_entry else entry
    total: dict[str, float] = defaultdict(float)

    def count(name: str, times: int) -> None:
        if name not in computations:
            return
        for kind, moved in computations[name].moved.items():
            total[kind] += times * moved
        for called, trips, condition in computations[name].calls:
            if trips is None:
                trips = computations[condition].limit if condition in computations else 1
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


def _read(name: str, lines: list[str], chips: int) -> _Computation:
    moved: dict[str, float] = defaultdict(float)
    calls = []
    limits = [int(found[1]) for line in lines if (found := _LIMIT.search(line))]
    for line in lines:
        if found := _OPERATION.search(line):
            if not _LATER_PIECE.search(line):
                kind, sent = found[2], _sent(found[2], found[1], bool(found[3]), line, chips)
                if kind == "all-reduce" and name.startswith(_REDUCE_SCATTER):
                    kind, sent = "reduce-scatter", sent / 2
                moved[kind] += sent
            continue  # what it applies adds numbers
        trips, condition = 1, ""
        if found := _CONDITION.search(line):
            known = _TRIPS.search(line)
            trips, condition = int(known[1]) if known else None, found[1]
        for called in _CALLED.findall(line):
            calls += [(part.strip(" %"), trips, condition) for part in called.split(",")]
    return _Computation(moved, calls, limits[0] if len(limits) == 1 else 1)


def _sent(kind: str, result: str, starts: bool, line: str, chips: int) -> float:
    sizes = [
        BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for dtype, shape in _SHAPE.findall(result)
    ]
    # What starts gives its operands before its results (an all-reduce gives results alone).
    if starts and kind in ("all-gather", "collective-permute"):
        sizes = sizes[len(sizes) // 2 :] if kind == "all-gather" else sizes[1:2]
    size, n = sum(sizes), _group(line, chips)
    match kind:
        case "all-reduce":
            return 2 * size * (n - 1) / n
        case "reduce-scatter":  # its result is one part
            return float(size * (n - 1))
        case "collective-permute":
            return float(size)
    return size * (n - 1) / n


def _group(line: str, chips: int) -> int:
    """Chips to a group; all of them, where the operation names no groups."""
    if found := _GROUPS.search(line):
        return int(found[2])
    if found := _LISTED.search(line):
        return len(found[1].split(","))
    if found := _MESH.search(line):
        sizes = dict(_SIZE.findall(found[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in _AXIS.findall(found[2]))
    return chips
