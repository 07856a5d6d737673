"""Trains a task from a config.

python -m ssl_diffusion.train --config=configs/demo.py --workdir=DIR
python -m ssl_diffusion.train --config=configs/bracs.py:dit --plan=v5p:4x4x4

Running the same command again goes on from the last checkpoint, with any number of devices and
processes; SIGTERM saves one and exits with 0. In `workdir`: `config.json`, `metrics.jsonl`,
`tensorboard/`, `samples/*.png`, `checkpoints/`, `averages/` (snapshots of the averaged weights, for
`ssl_diffusion.average`) and at the end `model/` (one average as a model folder) and `summary.json`.

--multihost joins the other processes of the run (TPU pod, GKE, Slurm, Open MPI, or as
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say); all see the same `workdir`.
--plan compiles a step for TPU chips that are not at hand (needs libtpu, neither data nor workdir)
and prints what it takes.
"""

import json
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
from absl import flags
from clu import parameter_overview
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict, config_flags

from ssl_diffusion import cli
from ssl_diffusion.data.pipeline import batch_at, check_batches, training_batches
from ssl_diffusion.data.records import Records
from ssl_diffusion.devices import join_processes
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import sha256, write_json
from ssl_diffusion.rates import peak_tflops
from ssl_diffusion.training.averages import forget_snapshots, write_snapshot
from ssl_diffusion.training.checkpoint import Checkpoints
from ssl_diffusion.training.held_out import held_out_loss
from ssl_diffusion.training.logs import NonFinite, RunLog, read_metrics
from ssl_diffusion.training.plan import model_flop, plan
from ssl_diffusion.training.settings import check_config, open_record_sets
from ssl_diffusion.training.sharding import (
    by_rows,
    make_mesh,
    place,
    replicated,
    state_shardings,
    to_host,
)
from ssl_diffusion.training.state import (
    TrainState,
    init_state,
    make_train_step,
    no_totals,
    start_from,
)
from ssl_diffusion.training.stop import Stop, watched
from ssl_diffusion.training.tasks import Examples, Task
from ssl_diffusion.training.tasks.build import TASKS
from ssl_diffusion.training.workdir import alone_in, claim_workdir
from ssl_diffusion.weights.folder import WEIGHTS
from ssl_diffusion.weights.model import start_params

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/demo.py or configs/demo.py:dit.", flag_values=FLAGS
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; the same folder resumes it.", flag_values=FLAGS
)
MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "one of several processes that train together", flag_values=FLAGS
)
PLAN = flags.DEFINE_string(
    "plan", None, "TPU topology to compile for, as v5p:4x4x4; trains nothing", flag_values=FLAGS
)


def main() -> None:
    """Reads the flags, and trains or plans."""
    if CONFIG.value is None or not (WORKDIR.value or PLAN.value):
        raise InputError("needs --config=FILE.py and --workdir=DIR (or --plan=TOPOLOGY)")
    if PLAN.value:
        print(plan(CONFIG.value, PLAN.value))
        return
    if MULTIHOST.value:
        join_processes()
        if jax.process_index():
            logging.getLogger().setLevel(logging.WARNING)
    workdir = Path(WORKDIR.value)
    with watched() as stop, alone_in(workdir):
        train(CONFIG.value, workdir, as_typed(sys.argv), stop)


def as_typed(argv: Sequence[str]) -> str:
    """The command line as it was typed, but for the folder: that is the user's own."""
    arguments = [
        word
        for before, word in pairwise(argv)
        if not re.match("--?workdir(=|$)", word) and before not in ("--workdir", "-workdir")
    ]
    return shlex.join(["python", "-m", "ssl_diffusion.train", *arguments, "--workdir=DIR"])


def train(
    config: ConfigDict,
    workdir: Path,
    command: str = "train(config, workdir)",
    stop: Stop | None = None,
) -> None:
    """Trains until `config.steps`, or goes on from the last checkpoint in `workdir`.

    `command` is written into the model folder, to say how it was made; `stop` may end the run
    before. Raises InputError, before anything compiles, for data, config or workdir that cannot be
    used.
    """
    stop = stop or Stop()
    # 1. What: records, task, and the workdir that belongs to them.
    check_config(config, jax.device_count())
    mesh = make_mesh(config.mesh.fsdp)
    records, mixed = open_record_sets(config)
    task: Task = TASKS[config.task](config, records)
    sources = [(task.examples(each, "train"), weight) for each, weight in mixed]
    check_batches(sources, config.batch_size, config.seed, jax.process_count())
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    recipes = [each.metadata["recipe"] for each in (records, *dict(mixed))]
    claim_workdir(workdir, config, recipes, started=checkpoints.latest() is not None)

    # 2. State: fresh or restored, laid out over the mesh.
    state, start = first_state(task, config, mesh, checkpoints)
    frozen = place(task.frozen, jax.tree.map(lambda _: replicated(mesh), task.frozen))
    done = workdir / "summary.json", workdir / "model" / "model.json"
    if start == config.steps and all(file.exists() for file in done):
        logging.info("%s is trained already (%d steps)", workdir, start)
        return
    if start > config.steps:
        raise InputError(
            f"{workdir} has gone to step {start}, config.steps is {config.steps}; set it to more"
        )
    if jax.process_index() == 0:
        done[0].unlink(missing_ok=True)  # it tells launchers that nothing is left to do
        forget_snapshots(workdir / "averages", start)
    logging.info("%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))

    # 3. Loop: step, log, check the loss, evaluate and save, show; then the next batch.
    batches = training_batches(
        sources,
        config.batch_size,
        config.seed,
        first=start,
        process=jax.process_index(),
        processes=jax.process_count(),
        workers=config.data.workers,
    )
    step_fn = jax.jit(make_train_step(task, config, mesh), donate_argnums=(0, 1))
    fresh_totals = jax.jit(partial(no_totals, task, config), out_shardings=replicated(mesh))
    evaluate = held_out_loss(task, config, records, mesh)
    used, last = config.ema.sigma_rel.index(config.ema.used), config.steps
    flop, peak = model_flop(task, config.batch_size), peak_tflops() * jax.device_count()
    stopped = False
    with stop.saves(), checkpoints.safe_when_full():
        log = RunLog(workdir, start, last, config.batch_size, flop, peak)
        try:
            totals = fresh_totals()
            for step in range(start + 1, last + 1):
                with log.waiting():
                    rows = next(batches)
                batch = jax.make_array_from_process_local_data(by_rows(mesh), rows)
                state, totals = step_fn(state, totals, batch, frozen)
                log.advance(totals)
                stopped = stop.reached(step) and step < last
                keeps = config.ema.snapshot_every and _due(step, config.ema.snapshot_every, last)
                shows = _due(step, config.sample_every, last) and not stopped
                saves = stopped or _due(step, config.checkpoint_every, last)
                if keeps or shows or saves or _due(step, config.log_every, last):
                    log.metrics(step, totals)
                    totals = fresh_totals()
                if keeps or shows or saves:
                    log.flush()  # stops here rather than keep a state whose loss is not finite
                # The checkpoint comes last: a run that goes on from it lacks nothing before.
                if keeps:
                    with log.paused():
                        kept = to_host(state.averages)
                        if jax.process_index() == 0:
                            write_snapshot(workdir / "averages", step, kept, config.ema.sigma_rel)
                if shows:
                    with log.paused():
                        params = to_host(state.averages[used])
                        if jax.process_index() == 0:
                            log.picture(step, task.picture(params))
                if saves:
                    with log.paused():
                        fixed = frozen | state.carried
                        reached = None if stopped else evaluate(state.averages[used], fixed)
                        if reached:
                            log.held_out(step, reached)
                        checkpoints.save(step, state, {"batches": step}, config, reached)
                if stopped:
                    break
            log.flush()
        except NonFinite as error:
            raise _explained(error, config, workdir, checkpoints, sources) from None
        finally:
            batches.close()
            log.close()
            checkpoints.close()
    if stopped:
        logging.info(
            "stopped at step %d of %d, saved; the same command goes on", step, config.steps
        )
        return

    # 4. Result: the averaged weights as a model folder, and what they measure.
    params = to_host(state.averages[used])
    if jax.process_index() == 0:
        _finish(config, workdir, command, records, task, params)
    multihost_utils.sync_global_devices("finished")


def first_state(
    task: Task, config: ConfigDict, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[TrainState, int]:
    """(state on the mesh, its step): of the last checkpoint, of `config.init_from`, or fresh."""
    init = partial(init_state, task, config)
    shapes = jax.eval_shape(init)
    where = state_shardings(shapes, mesh)
    if checkpoints.latest() is not None:
        like = jax.tree.map(
            lambda leaf, there: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there),
            shapes,
            where,
        )
        state, place_in_data = checkpoints.restore(like)
        return state, place_in_data["batches"]
    state = jax.jit(init, out_shardings=where)()
    if config.get("init_from"):
        params = start_params(
            config.init_from,
            config.model.architecture.to_dict(),
            config.diffusion.to_dict(),
            to_host(state.params),
        )
        params = place(params, where.params)
        state = jax.jit(partial(start_from, task=task, config=config), out_shardings=where)(params)
    return state, 0


def _due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def _explained(
    error: NonFinite,
    config: ConfigDict,
    workdir: Path,
    checkpoints: Checkpoints,
    sources: Sequence[tuple[Examples, float]],
) -> InputError:
    """Says which records the batch held and what is left to go on from."""
    held = batch_at(sources, config.batch_size, config.seed, error.step - 1)
    examples = [sources[which][0].place(index) for which, index in held]
    file = workdir / "non_finite.json"
    if jax.process_index() == 0:
        write_json(file, {"step": error.step, "batch": examples})
    last = checkpoints.latest()
    kept = f"the checkpoint of step {last} is good" if last is not None else "none was saved yet"
    return InputError(
        f"{error}; {kept}. The batch held {'; '.join(examples[:2])}; and others, all in {file}. If "
        "they are sound, train in another workdir with a lower learning rate"
    )


def _finish(
    config: ConfigDict, workdir: Path, command: str, records: Records, task: Task, params: PyTree
) -> None:
    logged = read_metrics(workdir)
    last = logged[-10:]
    trained = {
        "command": command,
        "settings": json.loads(config.to_json()),
        "steps": config.steps,
        "batch_size": config.batch_size,
        "images_seen": config.steps * config.batch_size,
        "split_sha256": records.metadata["split_sha256"],
        "measured": task.measure(params),
    }
    task.export(params, workdir / "model", trained)
    rates = [line["images_per_second"] for line in logged if line["images_per_second"]]
    summary = {
        "steps": config.steps,
        "images_per_second": float(np.median(rates)) if rates else None,
        "final_loss": float(np.mean([line["loss"] for line in last])),
        "seconds": float(sum(line["seconds"] for line in logged)),
        "model_sha256": sha256(workdir / "model" / WEIGHTS),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "measured": trained["measured"],
    }
    write_json(workdir / "summary.json", summary)
    logging.info("%s", json.dumps(summary, indent=2))


if __name__ == "__main__":
    cli.run(main, FLAGS)
