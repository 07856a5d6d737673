"""The one function solvers and the stitcher see: denoise(x, timestep, context) -> (x0, eps)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ssl_diffusion.diffusion.guidance import check_guidance, guide
from ssl_diffusion.diffusion.prediction import KINDS, Prediction, to_prediction, unknown_kind
from ssl_diffusion.diffusion.schedule import Schedule

Denoiser = Callable[[Array, Array, PyTree], Prediction]
"""denoise(x[b h w c], timestep[b], context) -> Prediction.

The context is [b tokens width], or a tree of arrays [b ...] that the network understands as well.

Always a pytree (`jax.tree_util.Partial`) whose leaves are its parameters: jitted functions take it
as an argument, so parameters are never baked into a program as constants.
"""


@dataclasses.dataclass(frozen=True)
class _Denoise:
    """The static part of a denoiser; equal ones compare equal and so share one compilation."""

    apply: Callable[[Any, Array, Array, PyTree], Array]
    kind: str
    guided: bool

    def __call__(
        self,
        params: Any,
        schedule: Schedule,
        null_context: PyTree,
        scale: Array,
        x: Array,
        timestep: Array,
        context: PyTree,
    ) -> Prediction:
        def network(x: Array, timestep: Array, context: PyTree) -> Array:
            return self.apply(params, x, timestep, context)

        output = guide(network, null_context, scale if self.guided else 1.0)(x, timestep, context)
        return to_prediction(self.kind, output, x, *schedule.at(timestep))


def make_denoiser(
    apply: Callable[[Any, Array, Array, PyTree], Array],
    params: Any,
    schedule: Schedule,
    kind: str,
    null_context: PyTree,
    guidance: float,
) -> jax.tree_util.Partial:
    """Makes a Denoiser from a network, its parameters and a guidance scale.

    Args:
      apply: (params, x, timestep, context) -> output. Pass the same function each time (a bound
        method of one module, not a fresh lambda), or every denoiser compiles anew.
      params: the network's parameters, any pytree.
      schedule: the noise table the network was trained on.
      kind: what its output means, one of prediction.KINDS.
      null_context: the context of a dropped condition, without the batch.
      guidance: scale w; 1 is none and calls the network once. It is a leaf: changing it from one
        scale to another does not recompile.

    Raises:
      InputError: unknown kind, or a guidance that is negative or not finite.
    """
    check_denoiser(kind, guidance)
    return jax.tree_util.Partial(
        _Denoise(apply, kind, guidance != 1),
        params,
        schedule,
        null_context,
        jnp.float32(guidance),
    )


def check_denoiser(kind: str, guidance: float) -> None:
    """Raises InputError for an unknown kind, or a guidance that is negative or not finite."""
    if kind not in KINDS:
        raise unknown_kind(kind)
    check_guidance(guidance)
