"""How good the first stage and the encoder are, each number with its control."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ssl_diffusion.evaluation.agreement import agreement, estimated
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.pixels import colour_statistics, psnr


def autoencoder_numbers(
    real: UInt8[np.ndarray, "n h w 3"], reconstructions: UInt8[np.ndarray, "n h w 3"]
) -> dict[str, Any]:
    """The section `autoencoder`: PSNR in dB, the mean over images, and that of the mean error.

    The control paints each image in its own mean colour: what a first stage earns for stain alone.
    """
    each = psnr(real, reconstructions)
    flat = np.broadcast_to(
        real.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8), real.shape
    )
    return {
        "count": len(real),
        "psnr_db": estimated(each),
        "psnr_pooled_db": float(-10 * np.log10((10 ** (-each / 10)).mean())),
        "psnr_mean_colour_db": estimated(psnr(real, flat)),
    }


def encoder_numbers(
    embed: Callable[[UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n t d"]],
    random_embed: Callable[[UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n t d"]],
    images: UInt8[np.ndarray, "n h w 3"],
    views: UInt8[np.ndarray, "draws n h w 3"],
) -> dict[str, Any]:
    """The section `encoder`: does a strongly augmented patch still find itself among clean ones?

    The same `views` (augmented `images`) are given to the trained encoder and to a randomly
    initialised one. Each is centred on the mean of its own clean embeddings: a random one has no
    training mean. The other control is what stain alone tells, `colour_statistics`, each number in
    units of its deviation over the clean patches. The intervals are over patches, not views: those
    of one patch agree too much to count twice.
    """
    units = np.maximum(colour_statistics(images).std(axis=0), 1e-12)
    embedders = {
        "": ("trained encoder", embed),
        "random_init_": ("untrained encoder", random_embed),
        "colour_": (
            "colour statistics",
            lambda images: (colour_statistics(images) / units)[:, None],
        ),
    }
    numbers: dict[str, Any] = {"count": len(images), "draws": len(views), "chance": 1 / len(images)}
    for name, (what, function) in embedders.items():
        gallery = one_vector(function(images), what)
        centre, own = gallery.mean(axis=0), np.arange(len(images))
        found = np.mean(
            [
                agreement(one_vector(function(view), what), gallery, own, centre).retrieved
                for view in views
            ],
            axis=0,
        )
        numbers[f"{name}retrieval_at_1"] = estimated(found)
    return numbers
