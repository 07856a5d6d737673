"""What a prior samples for an image: the flags of `generate`, read and checked."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Bool

from ssl_diffusion import demo
from ssl_diffusion.diffusion.sampling import Sampling, read_sampling
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import sha256
from ssl_diffusion.prior.asked import Asked, check_asked, condition, read_label, read_vector
from ssl_diffusion.prior.painted import painted_size, read_label_map, read_mask
from ssl_diffusion.weights.folder import WEIGHTS, part_of
from ssl_diffusion.weights.model import Model

SAME_MPP = 0.005  # relative
COPIES = 8  # float32 arrays of a grid's size that sampling holds at once, about


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What a prior samples.

    Attributes:
      prior: from `load_prior`.
      asked: its conditions.
      sampling: its solver, steps and guidance.
      samples: how many; a sample depends on the seed and its own number alone.
      seed: of them.
      mask: the cells that are sampled anew, where the others stay.
      strength: of a variation, above 0 to 1.
      said: all of it, for the .json beside the image.
    """

    prior: Any
    asked: Asked
    sampling: Sampling
    samples: int
    seed: int
    mask: Bool[np.ndarray, "rows cols"] | None
    strength: float | None
    said: dict[str, Any]


def check_prior(spec: Mapping[str, Any], model: Model, folder: str, stride_px: int) -> None:
    """Raises InputError unless a prior makes the embeddings that the model in `folder` takes."""
    advice = "use a prior of the model's own records"
    for name in ("tokens", "dim"):
        found, expected = spec["embedding"][name], model.spec["embedding"][name]
        if found != expected:
            raise InputError(
                f"a prior of embeddings with {name} {found}, a model with {expected}; {advice}"
            )
    encoder = part_of(folder, "encoder") / WEIGHTS
    known = spec["encoder_sha256"]  # of model.json and of the weights; None of a function
    if known and encoder.is_file() and sha256(encoder) not in known:
        raise InputError(f"a prior of another encoder's embeddings than the model's; {advice}")
    if spec["patch_px"] != model.patch_px:
        raise InputError(
            f"a prior of {spec['patch_px']} px patches, a model of {model.patch_px} px; {advice}"
        )
    own = model.spec["mpp"]
    if spec["mpp"] and own and not math.isclose(spec["mpp"], own, rel_tol=SAME_MPP):
        raise InputError(f"a prior at {spec['mpp']:g} µm per pixel, a model at {own:g}; {advice}")
    if stride_px != model.patch_px:
        raise InputError(
            f"--grid_stride={stride_px} with --prior, whose cells are {model.patch_px} px apart; "
            "leave it out"
        )


def read_sampled(
    given: flags.FlagValues,
    prior: Any,
    size: tuple[int, int],
    cells: tuple[int, int],
    seed: int,
) -> Sampled:
    """What the flags ask of the prior, for an image of `size` px and a grid of so many cells.

    Args:
      given: the flags, checked by `grid_flags.check_flags`.
      prior: from `load_prior`.
      size: (width, height), pixels.
      cells: (rows, cols).
      seed: of the samples.

    Raises:
      InputError: a grid above it, before anything is allocated; a file that cannot be used; what
        the prior was not trained with.
    """
    need = 4e-9 * math.prod(cells) * prior.tokens * prior.dim * (COPIES - 1 + given.samples)
    if need > given.max_grid_gb:
        raise InputError(
            f"a grid of {cells[0]} rows and {cells[1]} columns takes {need:.3g} GB while it is "
            f"sampled, above --max_grid_gb={given.max_grid_gb:g}; raise it, or ask for a smaller "
            "--size or fewer --samples"
        )
    asked = _asked(given, prior.spec, cells)
    check_asked(asked, prior.spec, *cells)
    if asked.text is not None:
        prior.embed_text(asked.text)  # says now if it cannot
    mask = None
    if given.mask is not None:
        mask = read_mask(given.mask, *size, prior.spec["patch_px"], prior.spec["patch_px"])
    named = {"steps": given.prior_steps, "guidance": given.prior_guidance}
    changed = {name: value for name, value in named.items() if value is not None}
    if mask is not None:
        changed["solver"] = "ddim"  # as a part is sampled anew, see diffusion.inpainting
    sampling = read_sampling(dict(prior.spec["sampling"]) | changed)
    said = {
        "folder": given.prior,
        "sha256": sha256(demo.resolve(given.prior) / WEIGHTS),
        "seed": seed,
        **dataclasses.asdict(sampling),
        "label": asked.label,
        "text": given.text,
        "text_encoder": given.text_encoder,
        **_file(given, "vector"),
        **_file(given, "label_map"),
        **_file(given, "mask"),
        "variation": given.variation,
    }
    return Sampled(prior, asked, sampling, given.samples, seed, mask, given.variation, said)


def _asked(given: flags.FlagValues, spec: Mapping[str, Any], cells: tuple[int, int]) -> Asked:
    label = vector = label_map = None
    if given.label is not None:
        label = read_label(given.label, condition(spec, "label")["classes"])
    if given.vector is not None:
        vector = read_vector(given.vector, condition(spec, "vector")["names"])
    if given.label_map is not None:
        said = condition(spec, "label_map")
        rows, cols = painted_size(given.label_map)
        if (rows, cols) != cells:
            raise InputError(
                f"--label_map={given.label_map} of {cols}x{rows} px for a grid of {cells[1]} "
                f"columns and {cells[0]} rows; expected a pixel for each cell: change the map, or "
                "the size"
            )
        label_map = read_label_map(given.label_map, said["classes"], said["colours"])
    return Asked(label, given.text, vector, label_map)


def _file(given: flags.FlagValues, name: str) -> dict[str, str | None]:
    path = given[name].value
    return {name: path, f"{name}_sha256": path and sha256(path)}
