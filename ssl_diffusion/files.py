"""Writing files and folders so that they appear whole or not at all."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssl_diffusion.errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path; renames it over `path` on success, removes it on failure.

    The temporary name keeps the suffix of `path`, since writers choose the format from it. Works
    for files and for folders; an older folder of the same name is replaced only once the new one is
    whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial-{_unique()}{path.suffix}")
    remove(temporary)
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            old = path.with_name(f".{path.name}.old-{_unique()}")
            path.rename(old)
            temporary.rename(path)
            remove(old)
        else:
            temporary.replace(path)
    finally:
        remove(temporary)


def _unique() -> str:
    """Hosts and containers that share a file system may share process numbers."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def remove(path: Path) -> None:
    """Removes a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: str | Path, what: str) -> Any:
    """Reads JSON; raises InputError naming `what` when the file is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no {what}: {path} does not exist") from None
    except NotADirectoryError:
        raise InputError(f"no {what}: {Path(path).parent} is a file, expected a folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{what} {path} is not valid JSON ({error}); make it again") from None


def write_json_lines(path: str | Path, values: Iterable[Any]) -> None:
    """Writes one JSON value a line, atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(value) + "\n" for value in values)


def read_json_lines(path: str | Path) -> list[Any]:
    """The values of a JSON Lines file, none without it; InputError if one is no JSON."""
    path = Path(path)
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")  # of which other line ends may be in names
        return [json.loads(line) for line in text.split("\n") if line]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not one JSON object per line ({error})") from None


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
