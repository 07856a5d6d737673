"""What a reader needs to get the same numbers again: everything that moves them, in one place."""

from collections.abc import Mapping
from typing import Any

from ssl_diffusion import __version__
from ssl_diffusion.evaluation.intervals import COVERED, DRAWS, SPLITS
from ssl_diffusion.evaluation.machine import versions
from ssl_diffusion.evaluation.patch_numbers import SEED
from ssl_diffusion.evaluation.patch_section import Samples
from ssl_diffusion.evaluation.real_features import RealFeatures
from ssl_diffusion.evaluation.set_measures import NEIGHBOURS


def pinned(
    real: RealFeatures,
    samples: Samples | None,
    report: Mapping[str, Any],
    made_by: Mapping[str, Any],
    unseen: bool,
) -> dict[str, Any]:
    """The section `pinned`; `made_by` is what is known of how images were made.

    Counts, digests of all pixels and file formats of all sets of images (how lossy they were stored
    moves distances), spaces with the digests of their networks and their resize filters, seeds,
    neighbours, crops, versions of libraries.
    """
    sets = {"reference": real.reference, "held_out": real.held_out}
    if samples:
        sets["samples"] = samples.images
    for images in sets.values():
        images.pin()
    recipe = real.records.metadata
    return {
        "version": __version__,
        "made_by": dict(made_by),
        "sets": {name: images.settings for name, images in sets.items()},
        "records": {
            "patch_px": recipe["patch_px"],
            "mpp": recipe["mpp"],
            "image": recipe.get("image"),
            "resampling": recipe.get("resampling"),
            "split_sha256": recipe.get("split_sha256"),
            "unseen": unseen,
        },
        "spaces": {
            space.name: {"title": space.title, "digest": space.digest} | dict(space.settings)
            for space in real.spaces
        },
        "neighbours": NEIGHBOURS,
        "intervals": {"covered": COVERED, "bootstrap": DRAWS, "splits": SPLITS, "seed": SEED},
        "crops": report.get("large_image", {}).get("crops"),
        "versions": versions(),
    }
