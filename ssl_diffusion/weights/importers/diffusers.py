"""diffusers folders: a transformer with its vae and scheduler, or a vae by itself."""

import logging
import re
from pathlib import Path

from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.models.build import build
from ssl_diffusion.weights.importers.settings import (
    Settings,
    denoiser_spec,
    embedding_spec,
    latent_spec,
    read_config,
)
from ssl_diffusion.weights.layouts import diffusers
from ssl_diffusion.weights.reader import (
    Imported,
    Reader,
    autoencoder_shapes,
    conditioner_shapes,
    network_shapes,
)
from ssl_diffusion.weights.tensor_files import open_tensors

KL_SCALE = 0.18215  # what diffusers takes where a vae's config says nothing


def import_diffusers(path: Path, settings: Settings) -> Imported:
    """Reads a pipeline's folder, or a vae's alone; InputError for what does not fit."""
    if (path / "unet").is_dir():
        raise InputError(f"{path} holds a diffusers U-Net, which is not read; give its vae/")
    if not (path / "transformer").is_dir():
        return _vae(path / "vae" if (path / "vae").is_dir() else path)
    vae = _vae(path / "vae")
    folder = path / "transformer"
    config, reader = read_config(folder), Reader(folder, open_tensors(folder))
    architecture = diffusers.dit_architecture(config)
    conditioner = diffusers.conditioner_architecture(config)
    tokens, dim = diffusers.embedding_shape(config, reader.tensors)
    autoencoder = build(Autoencoder, vae.spec["architecture"])
    shapes = network_shapes(architecture, autoencoder.latent_channels, conditioner["width"])
    params = {
        "denoiser": reader.take(diffusers.transformer(architecture["patch_size"]), shapes),
        "conditioner": reader.take(
            diffusers.TOKEN_PROJECTION, conditioner_shapes(conditioner, tokens, dim)
        ),
    }
    reader.drop("|".join(map(re.escape, diffusers.COMPUTED)), "position tables, which are computed")
    reader.finish()
    scheduler = read_json(path / "scheduler" / "scheduler_config.json", "scheduler config")
    patch_px = settings.image_size or config["sample_size"] * autoencoder.factor
    spec = denoiser_spec(architecture, conditioner, settings) | {
        "patch_px": patch_px,
        "embedding": embedding_spec(settings, tokens, dim, patch_px),
        "diffusion": diffusers.diffusion(scheduler),
        "source": {"config": config, "scheduler": scheduler},
    }
    return Imported(spec, params, {"autoencoder": vae})


def _vae(folder: Path) -> Imported:
    config, tensors = read_config(folder), open_tensors(folder)
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
        "latent": latent_spec(config.get("shift_factor") or 0.0, scale),
        "source": {"layout": "diffusers", "config": config},
    }
    return Imported(spec, params)
