"""Which windows a step of the sampler looks through: always the same, or shifted by chance."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ssl_diffusion.errors import InputError
from ssl_diffusion.stitching.windows import (
    blend_weights,
    gaussian,
    shifted_origins,
    window_origins,
)

WEIGHTS: dict[str, Callable[[int], np.ndarray]] = {"gaussian": gaussian, "uniform": np.ones}
"""How much the pixels of a window count along an axis, given how many there are."""


class Layout(NamedTuple):
    """The windows of one evaluation: every row of windows crossed with every column.

    Attributes:
      origins_y: first canvas rows of the rows of windows, ascending.
      origins_x: first canvas columns of the columns.
      weights_y: of a window's pixels along the axis; those of all windows over a pixel sum to one.
      weights_x: the same along the other axis.
      step: neighbouring origins are at most so far apart.
    """

    origins_y: Int[np.ndarray, " ny"]
    origins_x: Int[np.ndarray, " nx"]
    weights_y: Float[np.ndarray, "ny window"]
    weights_x: Float[np.ndarray, "nx window"]
    step: int


@dataclasses.dataclass(frozen=True)
class Overlap:
    """The same overlapping windows at every evaluation (Graikos et al. 2024, section 3.3).

    All lengths are latent pixels. Raises InputError for a canvas smaller than a window and for a
    stride outside 1..window.
    """

    height: int
    width: int
    window: int
    stride: int
    weights: str = "gaussian"

    def layout(self, evaluation: int) -> Layout:
        """The windows of an evaluation, the same for each."""
        return self._layout

    @cached_property
    def _layout(self) -> Layout:
        profile = WEIGHTS[self.weights](self.window)
        ys, xs = (window_origins(n, self.window, self.stride) for n in (self.height, self.width))
        return Layout(ys, xs, blend_weights(ys, profile), blend_weights(xs, profile), self.stride)


@dataclasses.dataclass(frozen=True)
class Shifted:
    """Windows side by side, whose common origin is drawn anew for every evaluation.

    Frolov et al. 2024 (SpotDiffusion, arXiv 2407.15507) and Aversa et al. 2023 (DiffInfinite, arXiv
    2306.13384). A border between windows lies elsewhere at each step, so it leaves no seam, for
    (window / stride)^2 times fewer windows than overlapping ones. Where theirs wrap around the
    canvas, and so show the network two opposite ends as one tissue, the windows at the ends are
    here moved inside and average with their neighbours: one more row and column of windows, none of
    them outside the canvas.
    """

    height: int
    width: int
    window: int
    key: Key[Array, ""]

    def layout(self, evaluation: int) -> Layout:
        """The windows of an evaluation."""
        key = jax.random.fold_in(self.key, evaluation)
        shifts = np.asarray(jax.random.randint(key, (2,), 0, self.window))
        ys, xs = (
            shifted_origins(size, self.window, int(shift))
            for size, shift in zip((self.height, self.width), shifts, strict=True)
        )
        profile = np.ones(self.window)
        return Layout(ys, xs, blend_weights(ys, profile), blend_weights(xs, profile), self.window)


Scheme = Overlap | Shifted
SCHEMES = ("overlap", "shifted")


def make_scheme(
    name: str, height: int, width: int, window: int, stride: int, weights: str, key: Key[Array, ""]
) -> Scheme:
    """The scheme of that name; lengths in latent pixels. See `Overlap` and `Shifted`.

    Raises InputError for an unknown name or weights, and what these raise.
    """
    if name not in SCHEMES:
        raise InputError(f"unknown scheme {name!r}; expected one of {', '.join(SCHEMES)}")
    if weights not in WEIGHTS:
        raise InputError(f"unknown window weights {weights!r}; expected {' or '.join(WEIGHTS)}")
    window_origins(min(height, width), window, stride)
    if name == "shifted":
        return Shifted(height, width, window, key)
    return Overlap(height, width, window, stride, weights)
