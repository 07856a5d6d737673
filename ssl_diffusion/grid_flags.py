"""The flags of where a grid comes from and what is edited in it, and which of them go together."""

import math
from functools import partial

from absl import flags

from ssl_diffusion.errors import InputError

CONDITIONS = ("label", "text", "vector", "label_map")


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines those of a reference, of a grid in a file, of a prior, and of editing."""
    text = partial(flags.DEFINE_string, default=None, flag_values=flag_values)
    number = partial(flags.DEFINE_float, default=None, flag_values=flag_values)
    count = partial(flags.DEFINE_integer, default=None, flag_values=flag_values)
    # A reference
    text("reference", help="slide or image whose patches are embedded")
    number(
        "reference_mpp",
        help="µm per pixel of a --reference that does not say it itself",
        lower_bound=1e-6,
    )
    text("region", help="x,y,w,h in px at the model's resolution; all of it by default")
    count("level", help="--region counts in px of this level", lower_bound=0)
    number("mpp", help="--region counts in px of so many µm", lower_bound=1e-6)
    # A file
    text("grid", help="[rows, cols, tokens, dim] embeddings: .npy, .safetensors, .h5")
    count(
        "grid_stride",
        help="px from cell to cell of the grid; the patch's size by default",
        lower_bound=1,
    )
    text("size", help="WxH px; the region's, the grid's or the label map's own by default")
    # A prior
    text("prior", help="model folder of a prior, which samples grids, or a part of one")
    text("label", help="of --prior: a class, or several with their parts: DCIS:0.7,N:0.3")
    text("text", help="of --prior: a sentence")
    text("vector", help="of --prior: .csv of numbers by name, as of genes")
    text("label_map", help="of --prior: .png, a pixel for each cell in the colour of its class")
    text("text_encoder", help="of --text: folder of the encoder; the prior's own by default")
    count("samples", default=1, help="of --prior: images, OUTPUT-0 and on", lower_bound=1)
    count("prior_steps", help="of its solver; the prior's own by default", lower_bound=1)
    number(
        "max_grid_gb",
        default=4.0,
        help="GB of memory that sampled grids may take, about",
        lower_bound=0.0,
    )
    number("prior_guidance", help="scale w, 1 is none; the prior's own by default", lower_bound=0.0)
    # Editing
    text("mask", help=".png: what is white of --reference is made anew by --prior, the rest stays")
    number("variation", help="--prior varies the grid so strongly: above 0, 1 is all anew")
    text("blend_with", help="another grid of the same shape; cell by cell on the arc between both")
    number("blend", help="how far towards --blend_with: 0 to 1", lower_bound=0.0, upper_bound=1.0)


def check_flags(given: flags.FlagValues) -> None:
    """Raises InputError for flags that do not go together."""
    base = given.reference or given.grid
    if bool(given.reference) and bool(given.grid) or not (base or given.prior):
        raise InputError(
            "give either --reference=IMAGE or --grid=FILE, and not both; or --prior=DIR, which "
            "needs neither"
        )
    if given.region and not given.reference:
        raise InputError("--region is a region of --reference; without one, leave it out")
    if given.level is not None and given.mpp is not None:
        raise InputError("--level and --mpp both say what --region counts in; give one")
    if (given.level is not None or given.mpp is not None) and not given.region:
        raise InputError(
            "--level and --mpp say what --region counts in; without one, leave them out"
        )
    if given.reference_mpp is not None and not given.reference:
        raise InputError("--reference_mpp is of --reference; without one, leave it out")
    for name in ("mpp", "reference_mpp", "max_grid_gb", "prior_guidance", "variation", "blend"):
        if not math.isfinite(given[name].value or 0.0):
            raise InputError(f"--{name}={given[name].value}; expected a finite number")
    _check_prior(given)
    _check_edit(given)


def _check_prior(given: flags.FlagValues) -> None:
    of_prior = *CONDITIONS, "prior_steps", "prior_guidance", "mask", "variation"
    alone = [name for name in of_prior if given[name].value is not None]
    alone += ["samples"] if given.samples > 1 else []
    if alone and not given.prior:
        raise InputError(f"--{alone[0]} is of --prior=DIR; give one, or leave it out")
    if given.text_encoder and given.text is None:
        raise InputError("--text_encoder is of --text; without one, leave it out")


def _check_edit(given: flags.FlagValues) -> None:
    base = given.reference or given.grid
    edits = given.mask is not None or given.variation is not None
    if given.prior and base and not edits:
        raise InputError(
            "--prior beside --reference or --grid edits it: give --mask or --variation, or leave "
            "the prior out"
        )
    if given.mask is not None and not given.reference:
        raise InputError("--mask is of --reference, whose pixels stay around it; give one")
    if given.mask is not None and given.variation is not None:
        raise InputError("--mask makes a part anew, --variation varies the whole; give one of them")
    if given.variation is not None and not base:
        raise InputError("--variation is of --reference or --grid; give one, or leave it out")
    if given.variation is not None and not 0 < given.variation <= 1:
        raise InputError(f"--variation={given.variation:g}; expected above 0 up to 1")
    if bool(given.blend_with) != (given.blend is not None):
        raise InputError("--blend_with=FILE and --blend=T go together; give both or neither")
    if given.blend_with and (given.mask is not None or not base):
        raise InputError(
            "--blend_with is blended into the whole grid of --reference or --grid; give one of "
            "these, without --mask"
        )
