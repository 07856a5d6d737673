"""The numbers of the report, each with its control, from embeddings and pixels that are given."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from ssl_diffusion.evaluation.agreement import agreement, mean_standard_error, retrieved
from ssl_diffusion.evaluation.copying import NearestTraining, copying
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.frechet import Moments, frechet_distance, frechet_standard_error
from ssl_diffusion.evaluation.pixels import colour_statistics, psnr, sharpness
from ssl_diffusion.evaluation.seams import seam

JPEG_BLOCK_PX = 8


def patch_numbers(
    *,
    gallery: Float[np.ndarray, "m d"],
    wanted: Int[np.ndarray, " n"],
    samples: Float[np.ndarray, "n d"],
    reconstructions: Float[np.ndarray, "n d"],
    noise: Float[np.ndarray, "n d"],
    copies: Float[np.ndarray, "k d"],
    train: Iterable[Float[np.ndarray, "c d"]],
    trained: Moments,
) -> tuple[dict[str, dict[str, Any]], NearestTraining]:
    """The sections `patch` and `copying`, and the neighbours found; the first n are of the wanted.

    All arguments but `wanted` and `trained` are embeddings:

    gallery          all real held-out patches
    wanted           gallery index of the patch that each sample was asked for
    samples          the generated patches, embedded again
    reconstructions  the wanted patches through the autoencoder: the ceiling of a latent model
    noise            images of uniform pixel noise: the floor
    copies           training patches through the autoencoder: what a copying model would make
    train            chunks of the training embeddings, streamed once
    trained          their moments; the mean is the centre from which all cosines are taken
    """
    real, n = gallery[wanted], len(wanted)
    centre = trained.mean.astype(gallery.dtype)
    nearest = NearestTraining(np.concatenate([real, samples, copies]), centre)
    for chunk in train:
        nearest.update(chunk)
    near_real, near_samples, near_copies = np.split(nearest.similarity, [n, 2 * n])

    def distance(embeddings: Float[np.ndarray, "n d"]) -> float:
        return frechet_distance(Moments.of(embeddings), trained)

    of_copied = agreement(nearest.embedding[:n], gallery, wanted, centre)
    of_reconstructed = agreement(reconstructions, gallery, wanted, centre)
    fd_real, fd_samples = distance(real), distance(samples)
    patch = dataclasses.asdict(agreement(samples, gallery, wanted, centre)) | {
        "similarity_reconstructions": of_reconstructed.similarity,
        "similarity_reconstructions_se": of_reconstructed.similarity_se,
        "retrieval_at_1_reconstructions": of_reconstructed.retrieval_at_1,
        "retrieval_at_1_reconstructions_se": of_reconstructed.retrieval_at_1_se,
        "nearest_train_similarity": of_copied.similarity,
        "nearest_train_similarity_se": of_copied.similarity_se,
        "nearest_train_retrieval_at_1": of_copied.retrieval_at_1,
        "nearest_train_retrieval_at_1_se": of_copied.retrieval_at_1_se,
        "fd_n": n,
        "fd_train_n": trained.count,
        "fd_dimension": gallery.shape[1],
        "fd_real_real": fd_real,
        "fd_real_real_se": frechet_standard_error(real, trained),
        "fd_samples": fd_samples,
        "fd_samples_se": frechet_standard_error(samples, trained),
        "fd_samples_over_real": fd_samples / fd_real if fd_real else None,
        "fd_reconstructions": distance(reconstructions),
        "fd_nearest_train": distance(nearest.embedding[:n]),
        "fd_noise": distance(noise),
    }
    sections = {
        "patch": patch,
        "copying": dataclasses.asdict(copying(near_samples, near_real, near_copies)),
    }
    return sections, nearest


def large_image_numbers(
    *,
    images: Mapping[str, UInt8[np.ndarray, "h w 3"]],
    embeddings: Mapping[str, Float[np.ndarray, "cells d"]],
    lines_y: Int[np.ndarray, " ny"],
    lines_x: Int[np.ndarray, " nx"],
    centre: Float[np.ndarray, " d"],
) -> dict[str, Any]:
    """The section `large_image`, but for the seconds.

    `images` and `embeddings` have "real", "stitched" (made from the embeddings of real) and
    "reconstruction" (real through the autoencoder: the ceiling); embeddings are those of the cells
    of each image, in one order. "Shuffled" is every other cell. The seam figures of all three
    images use the same lines (px); `seam_in_phase` compares with multiples of a JPEG block only.
    """
    real = images["real"]
    own_cell = np.arange(len(embeddings["real"]))
    of_stitched, of_reconstruction = (
        agreement(embeddings[name], embeddings["real"], own_cell, centre)
        for name in ("stitched", "reconstruction")
    )
    numbers = {"width_px": real.shape[1], "height_px": real.shape[0]}
    numbers |= dataclasses.asdict(of_stitched)
    numbers["similarity_reconstruction"] = of_reconstruction.similarity
    numbers["similarity_reconstruction_se"] = of_reconstruction.similarity_se
    numbers["retrieval_at_1_reconstruction"] = of_reconstruction.retrieval_at_1
    numbers["retrieval_at_1_reconstruction_se"] = of_reconstruction.retrieval_at_1_se
    for suffix, name in (
        ("", "stitched"),
        ("_real", "real"),
        ("_reconstruction", "reconstruction"),
    ):
        numbers["seam" + suffix] = seam(images[name], lines_y, lines_x)
        numbers["seam_in_phase" + suffix] = seam(images[name], lines_y, lines_x, JPEG_BLOCK_PX)
    numbers["sharpness"] = sharpness(images["stitched"], real)
    numbers["sharpness_reconstruction"] = sharpness(images["reconstruction"], real)
    return numbers


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
        "psnr_db": float(each.mean()),
        "psnr_db_se": mean_standard_error(each),
        "psnr_pooled_db": float(-10 * np.log10((10 ** (-each / 10)).mean())),
        "psnr_mean_colour_db": float(psnr(real, flat).mean()),
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
    units of its deviation over the clean patches. The standard error counts patches, not views:
    those of one patch agree too much to count twice.
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
            [retrieved(one_vector(function(view), what), gallery, own, centre) for view in views],
            axis=0,
        )
        numbers[f"{name}retrieval_at_1"] = float(found.mean())
        numbers[f"{name}retrieval_at_1_se"] = mean_standard_error(found)
    return numbers
