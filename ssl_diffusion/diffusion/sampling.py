"""How a model is sampled: a solver, its steps, and the guidance along them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ssl_diffusion.diffusion.denoiser import Denoiser
from ssl_diffusion.diffusion.guidance import check_guidance, check_interval, guided_evaluations
from ssl_diffusion.diffusion.plans import Plan, check_solver, make_plan
from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.diffusion.timesteps import SPACINGS
from ssl_diffusion.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """A solver, its steps, and the guidance along them.

    Attributes:
      steps: of the solver, from noise to the clean end.
      guidance: scale w, 1 is none.
      solver: one of plans.SOLVERS.
      guidance_interval: the noise levels sigma / alpha that are guided, (low, high]; None is all.
      spacing: of the timesteps, one of timesteps.SPACINGS.

    Raises:
      InputError: an unknown solver or spacing; a guidance that is negative or not finite; an
        interval that is none.
    """

    steps: int
    guidance: float
    solver: str = "ddim"
    guidance_interval: tuple[float, float] | None = None
    spacing: str = "trailing"

    def __post_init__(self):
        check_solver(self.solver)
        check_guidance(self.guidance)
        check_interval(self.guidance_interval)
        if self.spacing not in SPACINGS:
            raise InputError(
                f"unknown spacing {self.spacing!r} of timesteps; expected one of "
                f"{', '.join(SPACINGS)}"
            )

    def plan(self, schedule: Schedule) -> Plan:
        """The numbers of all steps. Raises InputError for steps that the schedule has not."""
        return make_plan(self.solver, schedule, SPACINGS[self.spacing](schedule, self.steps))

    def denoisers(
        self, schedule: Schedule, plan: Plan, make: Callable[[float], Denoiser]
    ) -> list[Denoiser]:
        """The denoiser of each evaluation: guided inside the interval, plain outside.

        Args:
          schedule: the noise table.
          plan: from `plan`.
          make: the denoiser of a guidance scale, as `Model.denoiser`.
        """
        guided = guided_evaluations(schedule, plan.timesteps, self.guidance_interval).tolist()
        made = {on: make(self.guidance if on else 1.0) for on in set(guided)}
        return [made[on] for on in guided]


def read_sampling(settings: Mapping[str, Any]) -> Sampling:
    """From "sampling" of a model.json or a config; the others may lack."""
    interval = settings.get("guidance_interval")
    return Sampling(
        settings["steps"],
        settings["guidance"],
        settings.get("solver", "ddim"),
        None if interval is None else tuple(interval),
        settings.get("spacing", "trailing"),
    )
