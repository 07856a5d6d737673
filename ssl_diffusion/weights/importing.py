"""Published models -> model folders: which layout a file is in, and the folder written whole."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing, sha256
from ssl_diffusion.weights.folder import copy_model, write_model
from ssl_diffusion.weights.importers.diffusers import import_diffusers
from ssl_diffusion.weights.importers.efficientnet import import_efficientnet
from ssl_diffusion.weights.importers.inception import import_inception
from ssl_diffusion.weights.importers.ldm import import_ldm
from ssl_diffusion.weights.importers.settings import Settings, check_settings, read_config
from ssl_diffusion.weights.importers.swin import import_swin
from ssl_diffusion.weights.importers.text import import_text
from ssl_diffusion.weights.importers.vit import import_vit
from ssl_diffusion.weights.layouts import efficientnet, inception, swin, text
from ssl_diffusion.weights.layouts.vit_names import recognise
from ssl_diffusion.weights.reader import Imported
from ssl_diffusion.weights.tensor_files import open_tensors

IMPORTERS = {
    "ldm": import_ldm,
    "diffusers": import_diffusers,
    "vit": import_vit,
    "swin": import_swin,
    "text": import_text,
    "inception": import_inception,
    "efficientnet": import_efficientnet,
}


def import_model(path: Path, layout: str, settings: Settings) -> Imported:
    """Reads a published model. `layout` is one of IMPORTERS, or "auto".

    Raises InputError, before anything is written, for a file that cannot be read or does not fit.
    """
    if layout == "auto":
        layout = _recognise(path)
    try:
        model = IMPORTERS[layout](path, settings)
        check_settings(settings, model.spec["kind"])
    except InputError as error:  # the user wants to know of which file
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from None
    source = {"layout": layout} | model.spec.get("source", {}) | _digest(path)
    return dataclasses.replace(model, spec=model.spec | {"source": source})


def write_imported(model: Imported, folder: Path, settings: Settings, dtype: str) -> None:
    """Writes a model folder, its parts in subfolders: whole or not at all."""
    with replacing(folder) as temporary:
        write_model(temporary, model.spec, model.params, dtype=dtype)
        for name, part in model.parts.items():
            write_model(temporary / name, part.spec, part.params, dtype=dtype)
        for name, content in model.files.items():
            (temporary / name).write_text(content, encoding="utf-8")
        if settings.encoder:
            copy_model(settings.encoder, temporary / "encoder")


def _recognise(path: Path) -> str:
    if any((path / part / "config.json").is_file() for part in ("transformer", "vae")):
        return "diffusers"
    if path.is_dir() and "block_out_channels" in read_config(path):
        return "diffusers"
    names = open_tensors(path).keys()
    bare = {re.sub(r"^(module\.)+", "", name) for name in names}
    ldm = r"model\.diffusion_model\.|(first_stage_model\.)?encoder\.down\.\d+\.block\."
    if any(re.match(ldm, name) for name in bare):
        return "ldm"
    if inception.recognise(names):
        return "inception"
    if efficientnet.recognise(names):
        return "efficientnet"
    if swin.recognise(names):
        return "swin"
    if text.recognise(names) and recognise(names):
        raise InputError(
            f"{path} holds a text encoder and an image encoder, the two towers of a CLIP; say "
            "which to take: --layout=vit that of images, --layout=text that of texts"
        )
    if text.recognise(names):
        return "text"
    if recognise(names):
        return "vit"
    some = ", ".join(sorted(names)[:3])
    raise InputError(
        f"{path} holds {len(names)} tensors ({some}, ...) in no known layout "
        f"({', '.join(IMPORTERS)}); of a diffusers model give the folder of transformer/ and vae/"
    )


def _digest(path: Path) -> dict[str, Any]:
    """File name and SHA-256 of what was read, of every file of a folder."""
    if path.is_file():
        return {"file": path.name, "sha256": sha256(path)}
    files = sorted(path.rglob("*"))
    return {
        "file": path.name,
        "sha256": {str(f.relative_to(path)): sha256(f) for f in files if f.is_file()},
    }
