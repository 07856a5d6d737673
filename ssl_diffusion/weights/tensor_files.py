"""Published tensors, whatever kind of file or folder they come in: {name: array}.

The content decides what a file is, not its name. Arrays are read-only views of mapped files:
opening reads a header, and bytes of a tensor are read when it is used.
"""

import json
from pathlib import Path

import numpy as np

from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.checkpoint import read_checkpoint
from ssl_diffusion.weights.safetensors_file import read_tensors

CHECKPOINTS = (".ckpt", ".pt", ".pth", ".bin")
INDEX = "*.safetensors.index.json"
PRE_ZIP = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # pickle of a magic number
FOREIGN = {  # first bytes, in lower case -> what such a file is
    b"version https://git-lfs": "a git-lfs pointer, not the file it stands for; run `git lfs pull`",
    b"<!doctype html": "a web page, not the file it links to; download the file itself",
    b"<html": "a web page, not the file it links to; download the file itself",
    b"\x1f\x8b": "a gzip file; unpack it",
    b"\x80": "a bare pickle, expected a checkpoint of torch.save or safetensors; save it as either",
}


def open_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file (zip checkpoint of torch.save, safetensors) or of a folder (one
    *.safetensors, or shards with a *.safetensors.index.json).

    Names, types and axes are the file's. Raises InputError naming the file and what is wrong.
    """
    path = Path(path)
    try:
        tensors = _open_folder(path) if path.is_dir() else _open_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its rights") from None
    if not tensors:
        raise InputError(f"{path} holds no tensors; give a file or a folder of weights")
    if odd := [name for name in tensors if not name.isprintable()]:
        raise InputError(f"{path} names a tensor {odd[0][:80]!r}, expected text; copy it again")
    return tensors


def _open_file(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"no weights: {path} is no file; give a file or a folder of tensors")
    with open(path, "rb") as file:
        start = file.read(512)
    if start[8:9] == b"{":  # before all others: a length may look like their first bytes
        return read_tensors(path)
    if start.startswith(b"PK"):
        return read_checkpoint(path)
    if start.startswith(PRE_ZIP) or start[257:262] == b"ustar":
        raise InputError(
            f"{path} is a checkpoint in torch's format before 1.6, expected the zip format; where "
            'the file is trusted, run torch.save(torch.load(path, map_location="cpu", '
            "weights_only=False), new_path)"
        )
    for first, what in FOREIGN.items():
        if start.lstrip().lower().startswith(first):
            raise InputError(f"{path} is {what}")
    raise InputError(
        f"{path} is neither a checkpoint of torch.save nor safetensors (it begins with "
        f"{start[:16]!r}); download or copy it again"
    )


def _open_folder(folder: Path) -> dict[str, np.ndarray]:
    indices, files = sorted(folder.glob(INDEX)), sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        return _open_shards(folder, indices[0].name)
    if not files:
        files = sorted(file for kind in CHECKPOINTS for file in folder.glob(f"*{kind}"))
    if indices or len(files) != 1:
        found = ", ".join(file.name for file in indices or files) or "none"
        raise InputError(
            f"{folder} holds several or no tensor files ({found}), expected one *.safetensors or "
            f"one {INDEX}; give the file itself"
        )
    return _open_file(_inside(folder, files[0].name))


def _open_shards(folder: Path, index: str) -> dict[str, np.ndarray]:
    """The tensors that the index names, each from the shard that it says."""
    file = _inside(folder, index)
    try:
        shard_of = json.loads(file.read_bytes())["weight_map"]
    except (ValueError, TypeError, LookupError, RecursionError):
        shard_of = None
    if not isinstance(shard_of, dict) or not all(isinstance(s, str) for s in shard_of.values()):
        raise InputError(f"{file} has no weight_map of tensor names to file names; copy it again")
    tensors = {shard: _open_file(_inside(folder, shard)) for shard in sorted({*shard_of.values()})}
    for name, shard in shard_of.items():
        if name not in tensors[shard]:
            raise InputError(
                f"{folder / shard} lacks the tensor {name[:80]!r} that {index} expects there; "
                "copy the folder again"
            )
    return {name: tensors[shard][name] for name, shard in shard_of.items()}


def _inside(folder: Path, name: str) -> Path:
    """The file of that name in the folder; InputError if it is missing or lies elsewhere."""
    plain = Path(name).name == name and name.isprintable() and 0 < len(name) < 256
    if not plain or name == "..":
        raise InputError(
            f"{folder} has an index that names {name[:80]!r}, expected the name of a file in that "
            "folder; copy the folder again"
        )
    file = folder / name
    try:
        target = file.resolve(strict=True)
    except (OSError, RuntimeError):  # a link to itself is the latter before Python 3.13
        raise InputError(
            f"{file} is missing, expected a file of tensors; copy the folder again"
        ) from None
    if not target.is_relative_to(folder.resolve()):
        raise InputError(
            f"{file} is a link that leads out of its folder; copy the folder with `cp -rL`"
        )
    return file
