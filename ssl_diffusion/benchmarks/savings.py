"""What each trick of the sampler saves, and how much it changes the result."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ssl_diffusion.benchmarks.published import SIZES, PublishedDenoiser
from ssl_diffusion.benchmarks.stitching import evaluation, make_image
from ssl_diffusion.rates import repeated

GUIDANCE = 4.0
CANVAS = 2  # windows along a side of the canvas on which schemes are compared


def measure(name: str, dtype: str, batch: int) -> Iterator[dict[str, Any]]:
    """A row for each: seconds with and without, and the largest difference over the std of output.

    The first three are of one call on `batch` windows; schemes of one evaluation of a canvas.
    """
    model = PublishedDenoiser(name, dtype).filled()
    _, latent, width = SIZES[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((batch, *latent), np.float32))
    tokens = jnp.asarray(rng.standard_normal((batch, 1, width), np.float32))
    timestep = jnp.full(batch, 500.0)
    run = jax.jit(
        lambda params, x, timestep, context: model.network.apply(
            {"params": params}, x, timestep, context
        )
    )

    def timed(context: PyTree) -> tuple[float, Array]:
        given = model.params, x, timestep, context
        return repeated(run, *given), run(*given)

    hoisted, inside = timed(model.context(tokens)), timed(tokens)
    yield row("context projected once", hoisted, inside)
    # The same token twice: attention weighs them by halves and gives what one gives.
    twice = timed(model.context(jnp.concatenate([tokens, tokens], axis=1)))
    yield row("one token is a bias", hoisted, twice)

    context = model.context(tokens)
    denoise = jax.jit(lambda denoise, *window: denoise(*window).x0)

    def guided(scale: float) -> tuple[float, Array]:
        given = model.denoiser(scale), x, timestep, context
        return repeated(denoise, *given), denoise(*given)

    yield row("no guidance outside the interval", guided(1.0), guided(GUIDANCE))

    size = CANVAS * model.patch_px
    seconds = {}
    for scheme, stride in (("shifted", latent[0]), ("overlap", latent[0] // 4)):
        image = make_image(model, size, size, scheme, stride, batch, GUIDANCE)
        seconds[scheme], _, _ = evaluation(image)
    yield {
        "trick": f"shifted windows, not every 1/4 window, {size} px",
        "seconds": seconds["shifted"],
        "without": seconds["overlap"],
        "difference": None,
    }


def row(trick: str, there: tuple[float, Array], without: tuple[float, Array]) -> dict[str, Any]:
    """Seconds with and without, and the difference of the outputs."""
    outputs = [np.asarray(output, np.float32) for _, output in (there, without)]
    difference = np.abs(outputs[0] - outputs[1]).max() / outputs[1].std()
    return {
        "trick": trick,
        "seconds": there[0],
        "without": without[0],
        "difference": float(difference),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'':46}{'s with':>9}{'without':>9}{'ratio':>7}  difference / std"]
    for row in rows:
        ratio = row["without"] / row["seconds"]
        difference = "another image" if row["difference"] is None else f"{row['difference']:.1e}"
        lines.append(
            f"{row['trick']:46}{row['seconds']:9.3f}{row['without']:9.3f}{ratio:7.2f}  {difference}"
        )
    return "\n".join(lines)
