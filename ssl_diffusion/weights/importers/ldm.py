"""LDM checkpoints: a U-Net with its first stage and conditioner, or a first stage by itself."""

import logging
import re
from pathlib import Path

import numpy as np

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.models.build import build
from ssl_diffusion.weights.importers.settings import (
    Settings,
    denoiser_spec,
    embedding_spec,
    latent_spec,
)
from ssl_diffusion.weights.layouts import ldm
from ssl_diffusion.weights.reader import (
    Imported,
    Reader,
    autoencoder_shapes,
    conditioner_shapes,
    network_shapes,
)
from ssl_diffusion.weights.tensor_files import open_tensors

PATCH_PX = 256  # of the released models; nothing in a checkpoint says it


def import_ldm(path: Path, settings: Settings) -> Imported:
    """Reads a checkpoint in the LDM layout; InputError naming every tensor that does not fit."""
    tensors = {re.sub(r"^(module\.)+", "", name): t for name, t in open_tensors(path).items()}
    if not any(name.startswith(("model.", "first_stage_model.")) for name in tensors):
        # A first stage by itself: the names that it has inside a whole model.
        tensors = {f"{ldm.FIRST_STAGE.prefix}{name}": tensor for name, tensor in tensors.items()}
    reader = Reader(path, tensors)
    reader.drop(r"model_ema\..*", "a copy of the weights for training; the weights are taken")
    reader.drop(r"(first_stage_model\.)?loss\..*", "only training the first stage needs them")
    reader.drop(r"scale_factor", "it is the scale of the latents in model.json")
    reader.drop(r"logvar|first_stage_model\.(ema|model_ema)\..*", "only training needs them")
    first_stage = _first_stage(reader)
    if any(name.startswith(ldm.UNET.prefix) for name in tensors):
        return _denoiser(reader, settings, first_stage)
    reader.finish()
    return first_stage


def _first_stage(reader: Reader) -> Imported:
    architecture = ldm.autoencoder_architecture(reader.tensors)
    scale = reader.tensors.get("scale_factor", np.float32(1.0))
    spec = {
        "kind": "autoencoder",
        "architecture": architecture,
        "latent": latent_spec(0.0, scale.item() if scale.size == 1 else scale),
    }
    return Imported(spec, reader.take(ldm.FIRST_STAGE, autoencoder_shapes(architecture)))


def _denoiser(reader: Reader, settings: Settings, first_stage: Imported) -> Imported:
    architecture = ldm.unet_architecture(reader.tensors)
    logging.info("tensors do not tell the attention heads of a U-Net: one, as the published have")
    autoencoder = build(Autoencoder, first_stage.spec["architecture"])
    width = ldm.context_width(reader.tensors)
    shapes = network_shapes(architecture, autoencoder.latent_channels, width)
    params = {"denoiser": reader.take(ldm.UNET, shapes)}
    reader.drop(
        r"cond_stage_model\.embedding\..*",
        "it embeds classes; the model is a start for training (config.init_from), which makes a "
        "conditioner of its own",
    )
    conditioner, dim = None, None
    if any(name.startswith(ldm.CONDITIONER.prefix) for name in reader.left):
        names = rf"{ldm.CONDITIONER.prefix}.*"
        conditioner, dim = reader.infer(ldm.conditioner_architecture, names) or (None, None)
    if conditioner:
        shapes = conditioner_shapes(conditioner, 1, sum(conditioner.get("parts", [dim])))
        params["conditioner"] = reader.take(ldm.CONDITIONER, shapes)
    tables = reader.drop(ldm.SCHEDULE_TABLES, "tables of the schedule, which are computed")
    schedule = reader.infer(ldm.schedule, ldm.SCHEDULE_TABLES)
    reader.finish()
    patch_px = settings.image_size or PATCH_PX
    if patch_px % autoencoder.factor:
        raise InputError(f"--image_size={patch_px}; expected a multiple of {autoencoder.factor} px")
    spec = denoiser_spec(architecture, conditioner, settings) | {
        "patch_px": patch_px,
        "embedding": embedding_spec(settings, 1, dim, patch_px),
        "diffusion": {"schedule": schedule, "prediction": "eps"},
        "source": {"tables": tables, "context_width": width},
    }
    return Imported(spec, params, {"autoencoder": first_stage})
