"""Which checkpoints are kept, and what one holds."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config, shrink

from ssl_diffusion.errors import InputError
from ssl_diffusion.training import workdir
from ssl_diffusion.training.checkpoint import Checkpoints
from ssl_diffusion.training.state import TrainState
from ssl_diffusion.training.workdir import claim_workdir


def state_at(step: int) -> TrainState:
    values = {"kernel": jnp.full((4, 4), float(step))}
    return TrainState(jnp.int32(step), values, (values,), {"count": jnp.int32(step)})


@pytest.fixture
def config():
    return shrink(load_config("demo"))


def test_the_last_and_the_best_are_kept(tmp_path, config):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step, loss in ((1, 0.9), (2, 0.3), (3, 0.5), (4, 0.6), (5, 0.7)):
        checkpoints.save(step, state_at(step), {"batches": step}, config, {"held_out_loss": loss})
    # Saved because the run was told to stop: nothing was measured, so it is no candidate.
    checkpoints.save(6, state_at(6), {"batches": 6}, config, None)
    checkpoints.close()
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 5, 6]
    assert checkpoints.latest() == 6


def test_state_place_and_config_come_back_together(tmp_path, config):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(7, state_at(7), {"batches": 7}, config, {"held_out_loss": 0.5})
    checkpoints.close()
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        state_at(0),
    )
    state, place = Checkpoints(tmp_path / "checkpoints", keep=1).restore(like)
    jax.tree.map(np.testing.assert_array_equal, state, state_at(7))
    assert place == {"batches": 7}
    kept = tmp_path / "checkpoints" / "7" / "config" / "metadata"
    assert json.loads(kept.read_text()) == json.loads(config.to_json())


def test_a_save_that_was_cut_off_is_not_taken(tmp_path, config):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    checkpoints.save(1, state_at(1), {"batches": 1}, config, {"held_out_loss": 0.5})
    checkpoints.close()
    # As a kill leaves it: Orbax renames only when all is written.
    whole = tmp_path / "checkpoints" / "1"
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp" / "state").mkdir()
    assert Checkpoints(tmp_path / "checkpoints", keep=3).latest() == 1 and whole.is_dir()


def test_what_a_start_may_change(tmp_path, config):
    """Where and on how much the run runs, and what it writes when; not what it computes."""

    def claim(config, px=64, started=True):
        claim_workdir(tmp_path, config, [{"patch_px": px}], started)

    claim(config)
    config.mesh.fsdp, config.accumulation, config.log_every = 2, 2, 7
    config.data.dir, config.data.workers, config.model.remat = "elsewhere", 3, True
    config.checkpoint_every, config.sample_every, config.ema.snapshot_every = 9, 9, 0
    claim(config)
    assert json.loads((tmp_path / "config.json").read_text())["mesh"] == {"fsdp": 2}
    config.steps += 1  # at a rate that decays over all of them
    with pytest.raises(InputError, match="steps is 6 there, 7 here"):
        claim(config)
    with pytest.raises(InputError, match="records"):
        claim(shrink(load_config("demo")), px=32)
    config.seed = 5
    claim(config, px=32, started=False)  # of a run that saved nothing, nothing is lost
    config.optimizer.decay = "constant"
    with pytest.raises(InputError, match="optimizer.decay is 'cosine' there, 'constant' here"):
        claim(config, px=32)
    claim(config, started=False)
    config.steps += 1
    claim(config)


def test_one_run_at_a_time_writes_to_a_workdir(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "PATIENCE", 1.5)
    program = "import pathlib, sys; from ssl_diffusion.training.workdir import alone_in\n"
    program += "with alone_in(pathlib.Path(sys.argv[1])): print('in', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline()
    with pytest.raises(InputError, match="another process trains in .*run; stop it"):
        with workdir.alone_in(tmp_path / "run"):
            pytest.fail("two at a time")
    other.kill()
    with workdir.alone_in(tmp_path / "run"):  # the lock of a killed run is gone
        other.wait()
