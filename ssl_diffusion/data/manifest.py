"""A CSV file that says what the files of a data set are.

Its first line names the columns, in any order: `file` (path below the source folder), and of
`split` (train, val or test), `label`, `text`, `group` (what must not lie in two splits, such as the
patient) and `mpp` (µm per pixel, of files that do not say it) those that there are. An empty field
says nothing.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ssl_diffusion.data.origins import SPLITS
from ssl_diffusion.data.recipe import parse_mpp
from ssl_diffusion.errors import InputError

COLUMNS = ("file", "split", "label", "text", "group", "mpp")


@dataclass(frozen=True)
class Row:
    """What a manifest says of one file; `split` and `mpp` are None where it says nothing."""

    file: str
    split: str | None = None
    label: str = ""
    text: str = ""
    group: str = ""
    mpp: float | None = None


def read_manifest(path: str | Path) -> dict[str, Row]:
    """The rows by file, in order.

    Raises InputError, with the line, for columns that are not known, splits that there are not,
    a file that is listed twice, and paths that lead out of the source folder.
    """
    path = Path(path)
    try:
        # What ends a line is left to csv: a text may hold line breaks, U+2028 and the like.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return _rows(stream, path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"manifest {path} cannot be read ({error}); expected a CSV file") from None


def _rows(stream: TextIO, path: Path) -> dict[str, Row]:
    lines = csv.DictReader(stream, strict=True)
    try:
        names = lines.fieldnames or ()
        unknown = [name for name in names if name not in COLUMNS]
        if "file" not in names or unknown:
            raise InputError(
                f"manifest {path} has the columns {', '.join(map(str, names))}; expected file, and "
                f"of {', '.join(COLUMNS[1:])} those that there are"
            )
        rows: dict[str, Row] = {}
        for line in lines:
            row = _row(line, f"manifest {path}, line {lines.line_num}")
            if row.file in rows:
                raise InputError(
                    f"manifest {path}, line {lines.line_num}: {row.file} is listed twice; a source "
                    "has one split"
                )
            rows[row.file] = row
    except csv.Error as error:
        raise InputError(f"manifest {path}, line {lines.line_num}: {error}") from None
    if not rows:
        raise InputError(f"manifest {path} lists no files")
    return rows


def _row(line: dict[str | None, str | None], where: str) -> Row:
    if None in line or None in line.values():
        raise InputError(f"{where}: more or fewer fields than columns; quote commas in text")
    fields = {name: (value or "").strip() for name, value in line.items()}
    file, split = fields["file"], fields.get("split", "")
    if not file or Path(file).is_absolute() or ".." in Path(file).parts:
        raise InputError(f"{where}: file {file!r}, expected a path below the source folder")
    if split and split not in SPLITS:
        raise InputError(f"{where}: split {split!r}, expected one of {', '.join(SPLITS)}")
    mpp = parse_mpp(fields["mpp"], f"mpp in {where}") if fields.get("mpp") else None
    return Row(
        Path(file).as_posix(),
        split or None,
        fields.get("label", ""),
        fields.get("text", ""),
        fields.get("group", ""),
        mpp,
    )
