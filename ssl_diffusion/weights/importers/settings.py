"""What a user says of a model beside its file, and the parts of model.json that follow from it."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssl_diffusion.encoders.build import build_encoder
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json
from ssl_diffusion.weights.folder import read_spec

# Sampling of the published large-image models: latent pixels between windows, guidance of patches.
SAMPLING = {"steps": 50, "guidance": 2.0, "stride": 16}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP_COLOURS = {  # of the images that CLIP was trained on
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
LITE_COLOURS = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}  # (x - 127) / 128, x in 0..255
WHOSE = ((IMAGENET, "ImageNet"), (CLIP_COLOURS, "CLIP"), (LITE_COLOURS, "EfficientNet-Lite"))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a user says of a model that its file does not: see the flags of `convert`."""

    encoder: str = ""
    mpp: float | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def check_settings(settings: Settings, kind: str) -> None:
    """Raises InputError for a setting that a model of this kind has no use for."""
    used = {"denoiser": ("encoder", "mpp", "image_size"), "encoder": ("image_size", "mean", "std")}
    given = {name for name, value in vars(settings).items() if value not in (None, "")}
    if idle := sorted(given - set(used.get(kind, ()))):
        raise InputError(
            f"--{', --'.join(idle)} given, but the file holds a model of kind {kind!r}, which has "
            "no use for it; leave it out"
        )


def denoiser_spec(
    architecture: dict[str, Any], conditioner: dict[str, Any] | None, settings: Settings
) -> dict[str, Any]:
    """What every denoiser's model.json begins with."""
    return {
        "kind": "denoiser",
        "architecture": architecture,
        "conditioner": conditioner,
        "mpp": settings.mpp,
        "sampling": SAMPLING,
    }


def embedding_spec(
    settings: Settings, tokens: int, dim: int | None, patch_px: int
) -> dict[str, Any]:
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
        fits = patch_px % build_encoder(spec["architecture"]).size_step == 0
        logging.warning(
            "--encoder=%s is run at %d px: the denoiser's patches of %d px are resized to that%s",
            settings.encoder,
            spec["image_size"],
            patch_px,
            f"; if it is to see them as they are, convert it with --image_size={patch_px}" * fits,
        )
    source = spec.get("source", {})
    known = {name: source[name] for name in ("file", "sha256") if name in source}
    return wanted | {"encoder": known or spec.get("trained", {}).get("command")}


def latent_spec(shift: Any, scale: Any) -> dict[str, float]:
    """scaled = (raw - shift) * scale; InputError unless these are numbers and scale is positive."""
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (shift, scale)):
        raise InputError(f"latents of shift {shift!r} and scale {scale!r}; expected numbers")
    if scale <= 0:
        raise InputError(f"latents of scale {scale!r}; expected more than 0")
    return {"shift": float(shift), "scale": float(scale)}


def read_config(path: Path, name: str = "config.json") -> dict[str, Any]:
    """The settings in, or beside, what is read; {} without any. The log says where from."""
    file = (path if path.is_dir() else path.parent) / name
    if not file.is_file():
        return {}
    config = read_json(file, "settings")
    if not isinstance(config, dict) or not isinstance(config.get("pretrained_cfg") or {}, dict):
        raise InputError(f"{file} holds no settings; copy it again")
    logging.info("settings from %s", file)
    return config


def input_colour(
    name: str,
    path: Path,
    config: Mapping[str, Any],
    settings: Settings,
    usual: Mapping[str, tuple[float, ...]] = IMAGENET,
) -> list[float]:
    """Mean or std of the encoder's input: the flag's, the config's, the processor's, the `usual`.

    Raises InputError for what is no such.
    """
    found, where = getattr(settings, name), f"--{name}"
    if found is None:
        found, where = (config.get("pretrained_cfg") or {}).get(name), "config.json"
    if found is None:
        processor = read_config(path, "preprocessor_config.json")
        found, where = processor.get(f"image_{name}"), "preprocessor_config.json"
    if found is None:
        found = usual[name]
        whose = next(name for colours, name in WHOSE if colours is usual)
        logging.info("nothing says the %s of the encoder's input: %s's, %s", name, whose, found)
    numbers = isinstance(found, list | tuple) and all(isinstance(v, int | float) for v in found)
    if not numbers or len(found) != 3 or not np.isfinite(found).all():
        raise InputError(f"{where} says {name} {found!r}; expected three numbers")
    if name == "std" and min(found) <= 0:
        raise InputError(f"{where} says {name} {found!r}; expected more than 0")
    return [float(value) for value in found]
