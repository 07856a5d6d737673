"""Recorded outputs of the published implementations, and the stand-in weights they were made with.

A tensor of a checkpoint is drawn from a generator seeded with the CRC of its own name, so that
manifests of names and shapes are enough to build the very checkpoints that were recorded. With
PARITY_FIXTURES set, recordings are read from that folder instead (same file names).
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

OWN = Path(__file__).parent / "fixtures" / "oracle"
FOLDER = Path(os.environ.get("PARITY_FIXTURES", OWN))
TOLERANCE = 2e-3  # of max |difference| over the standard deviation of the recording
DIFFERENCES: list[tuple[str, float]] = []  # (test, difference) of every comparison


def recorded(name: str) -> dict[str, np.ndarray]:
    """The arrays of NAME.npz, in the recorded layout (NCHW)."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def manifest(name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """(tensor name -> shape, config) of manifest_NAME.json."""
    file = f"manifest_{name}.json"
    content = json.loads(((FOLDER if (FOLDER / file).exists() else OWN) / file).read_text())
    shapes = content.get("tensors", content)
    config = content["config"] if "tensors" in content else {}
    return {key: tuple(shape) for key, shape in shapes.items()}, config


def stand_in(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The stand-in weights of the tensor called `name`, scaled to keep activations near one."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    noise = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        return noise * np.float32(0.7 / np.sqrt(np.prod(shape[1:])))
    if name.endswith("weight"):
        return np.float32(1.0) + np.float32(0.1) * noise
    return np.float32(0.1) * noise


def tensors(name: str, prefix: str = "") -> dict[str, np.ndarray]:
    """The stand-in checkpoint of manifest_NAME.json; only names with `prefix`, cut off."""
    shapes, config = manifest(name)
    drawn = {key: stand_in(key, shape) for key, shape in shapes.items() if key.startswith(prefix)}
    if "running_var" in config:  # which says abs(tensor) + 0.5
        for key in [key for key in drawn if key.endswith("running_var")]:
            drawn[key] = np.abs(drawn[key]) + np.float32(0.5)
    if "conv.weight" in config:  # which says tensor * 1.8
        for key in [key for key in drawn if key.endswith("conv.weight")]:
            drawn[key] = drawn[key] * np.float32(1.8)
    return {key.removeprefix(prefix): array for key, array in drawn.items()}


def nhwc(x: np.ndarray) -> np.ndarray:
    """[b, c, h, w] -> [b, h, w, c]."""
    return np.moveaxis(x, 1, -1)


def difference(found: Any, expected: np.ndarray) -> float:
    """max |found - expected| over the standard deviation of `expected`; told at the tests' end."""
    value = float(np.abs(np.asarray(found) - expected).max() / expected.std())
    test = os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[-1].removesuffix(" (call)")
    DIFFERENCES.append((test, value))
    return value
