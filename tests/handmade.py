"""Checkpoints made by hand: a writer of pickles with the names that torch.save puts in them."""

import itertools
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.tensor_files import open_tensors


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def pickled(value: object) -> bytes:
    """The instructions that make `value`; bytes are instructions already."""
    match value:
        case bytes():
            return value
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case str():
            return b"X" + struct.pack("<I", len(value)) + value.encode()
        case int():
            content = pickle.encode_long(value)
            return b"\x8a" + bytes([len(content)]) + content
        case tuple():
            return b"(" + b"".join(map(pickled, value)) + b"t"
        case dict():
            return b"}(" + b"".join(map(pickled, itertools.chain(*value.items()))) + b"u"
    raise TypeError(value)


def tensor(shape, strides, offset=0, size=24, key="0", storage="FloatStorage") -> bytes:
    """A tensor of a storage of `size` elements, as torch.save describes it."""
    place = pickled(("storage", name("torch", storage), key, "cpu", size)) + b"Q"
    hooks = name("collections", "OrderedDict") + b")R"
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return rebuild + pickled((place, offset, shape, strides, False, hooks)) + b"R"


NUMBERS = np.arange(24, dtype=np.float32)
WHOLE = tensor((2, 3, 4), (12, 4, 1))


def checkpoint(path: Path, content: object, **members: bytes) -> Path:
    """A checkpoint whose storage "0" holds NUMBERS; `members` replace or add others."""
    with zipfile.ZipFile(path, "w") as archive:
        parts = {"data.pkl": b"\x80\x02" + pickled(content) + b".", "byteorder": b"little"}
        for part, value in (parts | {"data/0": NUMBERS.tobytes()} | members).items():
            archive.writestr(f"archive/{part}", value)
    return path


def refused(path: Path, match: str) -> None:
    """Opening it is an error of one line that names the file and the reason."""
    with pytest.raises(InputError, match=match) as error:
        open_tensors(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 600 + len(str(path))
