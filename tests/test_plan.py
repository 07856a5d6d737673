"""--plan: collectives read from a program, the memory it takes, and what follows from them."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT, load_config, run_command, shrink

from ssl_diffusion.errors import InputError
from ssl_diffusion.rates import CHIPS, matmul_flop
from ssl_diffusion.training.collectives import collective_bytes
from ssl_diffusion.training.plan import (
    GIB,
    Step,
    _wanted,
    largest_batch,
    model_flop,
    plan,
    report,
)
from ssl_diffusion.training.sharding import make_mesh
from ssl_diffusion.training.tasks.denoiser import DenoiserTask

HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=8\n\n"
SUM = "%add (a: f32[], b: f32[]) -> f32[] {\n  ROOT %sum = f32[] add(%a, %b)\n}\n\n"


def program(*lines: str, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"{HEADER}{SUM}{before}ENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"


@pytest.mark.parametrize(
    "line, kind, expected",
    [
        # 2 (n - 1) / n of 1024 x 256 numbers of 4 bytes, n = 8.
        (
            "%a = f32[1024,256]{1,0} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add",
            "all-reduce",
            2 * 7 / 8 * 1024 * 256 * 4,
        ),
        # Two groups of four, listed; a tuple of results, of 2 and 4 bytes.
        (
            "%a = (bf16[100]{0:T(256)(2,1)}, /*index=1*/f32[10]{0:T(128)S(1)}) "
            "all-reduce(%p, %q), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add",
            "all-reduce",
            2 * 3 / 4 * (200 + 40),
        ),
        # Groups along one axis of the mesh; along both; along two of an axis' four.
        (
            "%a = f32[64]{0} all-gather(%p), "
            "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}",
            "all-gather",
            1 / 2 * 64 * 4,
        ),
        (
            "%a = f32[64]{0} all-gather(%p), replica_groups=mesh['a'=4,'b'=2], "
            "device_ids=([2,4]T(1,0)) {'a','b'}, dimensions={0}",
            "all-gather",
            7 / 8 * 64 * 4,
        ),
        (
            "%a = f32[64]{0} all-gather(%p), replica_groups=mesh['a'=4,'b'=2] {'a':(1)2,'b'}",
            "all-gather",
            3 / 4 * 64 * 4,
        ),
        # Without groups: all eight.
        (
            "%a = s8[64]{0} all-gather(%p), replica_groups={}, dimensions={0}",
            "all-gather",
            7 / 8 * 64,
        ),
        # What starts has its operands before its results, and nothing moves when it is done.
        (
            "%a = ((f32[8]{0}, bf16[4]{0}), (f32[64]{0}, bf16[32]{0})) all-gather-start(%p, %q), "
            "replica_groups=[1,8]<=[8], dimensions={0}\n"
            "  %b = (f32[64]{0}, bf16[32]{0}) all-gather-done(%a)",
            "all-gather",
            7 / 8 * (64 * 4 + 32 * 2),
        ),
        (
            "%a = f32[64]{0} all-reduce-start(%p), replica_groups=[2,4]<=[4,2]T(1,0), "
            "to_apply=%add\n  %b = f32[64]{0} all-reduce-done(%a)",
            "all-reduce",
            2 * 3 / 4 * 64 * 4,
        ),
        # Its result is an eighth of what is summed.
        (
            "%a = f32[8]{0} reduce-scatter(%p), replica_groups=[1,8]<=[8], dimensions={0}, "
            "to_apply=%add",
            "reduce-scatter",
            7 / 8 * 64 * 4,
        ),
        (
            "%a = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), "
            "source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            8 * 4,
        ),
        (
            "%a = f32[64]{0} all-to-all(%p), replica_groups=[2,4]<=[8], dimensions={0}",
            "all-to-all",
            3 / 4 * 64 * 4,
        ),
    ],
)
def test_what_an_operation_sends(line, kind, expected):
    assert collective_bytes(program(line)) == {kind: pytest.approx(expected)}


WHILE = """%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %a = f32[64]{0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
}

%condition (p: (s32[], f32[64])) -> pred[] {
  %c = s32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

%called (p: f32[64]) -> f32[64] {
  %w = (s32[], f32[64]) while(%t), condition=%condition, body=%body, LOOP
}

"""


def test_a_loop_is_counted_as_often_as_it_runs():
    once = 2 * 7 / 8 * 64 * 4
    call = "%f = f32[64]{0} call(%p), to_apply=%called"
    known = 'backend_config={"known_trip_count":{"n":"12"},"known_init_step":{"init":"0"}}'
    found = collective_bytes(program(call, before=WHILE.replace("LOOP", known)))
    assert found == {"all-reduce": 12 * once}
    # The compiler for TPUs leaves it to be read from the loop's condition.
    unknown = WHILE.replace("LOOP", 'metadata={op_name="jit(step)/while"}')
    assert collective_bytes(program(call, before=unknown)) == {"all-reduce": 5 * once}
    assert collective_bytes(program(call, call, before=unknown)) == {"all-reduce": 10 * once}


PIECES = """%fused_computation.1 (p: bf16[64]) -> (bf16[64], bf16[256]) {
  %g.1 = bf16[256]{0} all-gather(%p), channel_id=5, replica_groups=mesh['axis_0'=4] {'axis_0'}, \
dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %s = (bf16[64], bf16[256]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (p: bf16[64]) -> (bf16[64], bf16[256]) {
  %g.2 = bf16[256]{0} all-gather(%p), channel_id=5, replica_groups=mesh['axis_0'=4] {'axis_0'}, \
dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%fused_computation.3 (p: bf16[64]) -> bf16[256] {
  %g.3 = bf16[256]{0} all-gather(%p), channel_id=5, replica_groups=mesh['axis_0'=4] {'axis_0'}, \
dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %d = bf16[256] custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.7 (p: f32[256]) -> f32[64] {
  %r = f32[256]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %mine = f32[64]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={64}
}

"""


def test_what_the_compiler_for_tpus_makes_of_them():
    """One gather in three pieces, and an all-reduce of which each chip keeps its part."""
    found = collective_bytes(
        program(
            "%start = (bf16[64], bf16[256]) fusion(%p), kind=kCustom, calls=%fused_computation.1",
            "%more = (bf16[64], bf16[256]) fusion(%p), calls=%async_collective_fusion.2",
            "%done = bf16[256] fusion(%p), kind=kCustom, calls=%fused_computation.3",
            "%scattered = f32[64] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.7",
            before=PIECES,
        )
    )
    assert found == {"all-gather": 3 / 4 * 256 * 2, "reduce-scatter": 3 / 4 * 256 * 4}


def tiny():
    """A transformer some of whose parameters are large enough to be split."""
    config = shrink(load_config("demo", "dit"))
    # Two tokens: with one, attention to it has no gradient but that of the value.
    config.data.embedding.tokens, config.batch_size = 2, 16
    config.model.architecture.width = 256
    return config


# What is printed of a program compiled for eight devices: steps, and a sum of known size in a loop.
EIGHT = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ssl_diffusion.training.collectives import collective_bytes
from ssl_diffusion.training.plan import compile_step
from ssl_diffusion.training.sharding import make_mesh, state_shardings
from ssl_diffusion.training.tasks.denoiser import DenoiserTask
from test_plan import tiny

mesh = make_mesh(1)
rows, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in (("data", "fsdp"), None))

def summed(x):
    def body(total, _):
        part = jax.lax.with_sharding_constraint(jnp.sin(x * total.sum()), rows)
        return total + jax.lax.with_sharding_constraint(part.sum(0), whole), None
    return jax.lax.scan(body, jnp.ones(100), None, length=3)[0]

x = jax.ShapeDtypeStruct((16, 100), jnp.float32, sharding=rows)
loop = jax.jit(summed, out_shardings=whole).lower(x).compile()
found = {"loop": collective_bytes(loop.as_text())}
config = tiny()
for fsdp in (1, 8):
    config.mesh.fsdp, mesh = fsdp, make_mesh(fsdp)
    task = DenoiserTask(config, None)
    step = compile_step(task, config, mesh, 16)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    where = state_shardings(shapes, mesh)
    split = [4 * leaf.size for leaf, there in zip(*map(jax.tree.leaves, (shapes, where)))
             if "fsdp" in there.spec]
    whole = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
    if fsdp == 1:
        found["larger"] = compile_step(task, config, mesh, 128)._asdict()
        assert config.batch_size == 16
    found[fsdp] = step._asdict() | {"split": sum(split), "whole": whole}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def eight_devices() -> dict:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT / "tests"),
    }
    result = subprocess.run(
        [sys.executable, "-c", EIGHT], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_sum_over_eight_devices_sends_what_a_ring_sends(eight_devices):
    """100 numbers of 4 bytes in each of three rounds."""
    assert eight_devices["loop"] == {"all-reduce": 3 * 2 * 7 / 8 * 400}


def test_a_step_with_whole_parameters_sums_their_gradients(eight_devices):
    step = eight_devices["1"]
    assert step["split"] == 0 and step["whole"] > 4e6
    sums = step["collectives"].pop("all-reduce")
    assert step["collectives"] == {}
    # And a few numbers that are logged.
    assert 0 < sums - 2 * 7 / 8 * step["whole"] < 1000
    assert step["state"]["parameters"] == step["whole"]
    assert step["state"]["averages"] == 2 * step["whole"]
    assert 0 <= step["state"]["moments"] - 2 * step["whole"] < 100  # and two counters
    # A float32 embedding of two tokens of 192 and a float16 latent: of two of the 16 examples.
    assert step["batch"] == 2 * (2 * 192 * 4 + 16 * 16 * 6 * 2)
    assert step["fits"] and step["inside"] > step["whole"]  # gradients at the least


def test_a_larger_batch_takes_more_inside_the_step_and_nothing_else(eight_devices):
    one, eight = eight_devices["1"], eight_devices["larger"]
    assert (one["batch_size"], eight["batch_size"]) == (16, 128)
    assert eight["state"] == one["state"] and eight["batch"] == 8 * one["batch"]
    assert eight["flop"] == 8 * one["flop"]
    assert 1.2 * one["inside"] < eight["inside"] < 8 * one["inside"]


def test_a_step_with_split_parameters_gathers_them(eight_devices):
    step, whole = eight_devices["8"], eight_devices["1"]
    assert 0.9 * step["whole"] < step["split"] < step["whole"]
    assert step["collectives"]["all-gather"] == pytest.approx(7 / 8 * step["split"])
    held = step["whole"] - step["split"] + step["split"] / 8
    assert step["state"]["parameters"] == held
    assert step["state"]["averages"] == 2 * held
    assert step["flop"] == whole["flop"]


def test_flop_of_a_step_are_three_forwards():
    config = tiny()
    task = DenoiserTask(config, None)
    params = jax.eval_shape(task.init, jax.random.key(0))["denoiser"]
    arguments = jnp.zeros((4, 16, 16, 6)), jnp.zeros(4), jnp.zeros((4, 2, 32))
    forward = matmul_flop(
        jax.make_jaxpr(lambda p, *given: task.network.apply({"params": p}, *given))(
            params, *arguments
        ).jaxpr
    )
    # By hand: 64 tokens of width 256, one block, 4 examples.
    block = 64 * (2 * 256 * 256 * (4 + 2 + 8) + 4 * 64 * 256 + 4 * 2 * 256) + 2 * 2 * 32 * 256 * 2
    ends = 64 * 2 * 24 * 256 * 2
    modulation = 2 * 256 * 256 * (1 + 1 + 6 + 2) + 2 * 32 * 256
    assert forward == 4 * (block + ends + modulation)
    step = model_flop(task, 4)
    # The conditioner's products come on top, and the latent has no gradient.
    assert 2.9 < step / forward < 3.02
    assert model_flop(task, 8) == 2 * step


def step(size: int, inside: float, fits: bool = True) -> Step:
    state = {"parameters": 1 * GIB, "moments": 2 * GIB, "averages": 2 * GIB}
    moved = {"all-reduce": 6e9} if fits else {}
    return Step(size, state, GIB // 4, int(inside * GIB), 459e12, moved, fits)


def test_the_largest_batch_is_read_from_a_straight_line():
    # 5.25 GiB and 3 + batch / 8, so 8.25 + batch / 8 in all: 174 fit into 30, of eights 168.
    assert largest_batch(step(32, 7), step(16, 5), 30.0 * GIB, 8) == 168
    assert largest_batch(step(16, 5), step(32, 7), 30.0 * GIB, 8) == 168
    # Neither fits, but the line says what would; or that nothing would.
    assert largest_batch(step(64, 11, False), step(32, 7, False), 10.0 * GIB, 8) == 8
    assert largest_batch(step(64, 11, False), step(32, 7, False), 8.0 * GIB, 8) == 0
    assert largest_batch(step(8, 7), None, 30.0 * GIB, 8) is None
    # Where the batch is hidden by what is fixed, what was compiled is all that is known.
    assert largest_batch(step(32, 7), step(16, 7), 30.0 * GIB, 8) == 32
    assert largest_batch(step(32, 7, False), step(16, 7), 30.0 * GIB, 8) == 16
    assert largest_batch(step(32, 7, False), step(16, 7, False), 30.0 * GIB, 8) == 0


def test_the_compiler_says_how_much_memory_it_wanted():
    total = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm. "
        "Exceeded hbm capacity by 5.75G."
    )
    assert _wanted(total, 5 * GIB) == int(16.5 * GIB)
    inside = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (134.25G) exceeds available HBM (15.75G). HLO module: jit_f."
    )
    assert _wanted(inside, 5 * GIB) == int(134.25 * GIB)
    assert _wanted("RESOURCE_EXHAUSTED: Scoped allocation in vmem: 20.0M of 16.0M", 5) is None


def test_report_of_a_step_worked_out_by_hand():
    config = tiny()
    config.batch_size = 32
    mesh = make_mesh(1, jax.devices()[:1])
    lines = report(config, "v5p:1x1x1", CHIPS["TPU v5"], mesh, step(32, 7), step(16, 5))
    lines = lines.splitlines()
    assert lines[0] == (
        "v5p:1x1x1: 1 chips, mesh data 1 x fsdp 1, batch 32 (32 a chip, accumulation 1)"
    )
    found = {line[:20].strip(): line[20:].strip() for line in lines[2:]}
    assert found["moments"] == "2.00 GiB a chip"
    assert found["inside a step"] == "7.00 GiB a chip"
    assert found["memory"] == "12.25 of 93.1 GiB: fits"
    assert found["FLOP"] == "459.00 TFLOP a chip and step"
    # 459 TFLOP/s, 2,765 GB/s to the memory, 600 GB/s to other chips.
    assert found["time by matrix units"] == "1000.0 ms"
    # 12.25 GiB, read and written.
    assert found["time by memory"] == "9.5 ms"
    assert found["time by links"] == "10.0 ms"
    assert found["at best"] == "1000.0 ms a step, 2.8 M images a day"
    largest = int((0.98 * 95 - 8.25) * 8)
    assert found["largest batch"] == f"{largest}, by the line through batches of 16 and 32"
    (parameters,) = [line for line in lines if line.endswith(" M")]
    leaves = jax.tree.leaves(jax.eval_shape(DenoiserTask(config, None).init, jax.random.key(0)))
    count = sum(leaf.size for leaf in leaves)
    assert parameters.split() == ["parameter", "count", f"{count / 1e6:.1f}", "M"]


def test_report_of_a_step_that_does_not_fit_says_no_time():
    config, mesh = tiny(), make_mesh(1, jax.devices()[:1])
    text = report(
        config, "v5e:1x1", CHIPS["TPU v5 lite"], mesh, step(64, 11, False), step(32, 7, False)
    )
    assert "16.25 of 15.7 GiB: does not fit" in text
    assert " ms" not in text and "largest batch               59" in text
    # What compiles may still be too large for what the runtime leaves of a chip.
    text = report(config, "v5e:1x1", CHIPS["TPU v5 lite"], mesh, step(64, 11), None)
    assert "16.25 of 15.7 GiB: does not fit" in text and "largest batch          unknown" in text


def test_what_cannot_be_planned_is_refused_in_one_line():
    with pytest.raises(InputError, match="--plan=nonsense cannot be compiled for .*as v5e:4x4"):
        plan(tiny(), "nonsense")


def test_plan_without_libtpu_says_how_to_install_it():
    script = (
        "import runpy, sys; sys.modules['libtpu'] = None; "
        "runpy.run_module('ssl_diffusion.train', run_name='__main__')"
    )
    arguments = ["--config=configs/demo.py", "--plan=v5e:2x2"]
    environment = {name: os.environ[name] for name in os.environ if name != "TPU_LIBRARY_PATH"}
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert "--plan=v5e:2x2 cannot be compiled for" in line and "install libtpu" in line


@pytest.mark.slow  # as the one below: it needs the extra "plan"
@pytest.mark.parametrize(
    "name, phrase",
    [
        ("v5e:3x7", "not divisible"),
        ("v9x:2x2", "Invalid TPU external name"),
        ("v3:2x2", "nothing is known of TPU v3"),
        ("v4:2x2x1", "make no mesh"),
        ("v5e:4x4", "batch size 16 does not divide among 16 devices in 3 parts"),
    ],
)
def test_topologies_that_cannot_be_planned_for(name, phrase):
    arguments = ["--config=configs/demo.py", "--config.accumulation=3", f"--plan={name}"]
    if not name.startswith("v5e:4x4"):
        arguments.append("--config.batch_size=48")
    result = run_command("train", *arguments)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and phrase in line


@pytest.mark.slow
def test_a_config_is_planned_for_four_chips_that_are_not_at_hand():
    result = run_command("train", "--config=configs/bracs.py:dit,runlocal", "--plan=v5e:2x2")
    assert result.returncode == 0, result.stderr
    first, *lines = result.stdout.splitlines()
    assert first.startswith("v5e:2x2: 4 chips, mesh data 4 x fsdp 1, batch 8 (2 a chip")
    assert lines[0].split() == ["parameter", "count", "0.2", "M"]
    assert "GiB: fits" in result.stdout and "images a day" in result.stdout
    (largest,) = [int(line.split()[2][:-1]) for line in lines if line.startswith("largest batch")]
    # What is fixed may hide what an image of so small a network takes: then what was compiled.
    assert largest >= 8 and largest % 4 == 0
    # libtpu looks for the machine that it is not on, and is told not to.
    said = [line for line in result.stderr.splitlines() if line]
    assert said and all(line.startswith("compile for v5e:2x2") for line in said)
