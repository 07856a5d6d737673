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

# On eight devices: the rule, what a state takes on each, what a step gathers and sums.
INSIDE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from conftest import load_config, shrink
from ssl_diffusion.training.collectives import collective_bytes
from ssl_diffusion.training.plan import compile_step
from ssl_diffusion.training.sharding import make_mesh, place, state_shardings, to_host
from ssl_diffusion.training.tasks.build import TASKS

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

config = shrink(load_config("demo"))
task = TASKS["denoiser"](config, None)
steps = {}
for fsdp in (1, 4):
    config.mesh.fsdp = fsdp
    step = compile_step(task, config, make_mesh(fsdp), config.batch_size)
    steps[fsdp] = {"state": dict(step.state), "moved": dict(step.collectives)}
shapes = jax.eval_shape(task.init, jax.random.key(0))
sharded = [leaf.size for leaf, where in zip(
    jax.tree.leaves(shapes), jax.tree.leaves(state_shardings(shapes, mesh)), strict=True)
    if "fsdp" in where.spec]
total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
print(json.dumps({"specs": specs, "held": held, "same": same, "steps": steps,
                  "sharded": sum(sharded), "total": total}))
"""


@pytest.fixture(scope="module")
def eight_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    environment["PYTHONPATH"] = str(ROOT / "tests")
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


def test_a_split_state_takes_its_part_of_the_memory(eight_devices):
    sharded, total = eight_devices["sharded"], eight_devices["total"]
    whole, split = (eight_devices["steps"][fsdp]["state"] for fsdp in ("1", "4"))
    assert sharded > 0.2 * total
    each = total - sharded + sharded // 4
    assert whole["parameters"] == 4 * total and split["parameters"] == 4 * each
    assert split["averages"] == 2 * 4 * each
    counts = split["moments"] - 2 * 4 * each  # Adam's and the schedule's counters
    assert 0 < counts < 64


def test_a_split_step_gathers_parameters_and_nothing_else(eight_devices):
    """Once for the forward and maybe once for the backward pass; no activation changes hands."""
    sharded = eight_devices["sharded"]
    whole, split = (eight_devices["steps"][fsdp]["moved"] for fsdp in ("1", "4"))
    assert set(whole) == {"all-reduce"}
    gathered = split["all-gather"] / (4 * sharded * 3 / 4)
    assert 0.99 < gathered < 2.01
    assert split.get("all-to-all", 0) < 0.05 * split["all-gather"]


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
