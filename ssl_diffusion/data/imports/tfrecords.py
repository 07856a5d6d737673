"""Random access to TFRecord files.

A record is its length (uint64), a checksum of that, its bytes, and a checksum of those; numbers are
little-endian, and checksums CRC-32C, masked as TFRecord masks them.
"""

import struct
from bisect import bisect_right
from itertools import accumulate

import google_crc32c
import numpy as np

from ssl_diffusion.errors import InputError

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")


class TFRecords:
    """The records of some files, in order. Opening reads the lengths, a seek for each record."""

    def __init__(self, paths: list[str]):
        self._paths = paths
        self._offsets = [_offsets(path) for path in paths]
        self._ends = list(accumulate(len(offsets) for offsets in self._offsets))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        shard = bisect_right(self._ends, index)
        path, offsets = self._paths[shard], self._offsets[shard]
        with open(path, "rb") as file:
            file.seek(int(offsets[index - self._ends[shard] + len(offsets)]))
            (length, _) = HEADER.unpack(file.read(HEADER.size))
            record = file.read(length)
            (checksum,) = FOOTER.unpack(file.read(FOOTER.size))
        if checksum != masked(record):
            raise InputError(f"record {index} in {path} has changed since it was written")
        return record


def masked(data: bytes) -> int:
    """The checksum of some bytes as TFRecord writes it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _offsets(path: str) -> np.ndarray:
    """Where the records of a file begin; InputError if it is none, or is cut off."""
    offsets, position = [], 0
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            while position < size:
                file.seek(position)
                header = file.read(HEADER.size)
                if len(header) < HEADER.size:
                    break
                length, checksum = HEADER.unpack(header)
                if checksum != masked(header[:8]):
                    break
                offsets.append(position)
                position += HEADER.size + length + FOOTER.size
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); prepare it again") from None
    if position != size:
        raise InputError(
            f"{path} is no TFRecord file, or cut off: {size} bytes, of which record {len(offsets)} "
            f"begins or ends at {position}; prepare it again"
        )
    return np.array(offsets, np.int64)
