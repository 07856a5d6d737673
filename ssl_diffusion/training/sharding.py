"""How a run lies on its devices: the mesh ("data", "fsdp"), and where each part of the state is.

Batches are split by rows over both axes. Along "fsdp" the large parameters are split too, and with
them the optimizer's moments and the averages: fully sharded data parallelism (Zhao et al. 2023,
arXiv 2304.11277; Rajbhandari et al. 2020, arXiv 1910.02054, stage 3). A step gathers parameters
where it uses them, so that all activations lie as the batch does, by rows.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ssl_diffusion.errors import InputError

BATCH_AXES = ("data", "fsdp")
LEAST_SHARDED = 2**14  # elements: below, gathering costs more than the memory it saves


def make_mesh(fsdp: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (or these) as ("data", "fsdp"), `fsdp` of them along the second axis.

    Axes are of type Auto by name: Flax's modules do not expect Explicit ones. Raises InputError
    unless `fsdp` divides the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise InputError(
            f"config.mesh.fsdp is {fsdp}, there are {len(devices)} devices; expected a divisor"
        )
    shape = len(devices) // fsdp, fsdp
    # Devices along "fsdp" are neighbours in a TPU's torus, also where they are a part of its side.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def by_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Of a batch, whose rows are along `axis`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(shapes: PyTree, mesh: Mesh) -> PyTree:
    """Of parameters and all that has their shapes: each leaf's largest dimension over "fsdp".

    Among equal dimensions the last is taken. Small leaves, and those of which no dimension divides,
    stay whole.
    """

    def rule(leaf: Any) -> NamedSharding:  # an array, or the shape of one
        fsdp = mesh.shape["fsdp"]
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or leaf.size < LEAST_SHARDED or not divisible:
            return replicated(mesh)
        axis = max(divisible, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(rule, shapes)


def place(values: PyTree, shardings: PyTree) -> PyTree:
    """Arrays that every process holds whole, on the devices as `shardings` say."""

    def put(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, values, shardings)


def to_host(tree: PyTree) -> PyTree:
    """Whole numpy arrays, one leaf after the other; every process of the run has to call it."""

    def fetch(leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)
