"""The training objective in two halves, between which the network is called.

`Objective.draw` says what the network sees and should answer, `denoising_loss` how far off its
answer is. Both hold one number per example, for callers to mask and report.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ssl_diffusion.diffusion.prediction import KINDS, over_pixels, target, unknown_kind
from ssl_diffusion.diffusion.schedule import Schedule, make_schedule
from ssl_diffusion.diffusion.timestep_sampling import make_timestep_sampler
from ssl_diffusion.errors import InputError


class Noised(NamedTuple):
    """Examples as the network sees them, and what it should answer.

    Attributes:
      x: [b, h, w, c] the noisy latents.
      timestep: [b] of each, 0-based.
      target: [b, h, w, c] what the output should be.
      weight: [b] of each example's squared error.
    """

    x: Array
    timestep: Array
    target: Array
    weight: Array


@flax.struct.dataclass
class Objective:
    """What a denoiser is trained on; a pytree, which jitted functions may take as an argument.

    Attributes:
      schedule: the noise table.
      kind: what the output means, one of prediction.KINDS.
      timesteps: how an example's timestep is drawn.
      min_snr_gamma: see `min_snr_weight`; None weights all alike (Ho et al. 2020, eq. 14).
    """

    schedule: Schedule
    kind: str = flax.struct.field(pytree_node=False)
    timesteps: Any  # a TimestepSampler, or what JAX puts in its place
    min_snr_gamma: float | None = flax.struct.field(pytree_node=False)

    def draw(self, x0: Float[Array, "b h w c"], keys: Key[Array, " b"]) -> Noised:
        """Noise, timestep, target and weight of each example, float32.

        Args:
          x0: scaled latents.
          keys: one per example, so that what is drawn for it does not depend on its batch, on
            devices, or on how gradients are accumulated.
        """
        x0 = x0.astype(jnp.float32)

        def one(key: Array) -> tuple[Array, Array]:
            timestep_key, noise_key = jax.random.split(key)
            return self.timesteps(timestep_key), jax.random.normal(noise_key, x0.shape[1:])

        timestep, eps = jax.vmap(one)(keys)
        alpha, sigma = self.schedule.at(timestep)
        weight = min_snr_weight(self.kind, alpha, sigma, self.min_snr_gamma)
        x = add_noise(x0, eps, alpha, sigma)
        return Noised(x, timestep, target(self.kind, x0, eps, alpha, sigma), weight)


def denoising_loss(output: Float[Array, "b h w c"], noised: Noised) -> Float[Array, " b"]:
    """Weighted mean squared error of the network's output, per example, float32.

    Args:
      output: what the network gave for `noised.x` and `noised.timestep`.
      noised: from `Objective.draw`.
    """
    error = output.astype(jnp.float32) - noised.target
    return noised.weight * jnp.mean(error**2, axis=(1, 2, 3))


def add_noise(
    x0: Float[Array, "b h w c"],
    eps: Float[Array, "b h w c"],
    alpha: Float[Array, " b"],
    sigma: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
    """x_t = alpha x0 + sigma eps (Ho et al. 2020, eq. 4)."""
    return over_pixels(alpha) * x0 + over_pixels(sigma) * eps


def min_snr_weight(
    kind: str, alpha: Float[Array, " b"], sigma: Float[Array, " b"], gamma: float | None
) -> Float[Array, " b"]:
    """Weight of the squared error of an output, by min-SNR (Hang et al. 2023, arXiv 2303.09556).

    Sec. 3.4: an error of x0 weighs min(SNR, gamma), SNR = alpha^2 / sigma^2. Since x is given, an
    error d of the output is an error e of x0, by the formulas of `prediction` and but for the sign:

        eps    alpha e = sigma d                      x0     e = d
        v      (alpha^2 + sigma^2) e = sigma d        flow   (alpha + sigma) e = sigma d

    The output's error therefore weighs min(SNR, gamma) (e / d)^2. In pure noise that is 1 of "eps"
    and 0 of the others: they learn nothing there.

    Args:
      kind: one of prediction.KINDS.
      alpha: signal level of each example.
      sigma: noise level of each example, not 0 where alpha is.
      gamma: the largest weight of x0; the paper's is 5. None is weight 1 of any kind's output.

    Raises:
      InputError: unknown kind.
    """
    if gamma is None:
        return jnp.ones_like(alpha)
    signal, noise = alpha**2, sigma**2
    # Of a division by 0 only the infinity is seen, and the minimum is the other number.
    match kind:
        case "eps":  # min(SNR, gamma) / SNR in the paper
            return jnp.minimum(1.0, gamma * noise / signal)
        case "x0":  # min(SNR, gamma)
            return jnp.minimum(signal / noise, gamma)
        case "v":  # min(SNR, gamma) / (SNR + 1), where alpha^2 + sigma^2 = 1
            return jnp.minimum(signal, gamma * noise) / (signal + noise) ** 2
        case "flow":
            return jnp.minimum(signal, gamma * noise) / (alpha + sigma) ** 2
    raise unknown_kind(kind)


def check_process(schedule: Schedule, kind: str) -> None:
    """Raises InputError for a schedule and a prediction that cannot be trained together.

    They are a schedule that ends in pure noise and "eps", and any unknown kind.
    """
    if kind not in KINDS:
        raise unknown_kind(kind)
    if kind == "eps" and np.asarray(schedule.alpha)[-1] == 0:
        raise InputError(
            "prediction 'eps' with a schedule that ends in pure noise, where eps is the input "
            "itself and says nothing of x0: sampling, which starts there, would have nothing to go "
            "by; train with prediction v, x0 or flow, or with a schedule that keeps some signal "
            "(zero_terminal_snr false, and not 'flow')"
        )


def read_objective(
    diffusion_settings: Mapping[str, Any], objective_settings: Mapping[str, Any]
) -> Objective:
    """From "diffusion" and "objective" of a config.

    Args:
      diffusion_settings: {"schedule": `make_schedule`'s arguments, "prediction": kind}.
      objective_settings: {"timesteps": `make_timestep_sampler`'s settings, "min_snr_gamma": number
        or None}; left out they are uniform and None.

    Raises:
      InputError: an entry that is missing or unknown; what `make_schedule`, `check_process` and
        `make_timestep_sampler` refuse; a gamma that is not above 0.
    """
    _check_entries("diffusion", diffusion_settings, {"schedule", "prediction"})
    _check_entries("objective", objective_settings, {"timesteps", "min_snr_gamma"})
    for entry in ("schedule", "prediction"):
        if entry not in diffusion_settings:
            raise InputError(f"diffusion without {entry}; add it")
    gamma = objective_settings.get("min_snr_gamma")
    number = isinstance(gamma, int | float) and math.isfinite(gamma)
    if gamma is not None and not (number and gamma > 0):
        raise InputError(
            f"objective.min_snr_gamma {gamma!r}; expected a number above 0 (5 in the paper), or "
            "None, which weights all alike"
        )
    schedule = make_schedule(**diffusion_settings["schedule"])
    kind = diffusion_settings["prediction"]
    check_process(schedule, kind)
    timesteps = objective_settings.get("timesteps", {"name": "uniform"})
    sampler = make_timestep_sampler(timesteps, schedule)
    return Objective(schedule, kind, sampler, None if gamma is None else float(gamma))


def _check_entries(section: str, settings: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(settings.keys() - known):
        raise InputError(
            f"{section} with {', '.join(unknown)}; expected {', '.join(sorted(known))}"
        )
