"""How fast a config's training step runs, against a matrix product of the same machine."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_diffusion.benchmarks.data import WARM_UP
from ssl_diffusion.data.pipeline import Batches, training_batches
from ssl_diffusion.data.records import Source, open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.rates import PRODUCTS, chip_of, product_rate, repeated
from ssl_diffusion.training.plan import GIB, model_flop
from ssl_diffusion.training.settings import check_config
from ssl_diffusion.training.sharding import by_rows, make_mesh, replicated, state_shardings
from ssl_diffusion.training.state import (
    Totals,
    TrainState,
    init_state,
    make_train_step,
    no_totals,
)
from ssl_diffusion.training.tasks import Batch, Task
from ssl_diffusion.training.tasks.build import TASKS

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # XLA's word for it, while it compiles and while it runs


class Training:
    """The step that `train` compiles, on random data, and the state that every step donates.

    Attributes:
      state, totals: after the steps so far.
      batch: random data of the task's shapes, by rows over the devices.
      memory: bytes on each device while a step runs, as the compiler counts them.
    """

    def __init__(self, task: Task, config: ConfigDict, mesh: Mesh, state: TrainState):
        self.state = state
        fresh_totals = jax.jit(partial(no_totals, task, config), out_shardings=replicated(mesh))
        self.totals: Totals = fresh_totals()
        self.batch: Batch = drawn(task.batch(config.batch_size), by_rows(mesh))
        self._frozen = drawn(jax.eval_shape(lambda: task.frozen), replicated(mesh))
        step = jax.jit(make_train_step(task, config, mesh), donate_argnums=(0, 1))
        given = self.state, self.totals, self.batch, self._frozen
        self._compiled = step.lower(*given).compile()
        memory = self._compiled.memory_analysis()
        self.memory = (
            memory.argument_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
        )

    def step(self, batch: Batch) -> Totals:
        """One step."""
        self.state, self.totals = self._compiled(self.state, self.totals, batch, self._frozen)
        return self.totals


def measure(
    config: ConfigDict,
    batches: Sequence[int],
    dtypes: Sequence[str],
    records: str | None,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """One row for each number format and batch (of all devices): seconds per step, rates, memory.

    FLOP are those of `model_flop`. `dtypes` are of the arithmetic, the config's own where there are
    none. With `records`, a folder, its training split then feeds steps in the order of `train` for
    so many `seconds`: `data_wait` is the share of them in which the devices had nothing to do, and
    `fed_seconds` a step's. Where a batch does not fit in memory, `fits` is False and what was to be
    measured is None.

    Raises InputError, before anything compiles, for a config, batch or records that cannot be used.
    """
    if "policy" in config.get("model", {}):
        dtypes = dtypes or [config.model.policy.compute]
    elif dtypes:
        raise InputError(
            f"--dtypes: task {config.get('task')!r} has one number format; leave it out"
        )
    else:
        dtypes = ["float32"]
    cases = {dtype: [_case(config, dtype, batch) for batch in batches] for dtype in dtypes}
    mesh = make_mesh(config.mesh.fsdp)
    first, task = cases[dtypes[0]][0]
    source = _source(records, task, max(batches)) if records else None
    # Number format and batch change neither the state nor how it begins.
    init = partial(init_state, task, first)
    where = state_shardings(jax.eval_shape(init), mesh)
    fresh_state = jax.jit(init, out_shardings=where)
    bar = tqdm(total=len(dtypes) * (1 + len(batches)), unit="measurement")
    for dtype in dtypes:
        bar.set_description(f"product {dtype}")
        products = {str(size): product_rate(size, dtype) for size in PRODUCTS}
        bar.update()
        for case, task in cases[dtype]:
            bar.set_description(f"{dtype} batch {case.batch_size}")
            row = _described(case, task, dtype, mesh) | {"product_tflops": products}
            yield row | _measured(row, case, task, mesh, fresh_state, source, seconds)
            bar.update()
    bar.close()


def drawn(shapes: PyTree, where: NamedSharding) -> PyTree:
    """Random arrays of these shapes on the devices: bits as whole numbers, else normal."""

    def draw(leaf: jax.ShapeDtypeStruct) -> Array:
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        random = jax.random.bits if whole else jax.random.normal
        made = partial(random, jax.random.key(0), leaf.shape, leaf.dtype)
        return jax.jit(made, out_shardings=where)()

    return jax.tree.map(draw, shapes)


def fed(training: Training, batches: Batches, mesh: Mesh, seconds: float) -> tuple[float, float]:
    """(share of the time that the devices stood still for want of data, seconds per step).

    Of so many seconds of steps in the order of `train`: the clock starts after the first, and the
    host is one step ahead of the devices, so that it may wait for a batch while they still work.
    What was read ahead until then is thrown away.
    """
    for _ in range(WARM_UP):
        next(batches)
    began, waited, steps = 0.0, 0.0, -1

    def end_of(step: Any) -> float:
        jax.block_until_ready(step)
        return time.perf_counter()

    with ThreadPoolExecutor(1) as watch:
        running: Future[float] | None = None
        while steps < 1 or time.perf_counter() - began < seconds:
            before = time.perf_counter()
            rows = next(batches)
            if running and running.done():
                waited += time.perf_counter() - max(before, running.result())
            batch = jax.make_array_from_process_local_data(by_rows(mesh), rows)
            totals = training.step(batch)
            if running is None:
                jax.block_until_ready(totals)
                began = time.perf_counter()
            else:
                running.result()
            # A number of its own is waited for: the next step takes the totals.
            running = watch.submit(end_of, totals["bad_step"] + 0)
            steps += 1
        taken = running.result() - began
    return waited / taken, taken / steps


def _case(config: ConfigDict, dtype: str, batch: int) -> tuple[ConfigDict, Task]:
    config = config.copy_and_resolve_references()
    with config.unlocked():  # it may name no batch
        config.batch_size = batch
    if "policy" in config.get("model", {}):
        config.model.policy.compute = dtype
    check_config(config, jax.device_count())
    return config, TASKS[config.task](config, None)


def _source(folder: str, task: Task, largest: int) -> Source:
    """The training split; InputError if it is not what the task reads, or has too few records."""
    source = open_records(folder).source("train", task.fields, raw=True)
    expected = {name: [*one.shape[1:]] for name, one in task.batch(1).items()}
    found = {name: [*value.shape] for name, value in source[0].items()}
    if found != expected:
        raise InputError(
            f"records in {folder} hold {found}, the config says {expected}; give records that were "
            "prepared with it"
        )
    if largest > len(source):
        raise InputError(
            f"--batches: {largest} of the {len(source)} training records in {folder}; expected at "
            "most all of them"
        )
    return source


def _described(config: ConfigDict, task: Task, dtype: str, mesh: Mesh) -> dict[str, Any]:
    params = jax.eval_shape(task.init, jax.random.key(0))
    return {
        "task": config.task,
        "network": config.model.architecture.get("name"),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "mesh": dict(mesh.shape),
        "accumulation": config.accumulation,
        "remat": config.model.get("remat", False),
        "dtype": dtype,
        "batch": config.batch_size,
        "tflop": model_flop(task, config.batch_size) / 1e12,
    }


def _measured(
    row: dict[str, Any],
    config: ConfigDict,
    task: Task,
    mesh: Mesh,
    fresh_state: Callable[[], TrainState],
    source: Source | None,
    seconds: float,
) -> dict[str, Any]:
    names = "seconds images_per_second images_per_second_per_device tflops of_product of_peak"
    nothing = dict.fromkeys([*names.split(), "memory_gib", "peak_gib", "data_wait", "fed_seconds"])
    before = _peak_bytes()
    try:
        training = Training(task, config, mesh, fresh_state())
        taken = repeated(training.step, training.batch)
        waited = (None, None)
        if source:
            reader = training_batches(
                [(source, 1.0)], config.batch_size, config.seed, workers=config.data.workers
            )
            try:
                waited = fed(training, reader, mesh, seconds)
            finally:
                reader.close()
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        return nothing | {"fits": False}
    peak, chip = _peak_bytes(), chip_of(jax.devices()[0])
    rate, images = row["tflop"] / taken, config.batch_size / taken
    return {
        "fits": True,
        "seconds": taken,
        "images_per_second": images,
        "images_per_second_per_device": images / mesh.size,
        "tflops": rate,
        "of_product": rate / max(row["product_tflops"].values()),
        "of_peak": rate / (chip.tflops * mesh.size) if chip else None,
        "memory_gib": training.memory / GIB,
        # Of the process: what an earlier row took and this one did not is none of its own.
        "peak_gib": peak / GIB if peak > before else None,
        "data_wait": waited[0],
        "fed_seconds": waited[1],
    }


def _peak_bytes() -> int:
    """The most that was ever allocated on one device; 0 where it does not count (a CPU)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(each.get("peak_bytes_in_use", 0) for each in stats)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    one = rows[0]
    mesh = " x ".join(f"{axis} {size}" for axis, size in one["mesh"].items())
    lines = [
        f"{one['task']} {one['network'] or ''} of {one['parameters'] / 1e6:.1f} M parameters, mesh "
        f"{mesh}, accumulation {one['accumulation']}, remat {one['remat']}",
        f"{'type':10}{'batch':>6}{'s/step':>9}{'images/s':>10}{'/device':>9}{'TFLOP/s':>9}"
        f"{'product':>9}{'ratio':>7}{'of peak':>9}{'GiB':>7}{'peak GiB':>10}{'data wait':>11}",
    ]
    for row in rows:
        line = f"{row['dtype']:10}{row['batch']:6}"
        if not row["fits"]:
            lines.append(f"{line}  does not fit in memory")
            continue
        lines.append(
            f"{line}{row['seconds']:9.4f}{row['images_per_second']:10.2f}"
            f"{row['images_per_second_per_device']:9.2f}{row['tflops']:9.3f}"
            f"{max(row['product_tflops'].values()):9.3f}{row['of_product']:7.2f}"
            f"{_or_dash(row['of_peak'], '9.2f')}{row['memory_gib']:7.2f}"
            f"{_or_dash(row['peak_gib'], '10.2f')}{_or_dash(row['data_wait'], '11.1%')}"
        )
    return "\n".join(lines)


def _or_dash(value: float | None, form: str) -> str:
    return f"{'-':>{form.split('.')[0]}}" if value is None else f"{value:{form}}"
