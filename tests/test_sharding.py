"""Where parts of the state lie; neither devices nor accumulation change what is learned."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, TINY, run_command
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file

from ssl_diffusion.errors import InputError
from ssl_diffusion.training.logs import read_metrics
from ssl_diffusion.training.sharding import make_mesh

# On eight devices: the rule, what of an array each holds, and whether all comes back.
INSIDE = """
import json
import jax, numpy as np
from ssl_diffusion.training.sharding import make_mesh, place, state_shardings, to_host

mesh = make_mesh(4)
shapes = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in {
    "last of equals": (8, 512, 512), "largest": (1024, 96), "indivisible": (333, 111),
    "small": (64, 64), "second": (1023, 512)}.items()}
specs = {name: list(where.spec) for name, where in state_shardings(shapes, mesh).items()}
values = {name: np.arange(np.prod(leaf.shape), dtype=np.float32).reshape(leaf.shape)
          for name, leaf in shapes.items()}
placed = place(values, state_shardings(shapes, mesh))
held = {name: leaf.addressable_shards[0].data.size for name, leaf in placed.items()}
same = all(np.array_equal(a, values[name]) for name, a in to_host(placed).items())

print(json.dumps({"specs": specs, "held": held, "same": same}))
"""


@pytest.fixture(scope="module")
def eight_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", INSIDE]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_largest_dimension_that_divides_is_split(eight_devices):
    assert eight_devices["specs"] == {
        "last of equals": [None, None, "fsdp"],
        "largest": ["fsdp"],
        "second": [None, "fsdp"],
        "indivisible": [],
        "small": [],
    }
    assert eight_devices["held"]["largest"] == 1024 * 96 // 4
    assert eight_devices["held"]["small"] == 64 * 64
    assert eight_devices["same"]


def test_the_mesh_is_of_the_devices_there_are():
    mesh = make_mesh(1)
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1}
    assert PartitionSpec(mesh.axis_names) == PartitionSpec(("data", "fsdp"))
    with pytest.raises(InputError, match="config.mesh.fsdp is 3, there are 1 devices"):
        make_mesh(3)


@pytest.mark.slow
def test_any_devices_follow_one_for_fifty_steps(records_dir, tmp_path):
    """1 device, data 8, data 2 x fsdp 4, and two devices with two parts of the batch."""
    runs = {
        "one": (1, ()),
        "data": (8, ()),
        "fsdp": (8, ("--config.mesh.fsdp=4",)),
        "parts": (2, ("--config.accumulation=2",)),
    }
    found = {}
    for name, (devices, change) in runs.items():
        workdir = tmp_path / name
        longer = "--config.steps=50", "--config.checkpoint_every=50", "--config.sample_every=50"
        given = *TINY, *longer, f"--config.data.dir={records_dir}", f"--workdir={workdir}"
        result = run_command("train", *given, *change, devices=devices)
        assert result.returncode == 0, result.stderr
        losses = [line["loss"] for line in read_metrics(workdir)]
        found[name] = losses, load_file(workdir / "model" / "weights.safetensors")
    for name, (losses, weights) in found.items():
        assert len(losses) == 50
        np.testing.assert_allclose(losses, found["one"][0], rtol=1e-4, err_msg=name)
        assert weights.keys() == found["one"][1].keys()
