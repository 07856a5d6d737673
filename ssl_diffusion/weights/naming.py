"""Published tensors <-> our parameters, leaf by leaf: the rules are tables, one per family.

A table says where each of our parameters lies in a published file, so that one table reads and
writes. `to_ours` and `to_published` are inverse to each other.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import PyTree


@dataclasses.dataclass(frozen=True)
class Transform:
    """How one array is laid out there and here; both directions are views, nothing is copied."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_published: Callable[[np.ndarray], np.ndarray]


SAME = Transform(lambda w: w, lambda p: p)
LINEAR = Transform(lambda w: w.T, lambda p: p.T)  # [out, in] <-> [in, out]
CONV = Transform(lambda w: w.transpose(2, 3, 1, 0), lambda p: p.transpose(3, 2, 0, 1))
# A 1x1 convolution there, a linear layer here: [out, in, 1, 1] <-> [in, out].
POINTWISE = Transform(lambda w: w[:, :, 0, 0].T, lambda p: p.T[:, :, None, None])


def patches(size: int) -> Transform:
    """A convolution of stride `size` there, a linear layer on (row, column, channel) here."""

    def to_published(p: np.ndarray) -> np.ndarray:
        return p.reshape(size, size, -1, p.shape[-1]).transpose(3, 2, 0, 1)

    def to_ours(w: np.ndarray) -> np.ndarray:
        return w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0])

    return Transform(to_ours, to_published)


@dataclasses.dataclass(frozen=True)
class Naming:
    """A family's table.

    Attributes:
      rules: (pattern, replacement) pairs that `re.sub` applies in order to the path of one of our
        parameters ("block_1/conv/kernel"), before "/" becomes ".". A name that ends in "[i/n]" is
        the i-th of n equal parts of that tensor along its first axis (a fused query, key, value).
      transforms: (pattern, transform): the first whose pattern is found in our path counts. Else
        kernels of two axes are LINEAR, of four CONV, and everything else is the SAME.
      prefix: before every published name.
    """

    rules: tuple[tuple[str, str], ...]
    transforms: tuple[tuple[str, Transform], ...] = ()
    prefix: str = ""

    def name(self, path: str) -> tuple[str, int, int]:
        """(published name, part, parts) of one of our parameters; whole tensors are (0, 1)."""
        for pattern, replacement in (*self.rules, (r"/(kernel|scale)$", "/weight")):
            path = re.sub(pattern, replacement, path)
        name, part, parts = re.fullmatch(r"(.*?)(?:\[(\d)/(\d)\])?", path).groups()
        return self.prefix + name.replace("/", "."), int(part or 0), int(parts or 1)

    def transform(self, path: str, ndim: int) -> Transform:
        """How the array of our parameter at `path`, of `ndim` axes here, is laid out there."""
        for pattern, transform in self.transforms:
            if re.search(pattern, path):
                return transform
        return {2: LINEAR, 4: CONV}.get(ndim, SAME) if path.endswith("/kernel") else SAME


def to_ours(
    naming: Naming, expected: PyTree, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], set[str], list[str]]:
    """Reads the parameters of `expected` (a tree of shapes) from published tensors.

    Returns ({path: array, a view}, names of the tensors used, problems: one line for every tensor
    that is missing, has another shape, or is not floating point). Parameters with a problem are
    left out.
    """
    params, used, problems = {}, set(), []
    for path, leaf in traverse_util.flatten_dict(expected, sep="/").items():
        name, part, parts = naming.name(path)
        transform = naming.transform(path, leaf.ndim)
        whole = transform.to_published(np.empty(leaf.shape, np.bool_)).shape
        whole = (whole[0] * parts, *whole[1:])
        tensor = tensors.get(name)
        if tensor is None:
            problems.append(f"{name}: missing, expected {list(whole)}")
            continue
        used.add(name)
        if tensor.shape != whole:
            problems.append(f"{name}: found {list(tensor.shape)}, expected {list(whole)}")
        elif not is_floating(tensor.dtype):
            problems.append(f"{name}: found {tensor.dtype}, expected floating point")
        else:
            size = whole[0] // parts
            params[path] = transform.to_ours(tensor[part * size : (part + 1) * size])
    return params, used, sorted(set(problems))


def to_published(naming: Naming, params: PyTree) -> dict[str, np.ndarray]:
    """The published tensors of our parameters; the inverse of `to_ours`."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        name, part, _ = naming.name(path)
        found.setdefault(name, {})[part] = naming.transform(path, leaf.ndim).to_published(leaf)
    return {
        name: parts[0] if len(parts) == 1 else np.concatenate([parts[i] for i in sorted(parts)])
        for name, parts in found.items()
    }


def is_floating(dtype: Any) -> bool:
    """Whether numbers of this type are floating point; bfloat16 is one numpy does not know."""
    return np.issubdtype(dtype, np.floating) or str(dtype) == "bfloat16"
