"""Model folders -> published layouts, so that a model trained here opens in other programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from ssl_diffusion.diffusion.schedule import make_betas
from ssl_diffusion.encoders.tokenizer import TOKENIZER
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json, replacing
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.models.build import build
from ssl_diffusion.weights.folder import SPEC, kind_of, read_params, read_spec
from ssl_diffusion.weights.layouts import diffusers, efficientnet, ldm, swin, text, vit
from ssl_diffusion.weights.layouts.vit_config import vit_config
from ssl_diffusion.weights.naming import Naming, to_published
from ssl_diffusion.weights.reader import (
    autoencoder_shapes,
    conditioner_shapes,
    encoder_shapes,
    network_shapes,
    text_encoder_shapes,
)
from ssl_diffusion.weights.safetensors_file import write_tensors

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
Files = dict[str, Mapping[str, Any]]
"""File name in the output -> tensors of a .safetensors, or content of a .json."""


def export(folder: Path, output: Path) -> None:
    """Writes a model folder in the layout it came from, or that suits its network.

    A U-Net with its first stage is one .safetensors with the names of an LDM checkpoint; a DiT is a
    diffusers folder; an SSL encoder a folder of model.safetensors and config.json, a text encoder
    one with a tokenizer.json besides. Raises InputError for a model that the layout cannot hold.
    """
    if output.exists():
        raise InputError(f"--output={output} is there already; give a new name")
    kind = kind_of(folder)
    exporters = {
        "denoiser": _denoiser,
        "autoencoder": _autoencoder,
        "encoder": _encoder,
        "text_encoder": _text_encoder,
    }
    if kind not in exporters:
        raise InputError(
            f"{folder / SPEC} has kind {kind!r}, which no published layout holds; expected "
            f"one of {', '.join(exporters)}"
        )
    spec = read_spec(folder, kind)
    files = exporters[kind](folder, spec)
    one = len(files) == 1
    if one != (output.suffix == ".safetensors"):
        raise InputError(
            f"--output={output}; this model becomes "
            + ("one file: end its name in .safetensors" if one else "a folder: name one")
        )
    with replacing(output) as temporary:
        for name, content in files.items():
            file = temporary if one else temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".json"):
                file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            else:
                write_tensors(file, content)


def _denoiser(folder: Path, spec: Mapping[str, Any]) -> Files:
    first_stage = read_spec(folder / "autoencoder", "autoencoder")
    embedding, conditioner = spec["embedding"], spec["conditioner"]
    channels = first_stage["architecture"]["latent_channels"]
    width = conditioner["width"] if conditioner else spec["source"]["context_width"]
    shapes = {"denoiser": network_shapes(spec["architecture"], channels, width)}
    if conditioner:
        dim = sum(conditioner.get("parts") or [embedding["dim"]])
        shapes["conditioner"] = conditioner_shapes(conditioner, embedding["tokens"], dim)
    params = read_params(folder, shapes)
    if spec["architecture"]["name"] == "unet":
        return _ldm(folder, spec, params, first_stage)
    return _diffusers(folder, spec, params, first_stage)


def _ldm(
    folder: Path, spec: Mapping[str, Any], params: PyTree, first_stage: Mapping[str, Any]
) -> Files:
    architecture, conditioner = spec["architecture"], spec["conditioner"] or {"name": "linear"}
    latent, tokens = first_stage["latent"], spec["embedding"]["tokens"]
    prediction = spec["diffusion"]["prediction"]
    _refuse(
        "the LDM layout",
        {
            "pooled_context": architecture.get("pooled_context", False),
            f"{architecture['heads']} attention heads (it has one)": architecture["heads"] != 1,
            f"conditioner {conditioner['name']!r}": conditioner["name"] != "linear",
            "a shift of the latents": latent["shift"] != 0,
            f"prediction {prediction!r}": prediction != "eps",
            "zero_terminal_snr": spec["diffusion"]["schedule"].get("zero_terminal_snr", False),
            f"{tokens} tokens of embedding": tokens != 1,
        },
    )
    tensors = to_published(ldm.UNET, params["denoiser"])
    if "conditioner" in params:
        tensors |= to_published(ldm.CONDITIONER, params["conditioner"])
    tensors |= _autoencoder_tensors(folder / "autoencoder", first_stage, ldm.FIRST_STAGE)
    tables = ldm.schedule_tables(make_betas(**spec["diffusion"]["schedule"]))
    names = spec.get("source", {}).get("tables") or sorted(tables)
    if latent["scale"] != 1:
        tensors["scale_factor"] = np.array(latent["scale"], np.float32)
    return {"model.safetensors": tensors | {name: tables[name] for name in names}}


def _diffusers(
    folder: Path, spec: Mapping[str, Any], params: PyTree, first_stage: Mapping[str, Any]
) -> Files:
    architecture, conditioner = spec["architecture"], spec["conditioner"]
    _refuse(
        "the diffusers layout",
        {
            f"adaln {architecture.get('adaln')!r}": architecture.get("adaln", "single") != "single",
            "pooled_context": architecture.get("pooled_context", False),
            f"conditioner {conditioner['name']!r}": conditioner["name"] != "tokens",
        },
    )
    source, autoencoder = spec.get("source", {}), build(Autoencoder, first_stage["architecture"])
    naming = diffusers.transformer(architecture["patch_size"])
    tensors = to_published(naming, params["denoiser"])
    tensors |= to_published(diffusers.TOKEN_PROJECTION, params["conditioner"])
    vae = _autoencoder(folder / "autoencoder", first_stage)
    return {
        "transformer/config.json": source.get("config")
        or diffusers.transformer_config(spec, autoencoder),
        f"transformer/{DIFFUSERS_WEIGHTS}": tensors,
        **{f"vae/{name}": content for name, content in vae.items()},
        "scheduler/scheduler_config.json": source.get("scheduler")
        or diffusers.scheduler_config(spec["diffusion"]),
    }


def _autoencoder(folder: Path, spec: Mapping[str, Any]) -> Files:
    """As LDM has it by itself where it has codes or came so, else as diffusers has it."""
    architecture, source = spec["architecture"], spec.get("source", {})
    if architecture.get("codebook") or source.get("layout") == "ldm":
        naming = Naming(ldm.FIRST_STAGE.rules, ldm.FIRST_STAGE.transforms)
        return {"model.safetensors": _autoencoder_tensors(folder, spec, naming)}
    naming = diffusers.first_stage(len(architecture["channel_multipliers"]))
    return {
        "config.json": source.get("config") or diffusers.autoencoder_config(spec),
        DIFFUSERS_WEIGHTS: _autoencoder_tensors(folder, spec, naming),
    }


def _autoencoder_tensors(
    folder: Path, spec: Mapping[str, Any], naming: Naming
) -> dict[str, np.ndarray]:
    return to_published(naming, read_params(folder, autoencoder_shapes(spec["architecture"])))


def _encoder(folder: Path, spec: Mapping[str, Any]) -> Files:
    source = spec.get("source", {})
    params = read_params(folder, encoder_shapes(spec["architecture"]))
    layouts = {
        "swin": (swin.swin_config, swin.write),
        "efficientnet_lite": (efficientnet.efficientnet_config, efficientnet.write),
    }
    if layout := layouts.get(spec["architecture"].get("name", "vit")):
        config_of, write = layout
        return {
            "config.json": source.get("config") or config_of(spec),
            "model.safetensors": write(params),
        }
    names = source.get("names", "timm")
    tensors = vit.write(names, spec["architecture"], params)
    files = {
        "config.json": source.get("config") or vit_config(names, spec),
        "model.safetensors": tensors,
    }
    if names != "timm":
        files["preprocessor_config.json"] = {
            "image_mean": spec["mean"],
            "image_std": spec["std"],
            "size": {"height": spec["image_size"], "width": spec["image_size"]},
        }
    return files


def _text_encoder(folder: Path, spec: Mapping[str, Any]) -> Files:
    """As transformers has it; BERT with the files by which sentence-transformers pools it."""
    architecture = spec["architecture"]
    params = read_params(folder, text_encoder_shapes(architecture))
    files = {
        "config.json": spec["source"]["config"],
        "model.safetensors": text.write(architecture, params),
        TOKENIZER: read_json(folder / TOKENIZER, "tokenizer"),
    }
    if architecture["name"] == "bert":
        files |= text.sentence_transformers(spec)
    return files


def _refuse(layout: str, what: Mapping[str, bool]) -> None:
    if cannot := [name for name, found in what.items() if found]:
        raise InputError(f"{layout} cannot hold {', '.join(cannot)}; train a model without")
