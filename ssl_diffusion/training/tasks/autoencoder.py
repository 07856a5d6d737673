"""Task: the first stage, a KL-regularised autoencoder."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from ssl_diffusion.data.records import Records
from ssl_diffusion.evaluation.measures import autoencoder_numbers
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.models.build import build
from ssl_diffusion.pixels import pair_sheet, to_uint8
from ssl_diffusion.training.tasks import MEASURED, Batch, Task, Terms, image_batch
from ssl_diffusion.weights.folder import write_model
from ssl_diffusion.weights.model import FirstStage

SCALE_SAMPLES = 2048  # training patches from which the latents' mean and deviation are taken
PICTURED = 8


class AutoencoderTask(Task):
    """Reconstruction in L1 and L2 plus a small KL term (Rombach et al. 2022, app. G)."""

    fields = ("image",)
    frozen: dict[str, PyTree] = {}

    def __init__(self, config: ConfigDict, records: Records | None):
        self.config, self.records = config, records
        self.network: Autoencoder = build(Autoencoder, config.model.architecture.to_dict())

    def batch(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return image_batch(self.config, count)

    def init(self, key: Array) -> PyTree:
        size = self.config.data.patch_px
        return self.network.init(key, jnp.zeros((1, size, size, 3)))["params"]

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], Terms]:
        image = batch["image"] / 127.5 - 1.0
        mean, log_variance = self.network.apply({"params": params}, image, method="moments")
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        latent = mean + jnp.exp(0.5 * log_variance) * noise
        error = self.network.apply({"params": params}, latent, method="decode") - image
        axes = (1, 2, 3)
        l1, l2 = jnp.abs(error).mean(axes), jnp.square(error).mean(axes)
        # KL of N(mean, variance) from N(0, 1): Kingma & Welling 2014, app. B.
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).mean(axes)
        return l1 + l2 + self.config.model.kl_weight * kl, {"l1": l1, "l2": l2, "kl": kl}

    def picture(self, params: PyTree) -> np.ndarray:
        images = self.records.source("test", ("image",)).spread(PICTURED)["image"]
        return pair_sheet(images, self._reconstruct(params, images), columns=4)

    def measure(self, params: PyTree) -> dict[str, Any]:
        images = self.records.source("test", ("image",)).spread(MEASURED)["image"]
        return autoencoder_numbers(images, self._reconstruct(params, images))

    def export(self, params: PyTree, folder: Path, trained: dict[str, Any]) -> None:
        images = self.records.source("train", ("image",)).spread(SCALE_SAMPLES)["image"]
        latents = FirstStage(self.network, params, {}).encode(images)
        spec = {
            "kind": "autoencoder",
            "architecture": self.config.model.architecture.to_dict(),
            "latent": {"shift": float(latents.mean()), "scale": float(1 / latents.std())},
            "trained": trained,
        }
        write_model(folder, spec, params)

    def _reconstruct(self, params: PyTree, images: np.ndarray) -> np.ndarray:
        stage = FirstStage(self.network, params, {})
        decoded = [np.asarray(stage.decode(latent[None])) for latent in stage.encode(images)]
        return to_uint8(np.concatenate(decoded))
