"""Trains a task from a config.

python -m ssl_diffusion.train --config=configs/demo.py --workdir=DIR

Running the same command again goes on from the last checkpoint. In `workdir`: `config.json`,
`metrics.jsonl`, `tensorboard/`, `samples/*.png`, `checkpoints/`, and at the end `model/` (the
averaged weights as a model folder) and `summary.json`.
"""

import json
import logging
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from clu import parameter_overview
from ml_collections import ConfigDict, config_flags

from ssl_diffusion import cli
from ssl_diffusion.data.pipeline import training_batches
from ssl_diffusion.data.records import Records, open_records
from ssl_diffusion.data.sources import RECIPE
from ssl_diffusion.devices import shardings
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import sha256, write_json
from ssl_diffusion.training.checkpoint import Checkpoints, claim_workdir
from ssl_diffusion.training.logs import RunLog, read_metrics
from ssl_diffusion.training.state import TrainState, init_state, make_optimizer, make_train_step
from ssl_diffusion.training.tasks import Task
from ssl_diffusion.training.tasks.autoencoder import AutoencoderTask
from ssl_diffusion.training.tasks.denoiser import DenoiserTask
from ssl_diffusion.training.tasks.encoder import EncoderTask
from ssl_diffusion.weights.folder import WEIGHTS
from ssl_diffusion.weights.model import start_params

TASKS = {"denoiser": DenoiserTask, "autoencoder": AutoencoderTask, "encoder": EncoderTask}

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/demo.py or configs/demo.py:dit.", flag_values=FLAGS
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; the same folder resumes it.", flag_values=FLAGS
)


def main() -> None:
    """Reads the flags and trains."""
    if CONFIG.value is None or WORKDIR.value is None:
        raise InputError("needs --config=FILE.py and --workdir=DIR")
    # As it was typed, but for the folder: that is the user's own.
    arguments = [arg for arg in sys.argv[1:] if not arg.startswith(("--workdir", "-workdir"))]
    command = ["python", "-m", "ssl_diffusion.train", *arguments, "--workdir=DIR"]
    train(CONFIG.value, Path(WORKDIR.value), shlex.join(command))


def train(config: ConfigDict, workdir: Path, command: str = "train(config, workdir)") -> None:
    """Trains until `config.steps`, or goes on from the last checkpoint in `workdir`.

    `command` is written into the model folder, to say how it was made. Raises InputError, before
    anything compiles, for data, config or workdir that cannot be used.
    """
    # 1. What: records, task, and the workdir that belongs to them.
    _check_config(config)
    records = open_records(config.data.dir, config.data.get("instructions", ""))
    _check_records(config, records)
    task: Task = TASKS[config.task](config, records)
    source = records.source("train", task.fields)
    batches = training_batches(
        source,
        config.batch_size,
        config.seed,
        process=jax.process_index(),
        processes=jax.process_count(),
        workers=config.data.workers,
    )
    claim_workdir(workdir, config, records.metadata["recipe"])
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep_checkpoints)

    # 2. State: fresh or restored, replicated over the mesh; batches are split over it.
    rows, replicated = shardings()
    optimizer = make_optimizer(config)
    init = jax.jit(lambda: init_state(task, optimizer, config.seed), out_shardings=replicated)
    state = init()
    if checkpoints.latest() is not None:
        state, place = checkpoints.restore(state)
        batches.set_state(place)
    elif config.get("init_from"):
        params = start_params(
            config.init_from,
            config.model.architecture.to_dict(),
            config.diffusion.to_dict(),
            state.params,
        )
        params = jax.device_put(params, replicated)
        state = state.replace(params=params, ema=jax.tree.map(jnp.copy, params))
    start = int(state.step)
    done = workdir / "summary.json", workdir / "model" / "model.json"
    if start == config.steps and all(file.exists() for file in done):
        logging.info("%s is trained already (%d steps)", workdir, start)
        return
    logging.info("%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))

    # 3. Loop.
    step_fn = jax.jit(
        make_train_step(task, optimizer, config.seed, config.optimizer.ema_decay), donate_argnums=0
    )
    log = RunLog(workdir, start, config.steps, config.batch_size)
    try:
        for step in range(start + 1, config.steps + 1):
            batch = jax.make_array_from_process_local_data(rows, next(batches))
            state, metrics = step_fn(state, batch)
            log.advance(metrics)
            saves = _due(step, config.checkpoint_every, config.steps)
            if saves or _due(step, config.log_every, config.steps):
                log.metrics(step, metrics)
            if saves:
                log.flush()  # stops here rather than save a state whose loss is not finite
                with log.paused():
                    checkpoints.save(state, batches.get_state())
            if _due(step, config.sample_every, config.steps):
                with log.paused():
                    log.picture(step, task.picture(state.ema))
    finally:
        try:
            log.close()
        finally:
            checkpoints.wait()

    # 4. Result: the averaged weights as a model folder, and what they measure.
    _finish(config, workdir, command, records, task, state)


def _due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def _check_config(config: ConfigDict) -> None:
    positive = ("steps", "batch_size", "log_every", "checkpoint_every", "sample_every")
    positive += ("keep_checkpoints",)
    needed = ("task", "seed", *positive, "data", "model", "optimizer")
    if missing := [name for name in needed if name not in config]:
        raise InputError(f"the config lacks {', '.join(missing)}; see configs/demo.py")
    if config.task not in TASKS:
        raise InputError(f"config.task is {config.task!r}, expected one of {', '.join(TASKS)}")
    for name in positive:
        if config[name] < 1:
            raise InputError(f"config.{name} is {config[name]}, expected 1 or more")
    if config.batch_size % jax.device_count():
        raise InputError(
            f"batch size {config.batch_size} does not divide among {jax.device_count()} devices; "
            "set --config.batch_size to a multiple"
        )


def _check_records(config: ConfigDict, records: Records) -> None:
    """InputError if the records were not made by the recipe that the config tells."""
    recipe = records.metadata["recipe"]
    for name in RECIPE:
        if name in ("encoder", "autoencoder") and not config.data[name]:
            continue  # a task that reads images alone does not mind how they were encoded
        if recipe[name] != config.data.get(name):
            raise InputError(
                f"records in {records.folder} have {name} {recipe[name]!r}, the config "
                f"{config.data.get(name)!r}; prepare them with this config, in another folder"
            )


def _finish(
    config: ConfigDict,
    workdir: Path,
    command: str,
    records: Records,
    task: Task,
    state: TrainState,
) -> None:
    params = jax.device_get(state.ema)
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
