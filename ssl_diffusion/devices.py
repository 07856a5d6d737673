"""How arrays lie on the devices: batches split by rows, everything else on each."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def shardings() -> tuple[NamedSharding, NamedSharding]:
    """(rows, replicated) over all devices of the run.

    Axes are of type Auto by name: `make_mesh` would make them Explicit, which Flax's modules do not
    expect.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
