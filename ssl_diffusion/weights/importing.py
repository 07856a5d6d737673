"""Published models -> model folders: which layout a file is in, and what of it goes where."""

import dataclasses
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from ssl_diffusion.diffusion.schedule import find_schedule, make_betas
from ssl_diffusion.encoders.augment import STRONG
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, replacing, sha256
from ssl_diffusion.weights.folder import copy_model, read_spec, write_model
from ssl_diffusion.weights.layouts import diffusers, ldm, vit
from ssl_diffusion.weights.reader import (
    Imported,
    Reader,
    autoencoder_shapes,
    conditioner_shapes,
    network_shapes,
)
from ssl_diffusion.weights.tensor_files import open_tensors

LAYOUTS = ("ldm", "diffusers", "vit")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# Sampling of the published large-image models: latent pixels between windows, guidance of patches.
SAMPLING = {"steps": 50, "guidance": 2.0, "stride": 16}
KL_SCALE = 0.18215  # what diffusers takes where a vae's config says nothing
PATCH_PX = 256  # of the released models; nothing in a checkpoint says it


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a user says of a model that its file does not: see the flags of `convert`."""

    encoder: str = ""
    mpp: float | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def import_model(path: Path, layout: str, settings: Settings) -> Imported:
    """Reads a published model. `layout` is one of LAYOUTS, or "auto".

    Raises InputError, before anything is written, for a file that cannot be read or does not fit.
    """
    if layout == "auto":
        layout = _recognise(path)
    importer = {"ldm": _import_ldm, "diffusers": _import_diffusers, "vit": _import_vit}[layout]
    try:
        model = importer(path, settings)
        _check_settings(settings, model.spec["kind"])
    except InputError as error:  # the user wants to know of which file
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from None
    source = {"layout": layout} | model.spec.get("source", {}) | _digest(path)
    return dataclasses.replace(model, spec=model.spec | {"source": source})


def _check_settings(settings: Settings, kind: str) -> None:
    """Raises InputError for a setting that a model of this kind has no use for."""
    used = {"denoiser": ("encoder", "mpp", "image_size"), "encoder": ("image_size", "mean", "std")}
    given = {name for name, value in vars(settings).items() if value not in (None, "")}
    if idle := sorted(given - set(used.get(kind, ()))):
        raise InputError(
            f"--{', --'.join(idle)} given, but the file holds a model of kind {kind!r}, which has "
            "no use for it; leave it out"
        )


def write_imported(model: Imported, folder: Path, settings: Settings, dtype: str) -> None:
    """Writes a model folder, its parts in subfolders: whole or not at all."""
    with replacing(folder) as temporary:
        write_model(temporary, model.spec, model.params, dtype=dtype)
        for name, part in model.parts.items():
            write_model(temporary / name, part.spec, part.params, dtype=dtype)
        if settings.encoder:
            copy_model(settings.encoder, temporary / "encoder")


def _recognise(path: Path) -> str:
    if any((path / part / "config.json").is_file() for part in ("transformer", "vae")):
        return "diffusers"
    if path.is_dir() and "block_out_channels" in _config(path):
        return "diffusers"
    names = open_tensors(path).keys()
    bare = {re.sub(r"^(module\.)+", "", name) for name in names}
    for layout, pattern in {
        "ldm": r"model\.diffusion_model\..*|(first_stage_model\.)?encoder\.down\.\d+\.block\..*",
    }.items():
        if any(re.match(pattern, name) for name in bare):
            return layout
    if vit.recognise(names):
        return "vit"
    some = ", ".join(sorted(names)[:3])
    raise InputError(
        f"{path} holds {len(names)} tensors ({some}, ...) in no known layout "
        f"({', '.join(LAYOUTS)}); of a diffusers model give the folder of transformer/ and vae/"
    )


def _import_ldm(path: Path, settings: Settings) -> Imported:
    tensors = {re.sub(r"^(module\.)+", "", name): t for name, t in open_tensors(path).items()}
    if not any(name.startswith(("model.", "first_stage_model.")) for name in tensors):
        # A first stage by itself: the names that it has inside a whole model.
        tensors = {f"{ldm.FIRST_STAGE.prefix}{name}": tensor for name, tensor in tensors.items()}
    reader = Reader(path, tensors)
    first_stage = _ldm_first_stage(reader)
    whole = any(name.startswith(ldm.UNET.prefix) for name in tensors)
    model = _ldm_denoiser(reader, settings, first_stage) if whole else first_stage
    reader.drop(r"model_ema\..*", "a copy of the weights for training; the weights are taken")
    reader.drop(r"(first_stage_model\.)?loss\..*", "only training the first stage needs them")
    reader.drop(r"scale_factor", "it is the scale of the latents in model.json")
    reader.drop(r"logvar|first_stage_model\.(ema|model_ema)\..*", "only training needs them")
    reader.finish()
    return model


def _ldm_first_stage(reader: Reader) -> Imported:
    architecture = ldm.autoencoder_architecture(reader.tensors)
    scale = reader.tensors.get("scale_factor", np.float32(1.0))
    spec = {
        "kind": "autoencoder",
        "architecture": architecture,
        "latent": _latent(0.0, scale.item() if scale.size == 1 else scale),
    }
    return Imported(spec, reader.take(ldm.FIRST_STAGE, autoencoder_shapes(architecture)))


def _latent(shift: Any, scale: Any) -> dict[str, float]:
    """scaled = (raw - shift) * scale; InputError unless these are numbers and scale is positive."""
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (shift, scale)):
        raise InputError(f"latents of shift {shift!r} and scale {scale!r}; expected numbers")
    if scale <= 0:
        raise InputError(f"latents of scale {scale!r}; expected more than 0")
    return {"shift": float(shift), "scale": float(scale)}


def _ldm_denoiser(reader: Reader, settings: Settings, first_stage: Imported) -> Imported:
    tensors = reader.tensors
    architecture = ldm.unet_architecture(tensors)
    logging.info("tensors do not tell the attention heads of a U-Net: one, as the published have")
    channels = first_stage.spec["architecture"]["latent_channels"]
    width = ldm.context_width(tensors)
    params = {
        "denoiser": reader.take(ldm.UNET, network_shapes(architecture, channels, width)),
    }
    if f"{ldm.CONDITIONER.prefix}patch_fc.weight" in tensors:
        conditioner = ldm.conditioner_architecture(tensors)
        dim = tensors[f"{ldm.CONDITIONER.prefix}patch_fc.weight"].shape[1]
        all_dims = sum(conditioner.get("parts", [dim]))
        shapes = conditioner_shapes(conditioner, 1, all_dims)
        params["conditioner"] = reader.take(ldm.CONDITIONER, shapes)
    else:
        conditioner, dim = None, None
        reader.drop(
            r"cond_stage_model\.embedding\..*",
            "it embeds classes; the model is a start for training (config.init_from), which makes "
            "a conditioner of its own",
        )
    tables = reader.drop(ldm.SCHEDULE_TABLES, "tables of the schedule, which are computed")
    if "betas" not in tables:
        raise InputError(f"{reader.path} has no betas: its noise schedule is unknown")
    schedule = find_schedule(tensors["betas"])
    for name, computed in ldm.schedule_tables(make_betas(**schedule)).items():
        table = tensors.get(name, computed)
        if table.shape != computed.shape or not np.allclose(table, computed, 1e-3, 1e-6):
            raise InputError(f"{name} is not the table that follows from betas; copy it again")
    factor = 2 ** (len(first_stage.spec["architecture"]["channel_multipliers"]) - 1)
    spec = _denoiser_spec(architecture, conditioner, settings)
    spec |= {
        "patch_px": settings.image_size or PATCH_PX,
        "embedding": _embedding(settings, 1, dim, settings.image_size or PATCH_PX),
        "diffusion": {"schedule": schedule, "prediction": "eps"},
        "source": {"tables": tables, "context_width": width},
    }
    if spec["patch_px"] % factor:
        raise InputError(f"--image_size={spec['patch_px']}; expected a multiple of {factor} px")
    return Imported(spec, params, {"autoencoder": first_stage})


def _import_diffusers(path: Path, settings: Settings) -> Imported:
    """A pipeline's folder, or a vae's alone."""
    if (path / "unet").is_dir():
        raise InputError(f"{path} holds a diffusers U-Net, which is not read; give its vae/")
    if not (path / "transformer").is_dir():
        return _diffusers_vae(path / "vae" if (path / "vae").is_dir() else path)
    vae = _diffusers_vae(path / "vae")
    folder = path / "transformer"
    config, reader = _config(folder), Reader(folder, open_tensors(folder))
    architecture = diffusers.dit_architecture(config)
    conditioner = diffusers.conditioner_architecture(config)
    null = reader.tensors.get("caption_projection.uncond_embedding", np.zeros((1, 1)))
    tokens, dim = null.shape if null.ndim == 2 else (1, 1)
    channels = vae.spec["architecture"]["latent_channels"]
    shapes = network_shapes(architecture, channels, conditioner["width"])
    params = {
        "denoiser": reader.take(diffusers.transformer(architecture["patch_size"]), shapes),
        "conditioner": reader.take(
            diffusers.TOKEN_PROJECTION, conditioner_shapes(conditioner, tokens, dim)
        ),
    }
    reader.drop("|".join(map(re.escape, diffusers.COMPUTED)), "position tables, which are computed")
    reader.finish()
    scheduler = read_json(path / "scheduler" / "scheduler_config.json", "scheduler config")
    factor = 2 ** (len(vae.spec["architecture"]["channel_multipliers"]) - 1)
    patch_px = settings.image_size or config["sample_size"] * factor
    spec = _denoiser_spec(architecture, conditioner, settings) | {
        "patch_px": patch_px,
        "embedding": _embedding(settings, tokens, dim, patch_px),
        "diffusion": diffusers.diffusion(scheduler),
        "source": {"config": config, "scheduler": scheduler},
    }
    return Imported(spec, params, {"autoencoder": vae})


def _diffusers_vae(folder: Path) -> Imported:
    config, tensors = _config(folder), open_tensors(folder)
    reader = Reader(folder, {diffusers.newer_name(name): t for name, t in tensors.items()})
    architecture = diffusers.autoencoder_architecture(config)
    naming = diffusers.first_stage(len(architecture["channel_multipliers"]))
    params = reader.take(naming, autoencoder_shapes(architecture))
    reader.finish()
    scale = config.get("scaling_factor")
    if scale is None:
        scale = KL_SCALE
        logging.info("%s says no scaling_factor: diffusers' own, %g", folder, KL_SCALE)
    spec = {
        "kind": "autoencoder",
        "architecture": architecture,
        "latent": _latent(config.get("shift_factor") or 0.0, scale),
        "source": {"layout": "diffusers", "config": config},
    }
    return Imported(spec, params)


def _import_vit(path: Path, settings: Settings) -> Imported:
    tensors = open_tensors(path)
    config = _config(path)
    architecture, params, _ = vit.read(tensors, config)
    size = settings.image_size or architecture["image_size"]
    if size % architecture["patch_size"]:
        raise InputError(
            f"--image_size={size}; expected a multiple of {architecture['patch_size']}"
        )
    spec = {
        "kind": "encoder",
        "architecture": architecture,
        "image_size": size,
        **{name: _input_colour(name, path, config, settings) for name in ("mean", "std")},
        "embedding": {"tokens": 1, "dim": architecture["width"]},
        "augmentation": STRONG,
        "source": {"names": vit.recognise(tensors), "config": config},
    }
    return Imported(spec, traverse_util.unflatten_dict(params, sep="/"))


def _input_colour(
    name: str, path: Path, config: Mapping[str, Any], settings: Settings
) -> list[float]:
    """Mean or std of the encoder's input: the flag's, the config's, the processor's, ImageNet's."""
    found, where = getattr(settings, name), f"--{name}"
    if found is None:
        found, where = (config.get("pretrained_cfg") or {}).get(name), "config.json"
    if found is None:
        processor = _config(path, "preprocessor_config.json")
        found, where = processor.get(f"image_{name}"), "preprocessor_config.json"
    if found is None:
        found = IMAGENET[name]
        logging.info("nothing says the %s of the encoder's input: ImageNet's, %s", name, found)
    numbers = isinstance(found, list | tuple) and all(isinstance(v, int | float) for v in found)
    if not numbers or len(found) != 3 or not np.isfinite(found).all():
        raise InputError(f"{where} says {name} {found!r}; expected three numbers")
    if name == "std" and min(found) <= 0:
        raise InputError(f"{where} says {name} {found!r}; expected more than 0")
    return [float(value) for value in found]


def _denoiser_spec(
    architecture: dict[str, Any], conditioner: dict[str, Any] | None, settings: Settings
) -> dict[str, Any]:
    return {
        "kind": "denoiser",
        "architecture": architecture,
        "conditioner": conditioner,
        "mpp": settings.mpp,
        "sampling": SAMPLING,
    }


def _embedding(settings: Settings, tokens: int, dim: int | None, patch_px: int) -> dict[str, Any]:
    """The embedding that the denoiser wants; InputError if the encoder given makes another."""
    wanted = {"tokens": tokens, "dim": dim, "encoder": None}
    if not settings.encoder:
        return wanted
    if dim is None:
        raise InputError("--encoder given, but this model has no conditioner; leave it out")
    spec = read_spec(settings.encoder, "encoder")
    made = {name: spec["embedding"][name] for name in ("tokens", "dim")}
    if made != {"tokens": tokens, "dim": dim}:
        raise InputError(
            f"--encoder={settings.encoder} makes {made['tokens']} tokens of {made['dim']}, the "
            f"denoiser wants {tokens} of {dim}; give the encoder that it was trained with"
        )
    if spec["image_size"] != patch_px:
        raise InputError(
            f"--encoder={settings.encoder} is run at {spec['image_size']} px, the denoiser's "
            f"patches have {patch_px} px; convert the encoder with --image_size={patch_px}"
        )
    source = spec.get("source", {})
    known = {name: source[name] for name in ("file", "sha256") if name in source}
    return wanted | {"encoder": known or spec.get("trained", {}).get("command")}


def _config(path: Path, name: str = "config.json") -> dict[str, Any]:
    """The settings in, or beside, what is read; {} without any. The log says where from."""
    file = (path if path.is_dir() else path.parent) / name
    if not file.is_file():
        return {}
    config = read_json(file, "settings")
    if not isinstance(config, dict) or not isinstance(config.get("pretrained_cfg") or {}, dict):
        raise InputError(f"{file} holds no settings; copy it again")
    logging.info("settings from %s", file)
    return config


def _digest(path: Path) -> dict[str, Any]:
    """File name and SHA-256 of what was read, of every file of a folder."""
    if path.is_file():
        return {"file": path.name, "sha256": sha256(path)}
    files: Iterable[Path] = sorted(path.rglob("*"))
    return {
        "file": path.name,
        "sha256": {str(f.relative_to(path)): sha256(f) for f in files if f.is_file()},
    }
