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
import safetensors
import safetensors.numpy
from flax import traverse_util
from jaxtyping import PyTree

from ssl_diffusion import demo
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, replacing
from ssl_diffusion.weights.safetensors_file import write_tensors

SPEC, WEIGHTS = "model.json", "weights.safetensors"
NEEDED = {  # fields of model.json, by kind of model
    "denoiser": ("architecture", "conditioner", "patch_px", "mpp", "embedding", "diffusion")
    + ("sampling",),
    "autoencoder": ("architecture", "latent"),
    "encoder": ("architecture", "image_size", "mean", "std", "embedding"),
}


def write_model(
    folder: str | Path,
    spec: Mapping[str, Any],
    params: PyTree,
    parts: Mapping[str, Path] | None = None,
) -> None:
    """Writes the folder whole or not at all; `parts` are model folders to copy in, by name."""
    flat = traverse_util.flatten_dict(params, sep="/")
    arrays = {name: np.asarray(value) for name, value in flat.items()}
    with replacing(folder) as temporary:
        temporary.mkdir()
        write_tensors(temporary / WEIGHTS, arrays, np.float32)
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
    if spec.get("kind") != kind:
        raise InputError(
            f"{file} describes a {spec.get('kind')!r} model, expected a {kind!r} model"
        )
    if missing := [name for name in NEEDED[kind] if name not in spec]:
        raise InputError(f"{file} lacks {', '.join(missing)}; copy or export the model again")
    return spec


def read_params(folder: str | Path, expected: PyTree) -> PyTree:
    """The parameters of `folder`, in the tree of `expected` (arrays or their shapes).

    Raises InputError naming every missing, unexpected and mis-shaped tensor at once, or saying that
    the file is damaged.
    """
    file = demo.resolve(folder) / WEIGHTS
    try:
        arrays = safetensors.numpy.load_file(file)
    except FileNotFoundError:
        raise InputError(f"no weights: {file} does not exist") from None
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{file} is damaged or no safetensors file ({error}); copy it again"
        ) from None
    wanted = {
        name: leaf.shape for name, leaf in traverse_util.flatten_dict(expected, sep="/").items()
    }
    found = {name: array.shape for name, array in arrays.items()}
    wrong = [
        f"{name}: found {found.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted(wanted | found)
        if wanted.get(name) != found.get(name)
    ]
    if wrong:
        raise InputError(f"{file} does not fit its {SPEC}: " + "; ".join(wrong))
    return traverse_util.unflatten_dict(arrays, sep="/")
