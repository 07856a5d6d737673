"""The flags of sampling, which `sample` and `generate` share."""

from collections.abc import Mapping
from typing import Any

from absl import flags

from ssl_diffusion.diffusion.plans import SOLVERS
from ssl_diffusion.diffusion.sampling import Sampling, read_sampling
from ssl_diffusion.diffusion.timesteps import SPACINGS
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import PRECISIONS


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines --steps, --solver, --spacing, --guidance, --guidance_interval and --precision."""
    flags.DEFINE_integer(
        "steps",
        None,
        "steps of the solver; the model's own by default",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "solver", None, [*SOLVERS], "the model's own by default, else ddim", flag_values=flag_values
    )
    flags.DEFINE_enum(
        "spacing",
        None,
        [*SPACINGS],
        "of the timesteps; the model's own by default, else trailing",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "guidance",
        None,
        "scale w, 1 is none; the model's own by default",
        lower_bound=0.0,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "guidance_interval",
        None,
        "low,high: noise levels sigma/alpha with guidance, or all; the model's own by default",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        [*PRECISIONS],
        "of the denoiser's parameters and arithmetic",
        flag_values=flag_values,
    )


def sampling_of(settings: Mapping[str, Any], flag_values: flags.FlagValues) -> Sampling:
    """The flags over `settings`, "sampling" of the model.json. Raises InputError as Sampling."""
    named = ("steps", "solver", "spacing", "guidance")
    given = {name: getattr(flag_values, name) for name in named}
    given = {name: value for name, value in given.items() if value is not None}
    if flag_values.guidance_interval is not None:
        given["guidance_interval"] = _interval(flag_values.guidance_interval)
    return read_sampling(dict(settings) | given)


def _interval(text: str) -> tuple[float, float] | None:
    if text == "all":
        return None
    try:
        low, high = (float(number) for number in text.split(","))
    except ValueError:
        raise InputError(
            f"--guidance_interval={text}; expected low,high, two noise levels, or all"
        ) from None
    return low, high
