"""What is asked of a prior, as users write it: class shares, a sentence, numbers, a painted map.

"conditions" of a prior's model.json says what it can be asked for; all here is checked against it
before anything compiles.
"""

import csv
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.errors import InputError

SHOWN = 5  # names in a message
NOT_SAID = -1  # of a label map: the cell may be anything


@dataclass(frozen=True)
class Asked:
    """What is asked of a prior, any combination; nothing of it is an unconditional sample.

    Attributes:
      label: share of each class; they sum to 1.
      text: a sentence.
      vector: as measured, in the order of the prior's names, not normalised.
      label_map: the class of each cell by its number, NOT_SAID where it may be any.
    """

    label: Mapping[str, float] | None = None
    text: str | None = None
    vector: Float[np.ndarray, " names"] | None = None
    label_map: Int[np.ndarray, "rows cols"] | None = None


def condition(spec: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """What a prior says of one of its conditions; InputError if it was not trained with it.

    Args:
      spec: its model.json.
      kind: "label", "text", "vector" or "label_map".
    """
    conditions = spec["conditions"]
    if kind not in conditions:
        takes = f"it takes {', '.join(conditions)}" if conditions else "it takes no condition"
        raise InputError(f"a {kind} is asked for, which this prior was not trained with; {takes}")
    return conditions[kind]


def check_asked(asked: Asked, spec: Mapping[str, Any], rows: int, cols: int) -> None:
    """Raises InputError unless this can be asked of the prior for a grid of this many cells."""
    if asked.label is not None:
        _check_shares(asked.label, condition(spec, "label")["classes"])
    if asked.text is not None:
        condition(spec, "text")
        if not asked.text.strip():
            raise InputError("an empty text; say in words what the image shall show")
    if asked.vector is not None:
        _check_vector(asked.vector, condition(spec, "vector"))
    if asked.label_map is not None:
        count = len(condition(spec, "label_map")["classes"])
        if asked.label_map.shape != (rows, cols):
            found = " x ".join(map(str, asked.label_map.shape))
            raise InputError(
                f"a label map of {found} cells for a grid of {rows} x {cols} (rows x columns); "
                "expected one label for each cell"
            )
        if not ((asked.label_map >= NOT_SAID) & (asked.label_map < count)).all():
            raise InputError(
                f"labels {asked.label_map.min()} to {asked.label_map.max()} in a label map; "
                f"expected 0 to {count - 1}, or {NOT_SAID} where the cell may be any"
            )


def read_label(text: str, classes: Sequence[str]) -> dict[str, float]:
    """Shares of classes from "DCIS", "DCIS,N" (equal parts) or "DCIS:0.7,N:0.3".

    What stands after the colons are parts, above 0, that are normalised to sum to 1. A name that
    holds a comma or a colon can be given alone.

    Raises InputError for a class that the prior does not know or that comes twice, for parts that
    are no finite numbers above 0, and where only some of the classes have one.
    """
    if text in classes:
        return {text: 1.0}
    names, parts = [], []
    for item in text.split(","):
        name, colon, part = item.rpartition(":")
        names.append((name if colon else item).strip())
        parts.append(part.strip() if colon else None)
    if not any(names):
        raise InputError(f"an empty label; expected one of {', '.join(classes)}")
    if None in parts and set(parts) != {None}:
        raise InputError(f"label {text}: expected parts of all classes, as A:2,B:1, or of none")
    _check_classes(names, classes)
    if len(set(names)) < len(names):
        raise InputError(f"label {text} names a class twice; name each once")
    numbers = [1.0 if part is None else _number(part) for part in parts]
    total = sum(numbers)
    if not all(number > 0 for number in numbers) or not math.isfinite(total):
        raise InputError(f"label {text}: expected parts that are finite numbers above 0")
    return {name: number / total for name, number in zip(names, numbers, strict=True)}


def read_vector(path: str | Path, names: Sequence[str]) -> Float[np.ndarray, " names"]:
    """Numbers by name from a CSV file, in the order of `names`, as they are written there.

    Two columns, name and value, with or without a line above; or a line of names and one of values.
    Names that the prior does not use are left out, and the log says how many.

    Raises InputError for a file that is neither, for names that are missing or come twice, and for
    what is no finite number in float32.
    """
    given = _named_values(Path(path), names)
    found = dict(given)
    if len(found) < len(given):
        counts = Counter(name for name, _ in given)
        twice = [name for name, count in counts.items() if count > 1]
        raise InputError(f"{path} has {_some(twice)} twice; keep one value of each")
    if missing := [name for name in names if name not in found]:
        raise InputError(
            f"{path} lacks {len(missing)} of the {len(names)} names that the prior was trained "
            f"with: {_some(missing)}; add their values"
        )
    with np.errstate(over="ignore"):
        vector = np.array([_number(found[name]) for name in names]).astype(np.float32)
    if bad := [f"{names[i]} ({found[names[i]]})" for i in np.flatnonzero(~np.isfinite(vector))]:
        raise InputError(f"{path} has no finite number for {_some(bad)}; give measured values")
    if unused := len(found) - len(names):
        logging.info("%d values of %s left out, which the prior does not use", unused, path)
    return vector


def _named_values(path: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark first
            lines = [[cell.strip() for cell in line] for line in csv.reader(file)]
    except FileNotFoundError:
        raise InputError(f"no vector at {path}; give an existing .csv file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"vector {path} is no CSV file ({error}); save it as one") from None
    lines = [line for line in lines if any(line)]
    widths = {len(line) for line in lines}
    if widths == {1} and any(mark in lines[0][0] for mark in ";\t"):
        raise InputError(f"vector {path} has no commas; separate names and values by commas")
    # Two lines of two cells are lines of names and of values only if the first holds names alone.
    if len(lines) == 2 and len(widths) == 1 and (widths != {2} or lines[0][1] in names):
        return list(zip(*lines, strict=True))
    if widths == {2}:
        headed = math.isnan(_number(lines[0][1])) and lines[0][0] not in names
        return [(name, value) for name, value in lines[headed:]]
    raise InputError(
        f"vector {path} has {len(lines)} lines of {_some(sorted(map(str, widths))) or 'no'} cells; "
        "expected two columns, name and value, or a line of names and one of values"
    )


def _check_classes(found: Iterable[str], classes: Sequence[str]) -> None:
    if unknown := [name for name in found if name not in classes]:
        raise InputError(
            f"no class {', '.join(map(repr, unknown))}; the prior knows {', '.join(classes)}"
        )


def _check_shares(shares: Mapping[str, float], classes: Sequence[str]) -> None:
    _check_classes(shares, classes)
    inside = all(0 < share <= 1 for share in shares.values())
    if not inside or not math.isclose(math.fsum(shares.values()), 1, abs_tol=1e-3):
        raise InputError(
            f"class shares {dict(shares)}; expected numbers above 0 that sum to 1, as read_label "
            "makes them"
        )


def _check_vector(vector: np.ndarray, said: Mapping[str, Any]) -> None:
    names = said["names"]
    if vector.shape != (len(names),):
        raise InputError(
            f"a vector of shape {list(vector.shape)}; expected [{len(names)}], a number for each "
            "of the prior's names"
        )
    # Logarithms are taken of counts or of what is normalised from them.
    fits = np.isfinite(vector) & ((vector >= 0) | (not said["log1p"]))
    if bad := [f"{names[i]} ({vector[i]:g})" for i in np.flatnonzero(~fits)]:
        wanted = "finite numbers from 0 on" if said["log1p"] else "finite numbers"
        raise InputError(f"a vector with {_some(bad)}; expected {wanted}")


def _number(text: str) -> float:
    """NaN for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
