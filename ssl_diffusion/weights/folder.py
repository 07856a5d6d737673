"""A model folder: `model.json` (what it is, how it was made) and `weights.safetensors`.

Nothing in it is executed when it is read. Folders of models that need other models hold them as
subfolders.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from ssl_diffusion import demo
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, replacing
from ssl_diffusion.weights.safetensors_file import FLOATS, read_tensors, write_tensors

SPEC, WEIGHTS = "model.json", "weights.safetensors"
NEEDED = {  # fields of model.json, by kind of model
    "denoiser": ("architecture", "conditioner", "patch_px", "mpp", "embedding", "diffusion")
    + ("sampling",),
    "autoencoder": ("architecture", "latent"),
    "encoder": ("architecture", "image_size", "mean", "std", "embedding", "augmentation"),
    "prior": ("architecture", "conditioner", "components", "embedding", "patch_px")
    + ("encoder_sha256", "mpp", "labels", "conditions", "diffusion", "sampling"),
    "features": ("architecture", "resize"),
    "text_encoder": ("architecture", "max_tokens", "embedding"),
}


def write_model(
    folder: str | Path,
    spec: Mapping[str, Any],
    params: PyTree,
    parts: Mapping[str, Path] | None = None,
    dtype: str = "float32",
) -> None:
    """Writes the folder whole or not at all; `parts` are model folders to copy in, by name.

    `dtype`, "float32" or "bfloat16", is what the weights are stored in.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    arrays = {name: np.asarray(value) for name, value in flat.items()}
    with replacing(folder) as temporary:
        temporary.mkdir()
        write_tensors(temporary / WEIGHTS, arrays, np.dtype(dtype))
        (temporary / SPEC).write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
        for name, part in (parts or {}).items():
            copy_model(part, temporary / name)


def copy_model(source: str | Path, target: Path) -> None:
    """Copies the two files of a model folder; InputError if either is missing."""
    source = demo.resolve(source)
    target.mkdir(parents=True)
    for name in (SPEC, WEIGHTS):
        if not (source / name).is_file():
            raise InputError(f"{source} is no model folder: it has no {name}")
        shutil.copyfile(source / name, target / name)


def read_spec(folder: str | Path, kind: str) -> dict[str, Any]:
    """The model.json of `folder`; InputError unless it is there, of that kind, and whole."""
    file = demo.resolve(folder) / SPEC
    spec = read_json(file, f"{kind} model")
    found = spec.get("kind") if isinstance(spec, dict) else None
    if found != kind:
        raise InputError(f"{file} describes a {found!r} model, expected a {kind!r} model")
    if missing := [name for name in NEEDED[kind] if name not in spec]:
        raise InputError(f"{file} lacks {', '.join(missing)}; copy or export the model again")
    return spec


def kind_of(folder: str | Path) -> str | None:
    """What the model.json of `folder` calls its model; InputError if there is none."""
    spec = read_json(demo.resolve(folder) / SPEC, "model")
    return spec.get("kind") if isinstance(spec, dict) else None


def part_of(folder: str | Path, name: str) -> Path:
    """Where the model `name` ("encoder", "autoencoder") that a model needs is, if it is there.

    It lies in a folder of that name inside; the models that ship share theirs.
    """
    folder = demo.resolve(folder)
    shared = folder.parent == demo.FOLDER and not (folder / name).exists()
    return (demo.FOLDER if shared else folder) / name


def read_params(folder: str | Path, expected: PyTree) -> PyTree:
    """The parameters of `folder`, in the tree of `expected` (arrays or their shapes).

    They are float32: views of the mapped file where they are stored so. Raises InputError naming
    every missing, unexpected, mis-shaped and ill-typed tensor at once, or saying that the file is
    damaged.
    """
    arrays = read_arrays(folder)
    file = demo.resolve(folder) / WEIGHTS
    wanted = {
        name: leaf.shape for name, leaf in traverse_util.flatten_dict(expected, sep="/").items()
    }
    found = {name: array.shape for name, array in arrays.items()}
    wrong = [
        f"{name}: found {found.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted(wanted | found)
        if wanted.get(name) != found.get(name)
    ]
    wrong += [
        f"{name}: found {array.dtype}, expected floating point"
        for name, array in arrays.items()
        if array.dtype not in FLOATS
    ]
    if wrong:
        raise InputError(f"{file} does not fit its {SPEC}: " + "; ".join(wrong))
    params = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return traverse_util.unflatten_dict(params, sep="/")


def read_arrays(folder: str | Path) -> dict[str, np.ndarray]:
    """The arrays of `folder` by path, as they are stored; InputError if there are none."""
    file = demo.resolve(folder) / WEIGHTS
    if not file.is_file():
        raise InputError(f"no weights: {file} does not exist")
    return read_tensors(file)
