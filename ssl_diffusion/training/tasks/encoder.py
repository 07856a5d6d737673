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
from ssl_diffusion.encoders.augment import augment
from ssl_diffusion.encoders.encoder import normalise
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.layers import MLP
from ssl_diffusion.training.tasks import Batch, Task, Terms, image_batch, split_keys
from ssl_diffusion.training.tasks.backbone import backbone_spec, build_backbone, measure_backbone
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


class EncoderTask(Task):
    """The encoder and a projection head; only the encoder is exported."""

    fields = ("image",)
    frozen: dict[str, PyTree] = {}

    def __init__(self, config: ConfigDict, records: Records | None):
        self.config, self.records = config, records
        if config.accumulation != 1:
            raise InputError(
                f"config.accumulation is {config.accumulation}, expected 1: views are contrasted "
                "with all of the batch, which parts of it do not see"
            )
        self.encoder = build_backbone(config)
        projector = config.model.projector
        self.projector = MLP(projector.hidden, projector.width, nn.relu)

    def batch(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return image_batch(self.config, count)

    def init(self, key: Array) -> PyTree:
        encoder_key, projector_key = jax.random.split(key)
        size = self.config.data.patch_px
        variables = self.encoder.init(encoder_key, jnp.zeros((1, size, size, 3)))
        embedding = jnp.zeros((1, self.encoder.dim))
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

    def measure(self, params: PyTree) -> dict[str, Any]:
        return measure_backbone(self.encoder, params["encoder"], self.config, self.records)

    def export(self, params: PyTree, folder: Path, trained: dict[str, Any]) -> None:
        spec = backbone_spec(self.encoder, self.config, trained)
        write_model(folder, spec, params["encoder"])
