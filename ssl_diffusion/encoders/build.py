"""From the architecture in a model.json to an encoder's network."""

from collections.abc import Mapping
from typing import Any

from ssl_diffusion.encoders.efficientnet import EfficientNetLite
from ssl_diffusion.encoders.swin import Swin
from ssl_diffusion.encoders.vit import ViT
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import build_named

Encoder = ViT | Swin | EfficientNetLite
ENCODERS = {"vit": ViT, "swin": Swin, "efficientnet_lite": EfficientNetLite}


def build_encoder(architecture: Mapping[str, Any]) -> Encoder:
    """Returns the encoder `architecture["name"]`, a key of ENCODERS ("vit" also without a name).

    The rest are its fields. Raises InputError as `models.build.build` does, and for another name.
    """
    return build_named("encoder", ENCODERS, {"name": "vit", **architecture})


def check_image_size(network: Encoder, size: Any, what: str) -> None:
    """Raises InputError unless the network takes square images of `size` px; `what` says it."""
    step = network.size_step
    if type(size) is not int or size < step or size % step:
        raise InputError(
            f"{what} is {size!r}, expected a multiple of {step} px: this encoder takes no other"
        )
