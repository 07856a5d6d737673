"""Task: an SSL encoder by contrast of two views (SimCLR, Chen et al. 2020, arXiv 2002.05709)."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from ssl_diffusion.data.records import Records
from ssl_diffusion.encoders.augment import augment, views_of
from ssl_diffusion.encoders.encoder import SSLEncoder, normalise
from ssl_diffusion.encoders.vit import ViT
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.measures import encoder_numbers
from ssl_diffusion.models.build import build
from ssl_diffusion.models.layers import MLP
from ssl_diffusion.training.tasks import MEASURED, Batch, Terms, image_batch, split_keys
from ssl_diffusion.weights.folder import write_model


def contrastive_loss(
    first: Float[Array, "b d"], second: Float[Array, "b d"], temperature: float
) -> Float[Array, " b"]:
    """NT-Xent (SimCLR eq. 1) of two views' projections, the mean of both directions."""
    count = first.shape[0]
    views = jnp.concatenate([first, second])
    views = views / jnp.linalg.norm(views, axis=-1, keepdims=True)
    logits = views @ views.T / temperature
    logits = jnp.where(jnp.eye(2 * count, dtype=bool), -jnp.inf, logits)
    partner = jnp.roll(jnp.arange(2 * count), count)
    losses = -jax.nn.log_softmax(logits)[jnp.arange(2 * count), partner]
    return 0.5 * (losses[:count] + losses[count:])


class EncoderTask:
    """The encoder and a projection head; only the encoder is exported."""

    fields = ("image",)
    frozen: PyTree = {}

    def __init__(self, config: ConfigDict, records: Records | None):
        self.config, self.records = config, records
        if config.accumulation != 1:
            raise InputError(
                f"config.accumulation is {config.accumulation}, expected 1: views are contrasted "
                "with all of the batch, which parts of it do not see"
            )
        self.encoder: ViT = build(ViT, config.model.architecture.to_dict())
        if self.encoder.image_size != config.data.patch_px:
            raise InputError(
                f"model.architecture.image_size is {self.encoder.image_size}, the patches have "
                f"{config.data.patch_px} px (data.patch_px); set both to the same"
            )
        projector = config.model.projector
        self.projector = MLP(projector.hidden, projector.width, nn.relu)

    def batch(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return image_batch(self.config, count)

    def init(self, key: Array) -> PyTree:
        encoder_key, projector_key = jax.random.split(key)
        size = self.config.data.patch_px
        variables = self.encoder.init(encoder_key, jnp.zeros((1, size, size, 3)))
        embedding = jnp.zeros((1, self.encoder.width))
        return {
            "encoder": variables["params"],
            "projector": self.projector.init(projector_key, embedding)["params"],
        }

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], Terms]:
        model = self.config.model
        image = batch["image"] / 127.5 - 1.0
        settings = model.augmentation.to_dict()
        view = jax.vmap(lambda key, image: augment(key, image, settings))
        views = [view(view_keys, image) for view_keys in split_keys(keys)]
        both = normalise(
            (jnp.concatenate(views) + 1) / 2, np.array(model.mean), np.array(model.std)
        )
        embedding = self.encoder.apply({"params": params["encoder"]}, both)[:, 0]
        projected = self.projector.apply({"params": params["projector"]}, embedding)
        losses = contrastive_loss(*jnp.split(projected, 2), model.temperature)
        return losses, {}

    def picture(self, params: PyTree) -> None:
        return None

    def measure(self, params: PyTree) -> dict[str, int | float]:
        images = self.records.source("test", ("image",)).spread(MEASURED)["image"]
        encoder = SSLEncoder(self.encoder, params["encoder"], self._spec({}))
        untrained = encoder.reinitialised(self.config.seed)
        views = views_of(images, self.config.model.judged_by.to_dict(), draws=4, seed=0)
        return encoder_numbers(encoder.embed, untrained.embed, images, views)

    def export(self, params: PyTree, folder: Path, trained: dict[str, Any]) -> None:
        write_model(folder, self._spec(trained), params["encoder"])

    def _spec(self, trained: dict[str, Any]) -> dict[str, Any]:
        model = self.config.model
        return {
            "kind": "encoder",
            "architecture": model.architecture.to_dict(),
            "image_size": self.config.data.patch_px,
            "mean": list(model.mean),
            "std": list(model.std),
            "embedding": {"tokens": 1, "dim": self.encoder.width},
            "augmentation": model.judged_by.to_dict(),
            "trained": trained,
        }
