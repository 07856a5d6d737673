"""The files of the images that one command makes: which there are, and which are made already."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json
from ssl_diffusion.stitching.output import check_output, check_writable, numbered
from ssl_diffusion.stitching.reference import load_grid, save_grid
from ssl_diffusion.stitching.sweep import PROGRESS

FOLLOWS = ("grid_sha256", "seconds")  # of an image's settings: what follows from the others


class Job(NamedTuple):
    """One image.

    Attributes:
      number: of the sample.
      output: the image.
      grid: where its grid is kept, .npy.
    """

    number: int
    output: Path
    grid: Path | None

    @property
    def beside(self) -> Path:
        """Its settings."""
        return self.output.with_suffix(".json")

    @property
    def unfinished(self) -> Path:
        """The folder of the work on an image that does not fit the memory."""
        return self.output.with_name(f"{self.output.name}.unfinished")

    @property
    def begun(self) -> bool:
        """Whether a run was killed that worked there. Work on another image is refused by Sweep."""
        return (self.unfinished / PROGRESS).is_file()

    def is_made(self, described: dict[str, Any]) -> bool:
        """Whether the image is there, with these settings beside it, and the grid if asked for."""
        if not (self.output.exists() and self.beside.is_file()):
            return False
        if self.grid and not self.grid.exists():
            return False
        found = read_json(self.beside, "settings of an image")
        wanted = json.loads(json.dumps(described))  # as they come back: tuples are lists
        return isinstance(found, dict) and all(
            found.get(name) == wanted.get(name) for name in {*found, *wanted} - {*FOLLOWS}
        )

    def check(
        self, width: int, height: int, compression: str | None, overwrite: bool, goes_on: bool
    ) -> None:
        """Raises InputError unless all files can be written; those of a run that goes on may be
        there."""
        overwrite = overwrite or goes_on
        check_output(self.output, width, height, overwrite=overwrite, compression=compression)
        if self.beside.exists() and not overwrite:
            raise InputError(f"{self.beside} exists already; give --overwrite or another name")
        if self.grid and not self.grid.exists():
            check_writable(self.grid, overwrite)

    def keep_grid(self, grid: np.ndarray, overwrite: bool) -> None:
        """Writes the grid, if asked for.

        A run that goes on finds the grid that it saved. Raises InputError where another file is
        there: that is not its own.
        """
        if not self.grid:
            return
        if self.grid.exists() and np.array_equal(load_grid(self.grid), grid):
            return
        check_writable(self.grid, overwrite)
        save_grid(self.grid, grid)


def make_jobs(output: Path, grid: str | None, samples: int) -> list[Job]:
    """The images of a command; several have their numbers in their names.

    Raises InputError for a format that there is not.
    """
    saved = Path(grid) if grid else None
    if samples == 1:
        return [Job(0, output, saved)]
    return [
        Job(k, numbered(output, k), saved and saved.with_name(f"{saved.stem}-{k}{saved.suffix}"))
        for k in range(samples)
    ]
