"""What the network's output means: every conversion between eps, x0, v and flow, in one place.

x = alpha x0 + sigma eps        Ho et al. 2020, eq. 4
v = alpha eps - sigma x0        Salimans & Ho 2022, section 4
u = eps - x0                    "flow": Liu et al. 2022, arXiv 2209.03003, eq. 1 (there x0 - eps)

Solved for x0 and eps, whatever alpha^2 + sigma^2 and alpha + sigma are:

x0 = (alpha x - sigma v) / (alpha^2 + sigma^2)      eps = (sigma x + alpha v) / (alpha^2 + sigma^2)
x0 = (x - sigma u) / (alpha + sigma)                eps = (x + alpha u) / (alpha + sigma)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_diffusion.errors import InputError

KINDS = ("eps", "x0", "v", "flow")


class Prediction(NamedTuple):
    """What a denoiser says of x_t: the clean part and the noise, both [b, h, w, c]."""

    x0: Array
    eps: Array


def to_prediction(
    kind: str,
    output: Float[Array, "b h w c"],
    x: Float[Array, "b h w c"],
    alpha: Float[Array, " b"],
    sigma: Float[Array, " b"],
) -> Prediction:
    """Turns a network's output into (x0, eps).

    Where the output says nothing about a part (x0 from eps at alpha = 0, eps from x0 at sigma = 0),
    that part is 0, never NaN: schedules may end in pure noise, and samplers end clean.

    Args:
      kind: one of KINDS.
      output: what the network gave for `x`.
      x: the noisy latent.
      alpha: signal level of each example.
      sigma: noise level of each example.

    Raises:
      InputError: unknown kind.
    """
    alpha, sigma = over_pixels(alpha), over_pixels(sigma)
    match kind:
        case "eps":
            return Prediction(_divide(x - sigma * output, alpha), output)
        case "x0":
            return Prediction(output, _divide(x - alpha * output, sigma))
        case "v":
            norm = alpha**2 + sigma**2
            x0, eps = alpha * x - sigma * output, sigma * x + alpha * output
            return Prediction(x0 / norm, eps / norm)
        case "flow":
            norm = alpha + sigma
            return Prediction((x - sigma * output) / norm, (x + alpha * output) / norm)
    raise unknown_kind(kind)


def target(
    kind: str,
    x0: Float[Array, "b h w c"],
    eps: Float[Array, "b h w c"],
    alpha: Float[Array, " b"],
    sigma: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
    """What a network of this kind is trained to give. Raises InputError for an unknown kind."""
    match kind:
        case "eps":
            return eps
        case "x0":
            return x0
        case "v":
            return over_pixels(alpha) * eps - over_pixels(sigma) * x0
        case "flow":
            return eps - x0
    raise unknown_kind(kind)


def over_pixels(level: Float[Array, " b"]) -> Float[Array, "b 1 1 1"]:
    """Gives a per-example level the shape that broadcasts over NHWC."""
    return level[:, None, None, None]


def unknown_kind(kind: str) -> InputError:
    """The error for a prediction kind that does not exist."""
    return InputError(f"unknown prediction kind {kind!r}; expected one of {', '.join(KINDS)}")


def _divide(numerator: Array, level: Array) -> Array:
    # The inner where keeps gradients finite too.
    return jnp.where(level > 0, numerator / jnp.where(level > 0, level, 1.0), 0.0)
