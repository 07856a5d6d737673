"""Where a denoiser's latents come from: the records, or images that are encoded on the device."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from ssl_diffusion.data.records import Records
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.models.build import build
from ssl_diffusion.training.tasks import Batch
from ssl_diffusion.weights.folder import read_spec
from ssl_diffusion.weights.model import load_autoencoder
from ssl_diffusion.weights.reader import autoencoder_shapes

INPUTS = ("latent", "image")


class LatentInput(NamedTuple):
    """How a batch becomes latents.

    Attributes:
      shape: [h, w, c] of a latent.
      fields: shapes of the record fields that are read, by name.
      frozen: the autoencoder's parameters (or their shapes) where it encodes; else nothing.
      autoencoder: which encodes "image"; None where the records hold latents.
      shift, scale: scaled = (raw - shift) * scale.
    """

    shape: tuple[int, int, int]
    fields: dict[str, jax.ShapeDtypeStruct]
    frozen: PyTree
    autoencoder: Autoencoder | None
    shift: float
    scale: float

    def latent(
        self, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """Scaled latents; of a posterior whose deviation is known, drawn afresh."""
        deviation = None
        if self.autoencoder is None:
            mean = batch["latent"].astype(jnp.float32)
            if "latent_std" in batch:
                deviation = batch["latent_std"].astype(jnp.float32)
        else:
            image = batch["image"] / 127.5 - 1.0
            if self.autoencoder.codebook:
                mean = self.autoencoder.apply({"params": frozen}, image, method="encode")
            else:
                mean, log_variance = self.autoencoder.apply(
                    {"params": frozen}, image, method="moments"
                )
                deviation = jnp.exp(0.5 * log_variance)
        if deviation is not None:
            noise = jax.vmap(lambda key: jax.random.normal(key, self.shape))(keys)
            mean = mean + deviation * noise
        return (mean - self.shift) * self.scale


def make_input(config: ConfigDict, records: Records | None) -> LatentInput:
    """From `config.data`; InputError where it does not fit itself or the records."""
    data = config.data
    if data.input not in INPUTS:
        raise InputError(f"config.data.input is {data.input!r}, expected {' or '.join(INPUTS)}")
    factor, channels = data.latent.factor, data.latent.channels
    shape = (data.patch_px // factor, data.patch_px // factor, channels)
    shift, scale = _scaling(records) if records else (0.0, 1.0)
    if data.input == "latent":
        field = jax.ShapeDtypeStruct(shape, jnp.float16)
        fields = {"latent": field} | ({"latent_std": field} if data.posterior else {})
        if records:
            _check(shape, records.shape("latent"), records)
        return LatentInput(shape, fields, {}, None, shift, scale)
    fields = {"image": jax.ShapeDtypeStruct((data.patch_px, data.patch_px, 3), jnp.uint8)}
    if records:
        first_stage = load_autoencoder(records.folder / "autoencoder")
        network, frozen = first_stage.network, first_stage.params
    else:
        architecture = read_spec(data.autoencoder, "autoencoder")["architecture"]
        network, frozen = build(Autoencoder, architecture), autoencoder_shapes(architecture)
    found = (data.patch_px // network.factor,) * 2 + (network.latent_channels,)
    _check(shape, found, records or data.autoencoder)
    return LatentInput(shape, fields, frozen, network, shift, scale)


def _scaling(records: Records) -> tuple[float, float]:
    latent: Mapping[str, Any] | None = records.metadata.get("latent")
    if not latent:
        raise InputError(
            f"records in {records.folder} were made without an autoencoder; set "
            "config.data.autoencoder and prepare them again"
        )
    return latent["shift"], latent["scale"]


def _check(expected: tuple[int, ...], found: tuple[int, ...], where: Any) -> None:
    if expected != tuple(found):
        where = where.folder if isinstance(where, Records) else where
        raise InputError(
            f"latents of {where} have the shape {list(found)}, config.data.latent and patch_px say "
            f"{list(expected)}; set config.data.latent to theirs"
        )
