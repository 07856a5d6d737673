"""PyTorch checkpoints (the zip files of `torch.save`), read without torch and without trust.

The pickle in the file is read as data, and all that it says of a tensor is checked against the
file before an array is made of it.
"""

import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.pickles import UNREAD, Storage, Tensor, interpret
from ssl_diffusion.weights.safetensors_file import DTYPES

LARGEST_PICKLE = 16 * 2**20  # bytes; 10 000 tensors take one or two MB
LARGEST_SIZE, MOST_AXES = 2**48, 32
WRAPPERS = ("state_dict", "model", "teacher", "student")  # the first that holds tensors is meant
STORAGES = {  # what torch calls an array of numbers -> what safetensors calls the number
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.UntypedStorage": "U8",
    "torch.storage.UntypedStorage": "U8",
}


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name: read-only views of the mapped file.

    They are those under "state_dict" (Lightning) or another of WRAPPERS, else those of the top
    level, else those of the only dictionary in it that holds tensors; entries that are no tensors
    are left out. Raises InputError for every file that is not read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(archive, path).read()
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    except Exception as error:  # whatever a damaged or hostile file may bring about
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{path} cannot be read as a PyTorch checkpoint, cut short or damaged ({reason}); "
            "copy it again"
        ) from None


class _Archive:
    """The zip file and its bytes, mapped; errors lack the name of the file."""

    def __init__(self, archive: zipfile.ZipFile, path: Path):
        self.members = archive.NameToInfo
        self.bytes = np.memmap(path, np.uint8, "r")
        pickles = [name for name in self.members if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise InputError(
                "is a zip file but no PyTorch checkpoint (no NAME/data.pkl in it); "
                "give the file that torch.save wrote"
            )
        self.root = pickles[0].removesuffix("data.pkl")

    def read(self) -> dict[str, np.ndarray]:
        """The tensors by name."""
        if f"{self.root}byteorder" in self.members:
            order = self.member("byteorder")[:16].tobytes()
            if order != b"little":
                raise InputError(
                    f"has byte order {order!r}, expected b'little'; save it again on such a machine"
                )
        data = self.member("data.pkl")
        if data.size > LARGEST_PICKLE:
            raise InputError(
                f"describes its tensors in {data.size} bytes, expected at most {LARGEST_PICKLE}; "
                "save the state_dict alone"
            )
        named = _tensors_of(interpret(data.tobytes()))
        return {name: self.array(name, tensor) for name, tensor in named.items()}

    def member(self, name: str) -> np.ndarray:
        """The bytes of a member, as a view.

        Their CRC is not looked at: torch may leave it out (torch.serialization.set_crc32_options).
        """
        subject = repr(name[:80])
        info = self.members.get(self.root + name)
        if info is None:
            raise InputError(f"lacks its member {subject}; copy it again")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise InputError(
                f"holds {subject} compressed or encrypted, expected it plain as torch.save writes "
                "it; unpack it and pack it again with `zip -0`"
            )
        header = self.bytes[max(info.header_offset, 0) :][:30].tobytes()
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise InputError(f"has no member where its directory says {subject}; copy it again")
        start = info.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
        if start + info.file_size > self.bytes.size:
            raise InputError(f"ends before its member {subject} does; copy it again")
        return self.bytes[start : start + info.file_size]

    def array(self, name: str, tensor: Tensor) -> np.ndarray:
        """The tensor as an array, once all that the pickle says of it has been checked."""
        storage, offset, shape, strides = tensor
        subject = f"tensor {name[:80]!r}"
        if not isinstance(storage, Storage) or storage.dtype not in STORAGES:
            kind = repr(storage.dtype[:80]) if isinstance(storage, Storage) else "no storage"
            raise InputError(
                f"has {subject} of a type that is not read ({kind}); save it as float32"
            )
        sized = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides)
        if not sized or len(shape) > MOST_AXES:
            raise InputError(f"has {subject} without a shape and as many strides; save it again")
        for size in (offset, storage.size, *shape, *strides):
            if type(size) is not int or not 0 <= size <= LARGEST_SIZE:
                raise InputError(
                    f"has {subject} with a size, stride or offset that is no number of elements; "
                    "save it again"
                )
        dtype = DTYPES[STORAGES[storage.dtype]]
        data = self.member(f"data/{storage.key}")
        if storage.size * dtype.itemsize > data.size:
            raise InputError(
                f"has {subject} in a storage of {storage.size} elements of {dtype}, but only "
                f"{data.size} bytes for it; copy it again"
            )
        count = math.prod(shape)
        if count == 0:
            return np.empty(shape, dtype)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        # No more elements than the storage has: no array is larger than the file.
        if last >= storage.size or count > storage.size:
            raise InputError(
                f"has {subject} of shape {shape} outside its storage of {storage.size} elements; "
                "save it again, contiguous"
            )
        byte_strides = [stride * dtype.itemsize for stride in strides]
        return np.ndarray(shape, dtype, data, offset * dtype.itemsize, byte_strides)


def _tensors_of(top: Any) -> dict[str, Tensor]:
    """The dictionary of tensors that a checkpoint is about, other entries left out."""

    def holds_tensors(value: Any) -> bool:
        return type(value) is dict and any(isinstance(v, Tensor) for v in value.values())

    content = top if type(top) is dict else {}
    found = [content[key] for key in WRAPPERS if holds_tensors(content.get(key))]
    found += [content] if holds_tensors(content) else []
    if not found:
        nested = [key for key, value in content.items() if holds_tensors(value)]
        if len(nested) != 1:
            raise InputError(
                f"holds {len(nested) or 'no'} dictionaries of tensors, expected one (as "
                "state_dict or at the top level); save the state_dict of the wanted network alone"
            )
        found = [content[nested[0]]]
    for name, value in found[0].items():
        if value is UNREAD:
            raise InputError(
                f"holds {name[:80]!r} as a sparse, quantised or otherwise special tensor; "
                "save it as a plain one"
            )
    return {name: value for name, value in found[0].items() if isinstance(value, Tensor)}
