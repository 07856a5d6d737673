"""How arrays lie on the devices: batches split by rows, everything else on each."""

import os
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def join_processes() -> None:
    """Makes this process one of several that run the same program; before any array is made.

    On a TPU pod, under Slurm or Open MPI, JAX finds the others itself. Elsewhere the environment
    says who they are: JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID.
    """
    if "JAX_COORDINATOR_ADDRESS" not in os.environ:
        jax.distributed.initialize()
        return
    if jax.config.jax_platforms == "cpu":  # the default on a CPU is no collective at all
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        os.environ["JAX_COORDINATOR_ADDRESS"],
        int(os.environ["JAX_NUM_PROCESSES"]),
        int(os.environ["JAX_PROCESS_ID"]),
    )


def all_devices() -> Mesh:
    """All devices of the run along one axis, "data", as `_line` has it."""
    return _line(jax.devices())


def shardings() -> tuple[NamedSharding, NamedSharding]:
    """(rows, replicated) over all devices of the run."""
    return _over(all_devices())


def local_shardings() -> tuple[NamedSharding, NamedSharding]:
    """(rows, replicated) over the devices of this process: for work that it does by itself."""
    return _over(_line(jax.local_devices()))


def _line(devices: Sequence[jax.Device]) -> Mesh:
    """One axis, "data", of type Auto by name.

    `make_mesh` would make it Explicit, which Flax's modules do not expect.
    """
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def _over(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
