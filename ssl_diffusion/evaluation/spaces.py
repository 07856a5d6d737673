"""Feature spaces: the networks whose vectors sets of images are compared in.

Distances compare only where everything that decides the vectors is the same: weights, layer, input
size, resize and colours. A space's `settings` say all of it, and its `digest` sums it up.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from ssl_diffusion import demo
from ssl_diffusion.encoders.encoder import SSLEncoder
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import sha256
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.features import load_features
from ssl_diffusion.weights.folder import WEIGHTS, kind_of

# The published ports of FID's network carry the first digits of their SHA-256 in their names:
# pt_inception-2015-12-05-6726825d.pth, weights-inception-2015-12-05-6726825d.pth.
FID_WEIGHTS = "6726825d"
FID_TITLES = {"tensorflow": "FID", "clean": "FID (clean resize)"}
OTHER_TITLES = {"tensorflow": "FD (Inception)", "clean": "FD (Inception, clean resize)"}
# pytorch_model.bin of openai/clip-vit-base-patch32. Others of the architecture (PLIP, LAION's) are
# other spaces.
CLIP_FID_WEIGHTS = "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f"
CLIP_PX = 224


@dataclass(frozen=True)
class Space:
    """A network as a place to measure in.

    Attributes:
      name: its key in reports and in names of files.
      title: what a Fréchet distance in it is called in print.
      digest: SHA-256 of the weights and of all else that decides a vector: where it is equal,
        vectors are, to the rounding of the device.
      settings: what a report says of it, as JSON.
      embed: uint8 [n, h, w, 3] -> float32 [n, d], on all devices of the process.
    """

    name: str
    title: str
    digest: str
    settings: Mapping[str, Any]
    embed: Callable[[UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n d"]]


def open_space(
    folder: str | Path, name: str, resize: str | None = None, kind: str | None = None
) -> Space:
    """Opens a model folder of kind "encoder" (its embedding) or "features" (Inception's 2048).

    `resize`, one of `encoders.features.RESIZES`, is for feature networks alone; without it theirs
    counts. With `kind`, the other is refused. Raises InputError for anything else, and for a
    damaged folder.
    """
    path = demo.resolve(folder)
    if path.is_file():
        raise InputError(
            f"{folder} is a file, expected a model folder; make one of it: python -m "
            f"ssl_diffusion.convert --input={folder} --output=DIR"
        )
    found, kinds = kind_of(folder), (kind,) if kind else ("encoder", "features")
    if found not in kinds:
        raise InputError(
            f"{folder} holds a model of kind {found!r}, expected {' or '.join(map(repr, kinds))}: "
            "images are compared by an encoder's embeddings ('encoder') or by those of FID's "
            "Inception ('features'); give the folder that convert made of its weights"
        )
    if found == "features":
        return _inception_space(folder, name, resize)
    if resize:
        raise InputError(
            f"resize {resize!r} given for {folder}, an encoder, which resizes as its model.json "
            "says; leave it out"
        )
    encoder = load_encoder(folder)
    return encoder_space(encoder, name, title_of(encoder.spec, name), sha256(path / WEIGHTS))


def encoder_space(encoder: SSLEncoder, name: str, title: str, digest: str) -> Space:
    """The embeddings of an encoder that is open, tokens end to end; `digest` is of its weights."""
    spec = encoder.spec
    settings = {
        "architecture": dict(spec["architecture"]),
        "layer": "embedding, {tokens} x {dim}".format(**spec["embedding"]),
        "input_px": spec["image_size"],
        "resize": spec.get("image_resize", "bicubic") + ", antialiased, 8 bits",
        "mean": list(spec["mean"]),
        "std": list(spec["std"]),
        "weights_sha256": digest,
    }

    def embed(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        # An accelerator's usual shortcut for float32 has 10 bits: distances would differ by device.
        with jax.default_matmul_precision("float32"):
            vectors = encoder.embed(images)
        return vectors.reshape(len(vectors), -1)

    return Space(name, title, _digest(settings), settings | _source(spec), embed)


def _inception_space(folder: str | Path, name: str, resize: str | None) -> Space:
    network = load_features(folder, resize)
    layer = max(network.network.widths)
    settings = {
        "architecture": dict(network.spec["architecture"]),
        "layer": f"{layer}, mean over positions",
        "input_px": network.network.size,
        "resize": {
            "tensorflow": "bilinear of TensorFlow 1, not antialiased, float",
            "clean": "Pillow's bicubic, antialiased, float, cut to 0..255",
        }[network.resize],
        "mean": [128 / 255] * 3,
        "std": [128 / 255] * 3,
        "weights_sha256": network.digest,
    }
    source = _source(network.spec)
    published = str(source.get("source_sha256", "")).startswith(FID_WEIGHTS)
    if not published:
        logging.warning(
            "%s was not converted from a published port of FID's network (SHA-256 %s...); its "
            "distances are not called FID",
            folder,
            FID_WEIGHTS,
        )

    def embed(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        return network.features(images)[layer]

    about = settings | source | {"published_weights": published}
    titles = FID_TITLES if published else OTHER_TITLES
    return Space(name, titles[network.resize], _digest(settings), about, embed)


def title_of(spec: Mapping[str, Any], name: str) -> str:
    """What a Fréchet distance in an encoder's space is called, by its model.json.

    CLIP-FID is published for OpenAI's ViT-B/32 (Kynkäänniemi et al. 2023, arXiv 2203.06026) alone.
    """
    architecture = spec["architecture"]
    clip = architecture.get("pre_norm") and architecture.get("projection")
    if not clip:
        return f"FD ({name})"
    converted = spec.get("source", {}).get("sha256", "")
    files = converted.values() if isinstance(converted, Mapping) else [converted]
    published = CLIP_FID_WEIGHTS in files and spec["image_size"] == CLIP_PX
    return "CLIP-FID" if published else "FD (CLIP)"


def _source(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The published file that a model was converted from, where it was."""
    source = spec.get("source", {})
    return {f"source_{key}": source[key] for key in ("file", "sha256") if key in source}


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
