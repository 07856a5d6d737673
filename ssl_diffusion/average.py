"""Makes the model of another average of its training, after the training.

python -m ssl_diffusion.average --workdir=DIR --sigma_rel=0.08
python -m ssl_diffusion.average --workdir=DIR --sigma_rel=0.05,0.1,0.15 --step=200000

DIR is a workdir of `train`: from the snapshots in `averages/` a copy of `model/` with other weights
is made, DIR/model_0.080, for each --sigma_rel. That is the length of the average as a share of the
training: 0.05 follows the last tenth, 0.15 half of it (Karras et al. 2024, arXiv 2312.02696,
sec. 3). Lengths between the kept ones, and a little beyond, are as good as if they had been kept;
the line in the log and `trained.average` in model.json tell how closely the profile is met.
"""

import contextlib
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from absl import flags
from flax import traverse_util
from jaxtyping import Float
from tqdm import tqdm

from ssl_diffusion import cli
from ssl_diffusion.errors import InputError
from ssl_diffusion.training.averages import (
    Snapshot,
    fit_error,
    gamma_of,
    profile_name,
    read_snapshots,
    solve_weights,
)
from ssl_diffusion.weights.folder import (
    NEEDED,
    SPEC,
    kind_of,
    read_arrays,
    read_spec,
    write_model,
)
from ssl_diffusion.weights.safetensors_file import FLOATS, read_tensors

LARGE_ERROR = 0.1  # of the profile: off by 4 % of the way from the average to the last parameters

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder of a run of train", required=True, flag_values=FLAGS
)
SIGMA_REL = flags.DEFINE_list(
    "sigma_rel",
    None,
    "length of the average as a share of the training, or several: 0.05,0.1",
    required=True,
    flag_values=FLAGS,
)
STEP = flags.DEFINE_integer(
    "step",
    None,
    "as if the training had ended there; one with a snapshot, by default the last",
    lower_bound=1,
    flag_values=FLAGS,
)
OUTPUT = flags.DEFINE_string(
    "output", None, "model folder to write; WORKDIR/model_SIGMA_REL by default", flag_values=FLAGS
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace an older model", flag_values=FLAGS)


def main() -> None:
    """Reads the flags; averages."""
    try:
        sigma_rels = [float(text) for text in SIGMA_REL.value or [""]]
    except ValueError:
        raise InputError(
            f"--sigma_rel={','.join(SIGMA_REL.value)}; expected numbers, as 0.05,0.1"
        ) from None
    workdir = Path(WORKDIR.value)
    outputs = {value: workdir / f"model_{profile_name(value)}" for value in sigma_rels}
    if OUTPUT.value:
        if len(outputs) != 1:
            raise InputError("--output names one folder; leave it out with several --sigma_rel")
        outputs = {sigma_rels[0]: Path(OUTPUT.value)}
    average(workdir, outputs, STEP.value, overwrite=OVERWRITE.value)


def average(
    workdir: Path, outputs: Mapping[float, Path], step: int | None = None, overwrite: bool = False
) -> None:
    """Writes the model of each average, by its sigma_rel, at `step` (None: the last snapshot's).

    The snapshots are read once, tensor by tensor; the sums lie in files until they are written.
    Raises InputError, before anything is read, for what cannot be averaged.
    """
    for output in outputs.values():
        _check_output(output, overwrite)
    model = workdir / "model"
    if not (model / SPEC).is_file() and (workdir / "averages").is_dir():
        raise InputError(
            f"no model in {model}: the training has not come to its end; run it again first"
        )
    if (kind := kind_of(model)) not in NEEDED:
        raise InputError(f"{model / SPEC} describes a {kind!r} model, expected {', '.join(NEEDED)}")
    spec, arrays = read_spec(model, kind), read_arrays(model)
    snapshots, step = _snapshots(workdir, step)
    pairs = [(snapshot.step, gamma_of(snapshot.sigma_rel)) for snapshot in snapshots]
    weights = np.stack([solve_weights(pairs, step, gamma_of(value)) for value in outputs])
    # A kept average is one snapshot: the others need not be read.
    read = [i for i, column in enumerate(weights.T) if column.any()]
    tensors = _open([snapshots[i] for i in read], {n: a.shape for n, a in arrays.items()})
    with contextlib.ExitStack() as stack:
        files = []
        for output in outputs.values():
            output.absolute().parent.mkdir(parents=True, exist_ok=True)
            files.append(stack.enter_context(tempfile.TemporaryFile(dir=output.absolute().parent)))
        _write_sums(tensors, weights[:, read], files)
        for (sigma_rel, output), file, row in zip(outputs.items(), files, weights, strict=True):
            how = {
                "sigma_rel": sigma_rel,
                "step": step,
                "snapshots": int(np.count_nonzero(row)),
                "residual": fit_error(pairs, row, step, gamma_of(sigma_rel)),
            }
            # What was measured was measured with other weights.
            trained = {k: v for k, v in spec.get("trained", {}).items() if k != "measured"}
            params = traverse_util.unflatten_dict(_mapped(file, tensors[0]), sep="/")
            parts = {part.name: part for part in model.iterdir() if (part / SPEC).is_file()}
            write_model(output, spec | {"trained": trained | {"average": how}}, params, parts)
            _report(output, how)


def _report(output: Path, how: Mapping[str, float]) -> None:
    logging.info(
        "%s: sigma_rel %s at step %d from %d averages, relative error of the profile %.1e",
        output,
        profile_name(how["sigma_rel"]),
        how["step"],
        how["snapshots"],
        how["residual"],
    )
    if how["residual"] > LARGE_ERROR:
        logging.warning("the error is large: choose a length between those that were kept")


def _check_output(output: Path, overwrite: bool) -> None:
    """InputError for what is there, unless it is an older model that may be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{output} exists already; give --overwrite or another --output")
    if not (output / SPEC).is_file():
        raise InputError(f"{output} is no model folder, so it is not replaced; give another path")


def _snapshots(workdir: Path, step: int | None) -> tuple[list[Snapshot], int]:
    """The snapshots up to `step` or to the last, and that step. InputError if there is none."""
    folder = workdir / "averages"
    snapshots = read_snapshots(folder)
    if not snapshots:
        raise InputError(f"no snapshots in {folder}; give the --workdir of a run that wrote some")
    steps = sorted({snapshot.step for snapshot in snapshots})
    step = step or steps[-1]
    if step > steps[-1]:
        raise InputError(f"--step={step} is beyond the last snapshot; give up to {steps[-1]}")
    if step not in steps:  # tried: without what came last the profile is off by a third or more
        nearest = min(steps, key=lambda other: abs(other - step))
        raise InputError(f"--step={step} has no snapshot in {folder}; the nearest is {nearest}")
    return [snapshot for snapshot in snapshots if snapshot.step <= step], step


def _open(
    snapshots: Sequence[Snapshot], shapes: Mapping[str, tuple[int, ...]]
) -> list[dict[str, np.ndarray]]:
    """The model's tensors in each snapshot, mapped, by their names in the model.

    A model may be a part of what was trained: its names then follow one prefix. Raises InputError
    for snapshots that do not hold the model, or hold it twice.
    """
    opened = [read_tensors(snapshot.file) for snapshot in snapshots]
    first = next(iter(shapes))
    prefixes = [name.removesuffix(first) for name in opened[0] if f"/{name}".endswith(f"/{first}")]
    fits = [prefix for prefix in prefixes if _fits(opened[0], prefix, shapes)]
    if len(fits) != 1:
        found = f"under {' and '.join(map(repr, sorted(fits)))}" if fits else "nowhere"
        raise InputError(
            f"{snapshots[0].file} holds the tensors of model/ {found}, expected them once; "
            "give the --workdir of one run"
        )
    for snapshot, tensors in zip(snapshots, opened, strict=True):
        if not _fits(tensors, fits[0], shapes):
            raise InputError(
                f"{snapshot.file} does not hold the tensors of model/ as {snapshots[0].file} does; "
                "it is of another run: move its folder away"
            )
    return [{name: tensors[fits[0] + name] for name in shapes} for tensors in opened]


def _fits(
    tensors: Mapping[str, np.ndarray], prefix: str, shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    found = {name: tensors.get(prefix + name) for name in shapes}
    return all(
        array is not None and array.shape == shapes[name] and array.dtype in FLOATS
        for name, array in found.items()
    )


def _write_sums(
    tensors: Sequence[Mapping[str, np.ndarray]],
    weights: Float[np.ndarray, "averages snapshots"],
    files: Sequence[IO[bytes]],
) -> None:
    """Writes the weighted sums, float32, one average to each file; only one tensor is in memory."""
    for name, like in tqdm(tensors[0].items(), desc="average", unit="tensor"):
        sums = [np.zeros(like.shape) for _ in files]
        for snapshot, column in zip(tensors, weights.T, strict=True):
            for total, weight in zip(sums, column, strict=True):
                if weight:
                    total += np.multiply(snapshot[name], weight, dtype=np.float64)
        for file, total in zip(files, sums, strict=True):
            file.write(total.astype(np.float32).tobytes())


def _mapped(file: IO[bytes], like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that `_write_sums` wrote to the file."""
    file.flush()
    flat, arrays, start = np.memmap(file, np.float32, "r"), {}, 0
    for name, array in like.items():
        size = math.prod(array.shape)
        arrays[name], start = flat[start : start + size].reshape(array.shape), start + size
    return arrays


if __name__ == "__main__":
    cli.run(main, FLAGS)
