"""The encoder of the classifiers, as a space whose embeddings can be kept."""

import hashlib

import numpy as np
from jaxtyping import Float, UInt8

from ssl_diffusion import demo
from ssl_diffusion.data.records import Records
from ssl_diffusion.encoders.encoder import SSLEncoder
from ssl_diffusion.encoders.function import FunctionEncoder
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.spaces import Space, encoder_space
from ssl_diffusion.files import sha256
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.folder import WEIGHTS

NAME = "classifiers"


def open_encoder(source: str | None, real: Records) -> tuple[SSLEncoder | FunctionEncoder, Space]:
    """The encoder at `source`, or of the records; InputError if there is none."""
    folder = demo.resolve(source or real.folder / "encoder")
    if not source and not folder.is_dir():
        raise InputError(f"records in {real.folder} came without an encoder; give --encoder=DIR")
    encoder = load_encoder(source or folder, real.metadata["patch_px"])
    if isinstance(encoder, FunctionEncoder):
        return encoder, _function_space(encoder, real.metadata["patch_px"])
    return encoder, encoder_space(encoder, NAME, NAME, sha256(folder / WEIGHTS))


def conditioned(space: Space, real: Records) -> bool:
    """Whether it is the records' own encoder, by its weights, wherever it lies."""
    own = real.metadata["recipe"].get("encoder_sha256") or ()
    return space.settings["weights_sha256"] in own


def _function_space(encoder: FunctionEncoder, patch_px: int) -> Space:
    """Weights behind a function are not known: what it makes of noise tells two of them apart."""

    def embed(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        return encoder.embed(images).reshape(len(images), -1)

    noise = np.random.default_rng(0).integers(0, 256, (2, patch_px, patch_px, 3), np.uint8)
    digest = hashlib.sha256(encoder.name.encode() + embed(noise).tobytes()).hexdigest()
    settings = {"function": encoder.name, "output_sha256": digest, "weights_sha256": None}
    return Space(NAME, NAME, digest, settings, embed)
