"""What a step takes on chips that are not at hand: compiled ahead of time for their topology."""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_diffusion.errors import InputError
from ssl_diffusion.rates import Chip, chip_of, matmul_flop
from ssl_diffusion.training.collectives import collective_bytes
from ssl_diffusion.training.settings import check_config
from ssl_diffusion.training.sharding import by_rows, make_mesh, replicated, state_shardings
from ssl_diffusion.training.state import init_state, make_train_step, no_totals
from ssl_diffusion.training.tasks import Task
from ssl_diffusion.training.tasks.build import TASKS

GIB = 2**30
USABLE = 0.98  # of a chip's memory; the rest is the runtime's
# What libtpu asks the machine it runs on, and warns of where there is no TPU. Several programs may
# load it at once, for none of them runs anything.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Of the two ways in which the compiler says how much memory is wanted, one counts the arguments.
WANTED_IN_ALL = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", re.IGNORECASE)
WANTED_INSIDE = re.compile(r"HLO temporaries \(([\d.]+)([KMGT])\)")


class Step(NamedTuple):
    """A step that was compiled, per chip.

    Attributes:
      batch_size: of all chips together.
      state: bytes by kind: parameters, moments, averages.
      batch: bytes of a batch.
      inside: bytes that the program takes beside its arguments: gradients, activations, gathered
        parameters, work space.
      flop: of the products and convolutions, recomputation counted.
      collectives: bytes that leave the chip, by kind of operation.
      fits: whether the compiler found room; if not, only `inside` is known, as it says.
    """

    batch_size: int
    state: Mapping[str, int]
    batch: int
    inside: int
    flop: float
    collectives: Mapping[str, float]
    fits: bool

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return sum(self.state.values()) + self.batch + self.inside

    @property
    def traffic(self) -> int:
        """Bytes to and from memory, at least: all that lies there is read once and written once."""
        return 2 * self.memory


def model_flop(task: Task, count: int) -> int:
    """FLOP of the products and convolutions of a step on `count` examples, forward and backward.

    What a network with remat computes a second time is counted.
    """
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
    params = jax.eval_shape(task.init, jax.random.key(0))

    def total(params: PyTree, frozen: PyTree, batch: PyTree, keys: jax.Array) -> jax.Array:
        return task.loss(params, frozen, batch, keys)[0].sum()

    frozen = jax.eval_shape(lambda: task.frozen) | jax.eval_shape(task.carried, params)
    return matmul_flop(
        jax.make_jaxpr(jax.grad(total))(params, frozen, task.batch(count), keys).jaxpr
    )


def plan(config: ConfigDict, name: str) -> str:
    """Compiles a step of `config` for the TPU topology `name`, as "v5p:4x4x4"; returns a report.

    Twice, at the config's batch and at half of it (or less, until one fits): memory grows with the
    batch in a straight line, from which the largest batch follows. Raises InputError for a topology
    that is not known, and for a config that does not fit it.
    """
    for variable, value in NO_TPU.items():
        os.environ.setdefault(variable, value)
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # of many types: no libtpu, no such topology
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"--plan={name} cannot be compiled for ({reason}); give a TPU topology as v5e:4x4 or "
            "v5p:2x2x4, and install libtpu (pip install 'jax[tpu]>=0.10,<0.13')"
        ) from None
    chip = chip_of(devices[0])
    if chip is None:
        raise InputError(f"--plan={name}: nothing is known of {devices[0].device_kind}")
    check_config(config, len(devices))
    try:
        mesh = make_mesh(config.mesh.fsdp, devices)
    except (AssertionError, NotImplementedError) as error:
        raise InputError(
            f"--plan={name}: its chips make no mesh with config.mesh.fsdp {config.mesh.fsdp} "
            f"({error}); set it to a side of the topology, or give another topology"
        ) from None
    task = TASKS[config.task](config, None)
    jax.config.update("jax_enable_compilation_cache", False)  # without a TPU it cannot be read
    least = len(devices) * config.accumulation
    with tqdm(total=2, desc=f"compile for {name}", unit="program") as bar:
        step = compile_step(task, config, mesh, config.batch_size)
        bar.update()
        half = config.batch_size // 2 // least * least
        other = compile_step(task, config, mesh, half) if half else None
        while other and not (step.fits or other.fits) and half >= 2 * least:
            half = half // 2 // least * least
            step, other = other, compile_step(task, config, mesh, half)
        bar.update()
    return report(config, name, chip, mesh, step, other)


def compile_step(task: Task, config: ConfigDict, mesh: Mesh, batch_size: int) -> Step:
    """Compiles the training step on `batch_size` examples for the devices of `mesh`."""
    config = config.copy_and_resolve_references()
    config.batch_size = batch_size
    shapes = jax.eval_shape(lambda: init_state(task, config))
    state = _described(shapes, state_shardings(shapes, mesh))
    totals = _described(jax.eval_shape(lambda: no_totals(task, config)), replicated(mesh))
    batch = _described(task.batch(batch_size), by_rows(mesh))
    frozen = _described(jax.eval_shape(lambda: task.frozen), replicated(mesh))
    kinds = {
        "parameters": _bytes((state.params, frozen, state.carried)),
        "moments": _bytes(state.opt_state),
        "averages": _bytes(state.averages),
    }
    step = jax.jit(make_train_step(task, config, mesh), donate_argnums=(0, 1))
    flop = model_flop(task, batch_size) / mesh.size
    lowered = step.lower(state, totals, batch, frozen)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        inside = _wanted(str(error), sum(kinds.values()) + _bytes(batch))
        if inside is None:
            raise
        return Step(batch_size, kinds, _bytes(batch), inside, flop, {}, False)
    memory = compiled.memory_analysis()
    inside = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    moved = collective_bytes(compiled.as_text())
    return Step(batch_size, kinds, _bytes(batch), inside, flop, moved, True)


def report(
    config: ConfigDict, name: str, chip: Chip, mesh: Mesh, step: Step, other: Step | None
) -> str:
    """The plan as text."""
    chips = mesh.size
    room = USABLE * chip.memory_gib * GIB
    parameters = jax.eval_shape(TASKS[config.task](config, None).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    lines = [
        f"{name}: {chips} chips, mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}, "
        f"batch {step.batch_size} ({step.batch_size / chips:g} a chip, accumulation "
        f"{config.accumulation})",
        f"{'parameter count':20}{count / 1e6:10.1f} M",
    ]
    for kind, size in [*step.state.items(), ("batch", step.batch), ("inside a step", step.inside)]:
        lines.append(f"{kind:20}{size / GIB:10.2f} GiB a chip")
    verdict = "fits" if step.fits and step.memory <= room else "does not fit"
    lines.append(f"{'memory':20}{step.memory / GIB:10.2f} of {room / GIB:.1f} GiB: {verdict}")
    lines.append(f"{'FLOP':20}{step.flop / 1e12:10.2f} TFLOP a chip and step")
    if step.fits:
        seconds = {
            "matrix units": step.flop / chip.tflops / 1e12,
            "memory": step.traffic / chip.memory_gbs / 1e9,
            "links": sum(step.collectives.values()) / chip.link_gbs / 1e9,
        }
        for kind, moved in step.collectives.items():
            lines.append(f"{kind:20}{moved / 1e9:10.3f} GB leave a chip in a step")
        lines += [f"{f'time by {n}':20}{1e3 * each:10.1f} ms" for n, each in seconds.items()]
        bound = max(seconds.values())
        lines.append(
            f"{'at best':20}{1e3 * bound:10.1f} ms a step, "
            f"{step.batch_size * 86400 / bound / 1e6:.1f} M images a day"
        )
    largest = largest_batch(step, other, room, chips * config.accumulation)
    lines.append(f"{'largest batch':20}{largest if largest is not None else 'unknown':>10}")
    if other is not None:
        through = " and ".join(f"{size}" for size in sorted((step.batch_size, other.batch_size)))
        lines[-1] += f", by the line through batches of {through}"
    return "\n".join(lines)


def largest_batch(step: Step, other: Step | None, room: float, least: int) -> int | None:
    """The largest batch that fits, a multiple of `least`, by the line through the two steps.

    None where there is but one. 0 if nothing fits.
    """
    if other is None:
        return None
    per_example = (step.memory - other.memory) / (step.batch_size - other.batch_size)
    fixed = step.memory - per_example * step.batch_size
    if per_example <= 0:  # what is fixed hides the batch: at least what was compiled fits
        return max((s.batch_size for s in (step, other) if s.fits), default=0)
    return max(0, int((room - fixed) / per_example) // least * least)


def _wanted(message: str, arguments: int) -> int | None:
    """Bytes inside a step, from the compiler's error that they are too many; None if it is another.

    `arguments` is the bytes of the state and the batch.
    """
    for pattern, counted in ((WANTED_INSIDE, 0), (WANTED_IN_ALL, arguments)):
        if found := pattern.search(message):
            return int(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2].upper()))) - counted
    return None


def _described(shapes: PyTree, where: Any) -> PyTree:
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _: where, shapes)
    return jax.tree.map(
        lambda leaf, there: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there),
        shapes,
        where,
    )


def _bytes(described: PyTree) -> int:
    """Of one chip's part."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(described)
    )
