"""Locks between processes, that end with the process that holds them, however it ends."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssl_diffusion.errors import InputError


def locked(file: Any, wait: bool = False) -> bool:
    """Whether an open file is now locked by this process; with `wait`, once it is free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system that has no locks, as a bucket's
        logging.warning("no locks on %s: start no other run in its folder", file.name)
    return True


@contextmanager
def only_one(path: Path, refusal: str) -> Iterator[None]:
    """Inside, no other process is inside with the same file; InputError(`refusal`) if one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not locked(file):
            raise InputError(refusal)
        yield
