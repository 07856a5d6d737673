"""What the tasks that train an SSL encoder share: its network, its figures, its model folder."""

from typing import Any

from jaxtyping import PyTree
from ml_collections import ConfigDict

from ssl_diffusion.data.records import Records
from ssl_diffusion.encoders.augment import views_of
from ssl_diffusion.encoders.encoder import SSLEncoder
from ssl_diffusion.encoders.vit import ViT
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.measures import encoder_numbers
from ssl_diffusion.models.build import build
from ssl_diffusion.training.tasks import MEASURED


def build_backbone(config: ConfigDict) -> ViT:
    """The encoder that `config.model.architecture` tells; InputError unless it fits the patches."""
    network: ViT = build(ViT, config.model.architecture.to_dict())
    if network.image_size != config.data.patch_px:
        raise InputError(
            f"model.architecture.image_size is {network.image_size}, the patches have "
            f"{config.data.patch_px} px (data.patch_px); set both to the same"
        )
    return network


def measure_backbone(
    network: ViT, params: PyTree, config: ConfigDict, records: Records
) -> dict[str, Any]:
    """Whether held-out patches find themselves after `config.model.judged_by`, with controls."""
    images = records.source("test", ("image",)).spread(MEASURED)["image"]
    encoder = SSLEncoder(network, params, backbone_spec(network, config, {}))
    untrained = encoder.reinitialised(config.seed)
    views = views_of(images, config.model.judged_by.to_dict(), draws=4, seed=0)
    return encoder_numbers(encoder.embed, untrained.embed, images, views)


def backbone_spec(network: ViT, config: ConfigDict, trained: dict[str, Any]) -> dict[str, Any]:
    """What model.json says of it."""
    model = config.model
    return {
        "kind": "encoder",
        "architecture": model.architecture.to_dict(),
        "image_size": config.data.patch_px,
        "mean": list(model.mean),
        "std": list(model.std),
        "embedding": {"tokens": 1, "dim": network.dim},
        "augmentation": model.judged_by.to_dict(),
        "trained": trained,
    }
