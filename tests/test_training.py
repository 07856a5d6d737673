"""The loop: exact resumption, device counts, objectives, checkpoints."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, load_config, run_command, shrink
from safetensors.numpy import load_file

from ssl_diffusion.data.pipeline import training_batches
from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json
from ssl_diffusion.train import as_typed, train
from ssl_diffusion.training.averages import read_snapshots
from ssl_diffusion.training.logs import read_metrics
from ssl_diffusion.training.sharding import make_mesh
from ssl_diffusion.training.state import (
    example_keys,
    init_state,
    make_train_step,
    means,
    no_totals,
)
from ssl_diffusion.training.stop import watched
from ssl_diffusion.training.tasks.autoencoder import AutoencoderTask
from ssl_diffusion.training.tasks.denoiser import DenoiserTask
from ssl_diffusion.training.tasks.encoder import contrastive_loss


def losses(workdir) -> list[float]:
    return [line["loss"] for line in read_metrics(workdir)]


def test_a_run_leaves_what_it_promises(run_dir):
    assert [line["step"] for line in read_metrics(run_dir)] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(losses(run_dir)))
    assert (run_dir / "samples" / "00000006.png").read_bytes().startswith(b"\x89PNG")
    assert list((run_dir / "tensorboard").iterdir())
    summary = read_json(run_dir / "summary.json", "summary")
    assert summary["steps"] == 6 and summary["images_per_second"] > 0
    spec = read_json(run_dir / "model" / "model.json", "model")
    assert spec["kind"] == "denoiser" and spec["trained"]["steps"] == 6
    for part in ("encoder", "autoencoder"):
        assert (run_dir / "model" / part / "weights.safetensors").is_file()


def test_killed_run_goes_on_to_the_same_bits(records_dir, run_dir, tmp_path):
    """SIGKILL after step 3 (the last checkpoint is of step 2), then the same command again."""
    workdir = tmp_path / "train"
    arguments = [*TINY, f"--workdir={workdir}", f"--config.data.dir={records_dir}"]
    command = [sys.executable, "-m", "ssl_diffusion.train", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(line["step"] >= 3 for line in read_metrics(workdir)):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "summary.json").exists()
    resumed = run_command("train", *arguments)
    assert resumed.returncode == 0, resumed.stderr
    # `run_dir` is the same run, never disturbed.
    undisturbed = load_file(run_dir / "model" / "weights.safetensors")
    weights = load_file(workdir / "model" / "weights.safetensors")
    assert undisturbed.keys() == weights.keys()
    for name, value in undisturbed.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
    assert losses(workdir) == losses(run_dir)


@pytest.mark.slow
def test_run_killed_twenty_times_ends_with_the_same_bits(records_dir, tmp_path):
    """At random moments: while it starts, between steps, and while it saves every other step."""
    longer = "--config.steps=80", "--config.sample_every=80", "--config.data.workers=1"

    def command(workdir) -> list[str]:
        arguments = [*TINY, *longer, f"--workdir={workdir}", f"--config.data.dir={records_dir}"]
        return [sys.executable, "-m", "ssl_diffusion.train", *arguments]

    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(command(undisturbed), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    rng = np.random.default_rng(0)
    while_saving = 0
    for kill in range(20):
        process = subprocess.Popen(command(workdir), cwd=ROOT, stderr=subprocess.DEVNULL)
        before = len(read_metrics(workdir))
        if kill % 5:  # else at any moment of its start
            while len(read_metrics(workdir)) <= before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 1.5))
        else:
            time.sleep(rng.uniform(1, 15))
        assert process.poll() is None, "ended before it was killed: make the run longer"
        process.kill()
        process.wait()
        left = (workdir / "checkpoints").glob("*tmp*") if workdir.exists() else ()
        while_saving += bool(list(left))
    assert while_saving, "no kill fell into a save"
    subprocess.run(command(workdir), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    hashes = [
        read_json(folder / "summary.json", "summary")["model_sha256"]
        for folder in (undisturbed, workdir)
    ]
    assert hashes[0] == hashes[1]
    assert losses(workdir) == losses(undisturbed)
    for one, other in zip(
        read_snapshots(undisturbed / "averages"), read_snapshots(workdir / "averages"), strict=True
    ):
        assert one.file.read_bytes() == other.file.read_bytes()


def test_sigterm_saves_and_the_run_goes_on_at_the_very_step(records_dir, run_dir, tmp_path):
    workdir = tmp_path / "train"
    arguments = [*TINY, f"--workdir={workdir}", f"--config.data.dir={records_dir}"]
    # It saves at the end only: what is there after the signal was saved for it.
    arguments += ["--config.checkpoint_every=6", "--config.ema.snapshot_every=1"]
    command = [sys.executable, "-m", "ssl_diffusion.train", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (workdir / "tensorboard").exists():  # the loop begins: it compiles its first step
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate()
    assert process.returncode == 0
    assert "stopped at step 1 of 6, saved; the same command goes on" in told
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["1"]
    assert not (workdir / "summary.json").exists()
    resumed = run_command("train", *arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(workdir) == losses(run_dir)
    # Nor does a snapshot lack that was due at the step of the signal.
    assert {snapshot.step for snapshot in read_snapshots(workdir / "averages")} == {*range(1, 7)}
    undisturbed = read_json(run_dir / "summary.json", "summary")
    assert read_json(workdir / "summary.json", "s")["model_sha256"] == undisturbed["model_sha256"]


def test_a_signal_saves_while_training_and_ends_the_process_elsewhere():
    with watched() as stop:
        with stop.saves():
            assert not stop.reached(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.reached(2)
        with pytest.raises(SystemExit) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    assert stopped.value.code == 0


def test_the_command_of_a_model_is_the_one_typed_but_for_the_folder():
    expected = "python -m ssl_diffusion.train --config=a.py '--config.data.dir=b c' --workdir=DIR"
    for folder in (["--workdir=x y"], ["--workdir", "x y"], ["-workdir", "workdir"]):
        typed = ["train.py", "--config=a.py", *folder, "--config.data.dir=b c"]
        assert as_typed(typed) == expected


def test_eight_devices_and_two_readers_follow_the_loss_of_one(records_dir, run_dir, tmp_path):
    arguments = [*TINY, f"--workdir={tmp_path / 'train'}", f"--config.data.dir={records_dir}"]
    result = run_command("train", *arguments, "--config.data.workers=2", devices=8)
    assert result.returncode == 0, result.stderr
    # Sums over the batch are taken in another order: a few units in the last place of float32.
    np.testing.assert_allclose(losses(tmp_path / "train"), losses(run_dir), rtol=2e-5)


def test_finished_run_is_left_alone(run_dir, records_dir):
    before = (run_dir / "model" / "weights.safetensors").stat().st_mtime_ns
    config = shrink(load_config("demo"))
    config.data.dir = str(records_dir)
    train(config, run_dir)
    assert (run_dir / "model" / "weights.safetensors").stat().st_mtime_ns == before


def test_workdir_of_another_config_is_refused(run_dir, records_dir):
    config = shrink(load_config("demo"))
    config.data.dir = str(records_dir)
    config.optimizer.learning_rate = 5e-4
    with pytest.raises(InputError, match="optimizer.learning_rate is 0.001 there, 0.0005 here"):
        train(config, run_dir)


def test_truncated_checkpoint_is_named_and_the_one_before_still_works(
    run_dir, records_dir, tmp_path
):
    workdir = tmp_path / "train"
    shutil.copytree(run_dir, workdir)
    (workdir / "summary.json").unlink()
    newest = workdir / "checkpoints" / "6"
    for file in (
        path for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 4096
    ):
        os.truncate(file, file.stat().st_size // 2)
    config = shrink(load_config("demo"))
    config.data.dir = str(records_dir)
    with pytest.raises(InputError, match="checkpoints/6 cannot be restored.*go on from step 4"):
        train(config, workdir)
    shutil.rmtree(newest)
    train(config, workdir)
    undisturbed = load_file(run_dir / "model" / "weights.safetensors")
    for name, value in load_file(workdir / "model" / "weights.safetensors").items():
        np.testing.assert_array_equal(value, undisturbed[name])


def test_disk_that_fills_keeps_the_last_checkpoint(records_dir, run_dir, tmp_path):
    """A limit on file size stands in for the full disk: writes fail in the same place."""
    workdir = tmp_path / "train"
    shutil.copytree(run_dir, workdir)
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "6")
    arguments = [*TINY, f"--workdir={workdir}", f"--config.data.dir={records_dir}"]
    script = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "sys.argv = ['train', *sys.argv[1:]]; "
        "runpy.run_module('ssl_diffusion.train', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "no space left to save in" in line
    assert "the checkpoint of step 4 is whole" in line
    assert (workdir / "checkpoints" / "4").is_dir()
    resumed = run_command("train", *arguments)
    assert resumed.returncode == 0, resumed.stderr


def test_records_of_another_patch_size_and_without_embeddings_are_refused(records_dir, tmp_path):
    config = shrink(load_config("demo"))
    config.data.dir = str(records_dir)
    config.data.patch_px = 128
    with pytest.raises(InputError, match="patch_px 64, the config 128"):
        train(config, tmp_path / "a")
    config = shrink(load_config("demo"))
    config.data.dir = str(records_dir)
    config.data.stride_px = 32  # where patches were cut is no matter, what is stored of them is
    config.data.variants = 2
    with pytest.raises(InputError, match="variants 1, the config 2"):
        train(config, tmp_path / "a")
    config = shrink(load_config("demo"))
    config.data.dir = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no records"):
        train(config, tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_embeddings_of_another_width_and_unknown_settings_are_refused(records_dir, tmp_path):
    for change, message in (
        ("data.embedding.dim=384", "hold embeddings .*'dim': 192.*, config.data.embedding says"),
        ("data.latent.channels=4", r"\[16, 16, 6\], config.data.latent .* say \[16, 16, 4\]"),
        ("data.input=pixels", "input is 'pixels', expected latent or image"),
        ("optimizer.decay=step", "decay is 'step', expected one of cosine, constant"),
        ("ema.used=0.2", "used is 0.2, expected one of config.ema.sigma_rel"),
        ("mesh.fsdp=3", "mesh.fsdp is 3, there are 1 devices"),
        ("accumulation=3", "batch size 8 does not divide among 1 devices in 3 parts"),
        ("diffusion.prediction=u", "unknown prediction kind 'u'"),
        ("data.mix=(('nowhere',1.0),)", "no records in nowhere"),
        ("data.mix=('nowhere',1.0)", "data.mix holds 'nowhere', expected pairs of a folder"),
        ("data.mix=(('nowhere','a'),)", "data.mix holds .*'a'.*, expected pairs of a folder"),
        ("data.workers=-1", "data.workers is -1, expected 0 or more"),
        ("batch_size=4096", "takes 4096 at a time, expected at most the"),
        ("seed=-1", "seed -1: expected 0 or more"),
        ("optimizer.clip_norm=0.0", "optimizer.clip_norm is 0.0, expected a number above 0"),
        ("optimizer.learning_rate=float('nan')", "optimizer.learning_rate is nan, expected a"),
        ("optimizer.b2=1.5", "optimizer.b2 is 1.5, expected a number from 0 up to below 1"),
        ("model.condition_dropout=1.5", "model.condition_dropout is 1.5, expected a share"),
        ("ema.sigma_rel=(0.05,0.05)", "sigma_rel holds a length twice: 0.050, 0.050"),
        ("ema.snapshot_every=-3", "ema.snapshot_every is -3, expected 0 or more"),
    ):
        config = shrink(load_config("demo"))
        config.data.dir = str(records_dir)
        name, value = change.split("=", 1)
        with config.unlocked():
            config.update_from_flattened_dict({name: _value(value)})
        with pytest.raises(InputError, match=message):
            train(config, tmp_path / "train")
    assert not (tmp_path / "train").exists()


def _value(text: str):
    if text == "float('nan')":
        return float("nan")
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def test_records_are_mixed_and_the_mixture_belongs_to_the_run(records_dir, tmp_path):
    config = shrink(load_config("demo"))
    config.data.dir, config.steps = str(records_dir), 2
    shutil.copytree(records_dir, tmp_path / "copy")
    config.data.mix = ((str(records_dir), 3.0), (str(tmp_path / "copy"), 1.0))
    train(config, tmp_path / "train")
    assert all(np.isfinite(losses(tmp_path / "train")))
    config.data.mix = ((str(records_dir), 1.0), (str(tmp_path / "copy"), 1.0))
    with pytest.raises(InputError, match=r"data.mix is \[3.0, 1.0\] there, \[1.0, 1.0\] here"):
        train(config, tmp_path / "train")


def test_batch_must_divide_among_devices(records_dir, tmp_path):
    arguments = [*TINY, f"--workdir={tmp_path / 'train'}", f"--config.data.dir={records_dir}"]
    result = run_command("train", *arguments, "--config.batch_size=10", devices=8)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "error: batch size 10 does not divide among 8 devices; "
        "take a number of devices that divides it, or in a new run a batch size of 16"
    )


@pytest.fixture(scope="module")
def denoiser_task(records_dir):
    config = shrink(load_config("demo"))
    return DenoiserTask(config, open_records(records_dir))


def _batch(task, count: int) -> dict:
    source = task.records.source("train", task.fields, raw=True)
    return {name: jnp.stack([source[i][name] for i in range(count)]) for name in task.fields}


def test_a_learned_variance_takes_no_part_in_the_loss(records_dir):
    config = shrink(load_config("demo", "dit"))
    config.model.architecture.out_channels = 2 * 6
    task = DenoiserTask(config, open_records(records_dir))
    params, batch = task.init(jax.random.key(0)), _batch(task, 2)
    keys = jax.random.split(jax.random.key(1), 2)
    loss = jax.jit(lambda p: task.loss(p, task.frozen, batch, keys)[0].mean())
    gradient = jax.grad(loss)(params)
    bias = gradient["denoiser"]["proj_out"]["bias"].reshape(-1, 2, 6)
    assert jnp.abs(bias[:, 0]).min() > 0 and not bias[:, 1].any()
    config.model.architecture.out_channels = 7
    with pytest.raises(InputError, match="out_channels is 7, the latents have 6 channels"):
        DenoiserTask(config, open_records(records_dir))


def test_condition_is_dropped_per_example(denoiser_task):
    """Dropping one changes that one's loss; with all dropped the embedding cannot matter."""
    params = denoiser_task.init(jax.random.key(0))
    # The network starts at zero output: move every parameter, so that the context reaches it.
    params = jax.tree.map(lambda p: p + 0.02 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    batch, keys = _batch(denoiser_task, 6), jax.random.split(jax.random.key(1), 6)

    @jax.jit
    def losses_of(batch, drop):
        return denoiser_task._loss(params, {}, batch, drop, keys)[0]

    kept = losses_of(batch, jnp.zeros(6, bool))
    one = losses_of(batch, jnp.arange(6) == 2)
    changed = np.abs(np.asarray(one - kept)) > 1e-6
    assert changed.tolist() == [False, False, True, False, False, False]
    other = batch | {"embedding": batch["embedding"][::-1]}
    dropped = losses_of(batch, jnp.ones(6, bool))
    np.testing.assert_array_equal(dropped, losses_of(other, jnp.ones(6, bool)))


def test_dropout_has_the_configured_rate(denoiser_task):
    """Of 2,000 examples, and another example's key does not change whether one is dropped."""
    params = denoiser_task.init(jax.random.key(0))
    seen = []

    def record(params, frozen, batch, drop, keys):
        seen.append(np.asarray(drop))
        return jnp.zeros(drop.shape), {}

    original, denoiser_task._loss = denoiser_task._loss, record
    try:
        keys = jax.random.split(jax.random.key(5), 2000)
        denoiser_task.loss(params, {}, {}, keys)
        denoiser_task.loss(params, {}, {}, keys[1000:])
    finally:
        denoiser_task._loss = original
    assert 0.08 < seen[0].mean() < 0.12
    np.testing.assert_array_equal(seen[1], seen[0][1000:])


def test_losses_are_told_apart_by_noise_level(denoiser_task):
    """Every example is in one of the levels, and the sums of all levels are that of the loss."""
    params, batch = denoiser_task.init(jax.random.key(0)), _batch(denoiser_task, 64)
    keys = jax.random.split(jax.random.key(2), 64)
    loss, terms = jax.jit(denoiser_task.loss)(params, {}, batch, keys)
    assert list(terms) == [f"loss_timestep_{low}_{low + 249}" for low in range(0, 1000, 250)]
    levels = np.stack([*terms.values()])
    assert (np.isfinite(levels).sum(0) == 1).all() and (np.isfinite(levels).sum(1) > 5).all()
    np.testing.assert_allclose(np.nansum(levels, 0), loss)


def _step_of(task, config):
    return jax.jit(make_train_step(task, config, make_mesh(1, jax.devices()[:1])))


def _init(task, config):
    return jax.jit(lambda: init_state(task, config))()


def _settings(task, **change):
    config = task.config.copy_and_resolve_references()
    config.batch_size = 8
    config.update(change)
    return config


def test_step_learns_and_averages(denoiser_task):
    config = _settings(denoiser_task, steps=200, ema={"sigma_rel": (0.1, 0.25), "used": 0.1})
    config.optimizer.warmup_steps = 1
    state, step = _init(denoiser_task, config), _step_of(denoiser_task, config)
    batch = _batch(denoiser_task, 8)
    history, kept, first = [], [], state.params
    nothing = no_totals(denoiser_task, config)
    for _ in range(30):
        state, totals = step(state, nothing, batch, {})
        history.append(means(jax.device_get(totals))["loss"])
        kept.append(state.params)
    assert np.mean(history[-5:]) < 0.9 * np.mean(history[:5])
    # The definition of the average of sigma_rel 0.25 (gamma 0.785), summed up step by step.
    shares = np.diff((np.arange(31) / 30) ** 1.7847)
    for average, *steps in zip(*map(jax.tree.leaves, (state.averages[1], *kept)), strict=True):
        expected = sum(share * leaf for share, leaf in zip(shares, steps, strict=True))
        np.testing.assert_allclose(average, expected, atol=1e-3)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(*map(jax.tree.leaves, (first, state.params)), strict=True)
    ]
    assert np.mean(np.array(moved) > 0) > 0.95


def test_accumulation_changes_nothing_but_rounding(denoiser_task):
    batch, after = _batch(denoiser_task, 8), []
    for parts in (1, 4):
        config = _settings(denoiser_task, accumulation=parts)
        config.optimizer.warmup_steps = 1
        state, step = _init(denoiser_task, config), _step_of(denoiser_task, config)
        totals = no_totals(denoiser_task, config)
        for _ in range(2):
            state, totals = step(state, totals, batch, {})
        after.append((jax.device_get(state.params), means(jax.device_get(totals))))
    for (name, one), (_, other) in zip(*(sorted(found.items()) for _, found in after), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, err_msg=name)
    # Adam divides by the root of tiny second moments, which enlarges rounding early on.
    whole, parts = (jax.tree.leaves(params) for params, _ in after)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_an_example_draws_by_its_number_in_the_run():
    whole = jax.random.key_data(example_keys(3, jnp.int32(0), 12))
    part = jax.random.key_data(example_keys(3, jnp.int32(8), 4))
    np.testing.assert_array_equal(whole[8:], part)
    assert len({tuple(key) for key in whole.tolist()}) == 12


def test_non_finite_loss_stops_before_it_is_saved(records_dir, tmp_path):
    config = shrink(load_config("demo"))
    config.data.dir = str(records_dir)
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e30, 1
    config.optimizer.clip_norm = 1e30
    with pytest.raises(
        InputError, match=r"at step 2; none was saved.* train\[\d+\], cmu_small_region.svs at x="
    ):
        train(config, tmp_path / "train")
    assert all(np.isfinite(losses(tmp_path / "train")))
    told = read_json(tmp_path / "train" / "non_finite.json", "batch")
    assert told["step"] == 2 and len(told["batch"]) == 8
    # They are the second batch of the run, as the loop read it.
    records = open_records(records_dir)
    source = records.source("train", ("x", "y", "embedding"))
    batches = training_batches([(source, 1.0)], 8, config.seed, first=1)
    rows = next(batches)
    batches.close()
    for place, x, y in zip(told["batch"], rows["x"], rows["y"], strict=True):
        assert place.endswith(f"x={x} y={y}")


def test_contrastive_loss_on_numbers_worked_out_by_hand():
    first = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    # Views equal: logits of the partner 1/t, of the two others 0.
    expected = -np.log(np.exp(2.0) / (np.exp(2.0) + 2))
    np.testing.assert_allclose(contrastive_loss(first, 3 * first, 0.5), [expected] * 2, rtol=1e-6)
    swapped = contrastive_loss(first, first[::-1], 0.5)
    np.testing.assert_allclose(swapped, [-np.log(1 / (np.exp(2.0) + 2))] * 2, rtol=1e-6)


def test_autoencoder_kl_is_zero_for_a_standard_normal_posterior(records_dir):
    config = shrink(load_config("demo_autoencoder"))
    task = AutoencoderTask(config, open_records(records_dir))
    params = jax.tree.map(jnp.zeros_like, task.init(jax.random.key(0)))
    image = jnp.full((2, 64, 64, 3), 255, jnp.uint8)
    keys = jax.random.split(jax.random.key(1), 2)
    loss, terms = jax.jit(task.loss)(params, {}, {"image": image}, keys)
    np.testing.assert_allclose(terms["kl"], 0, atol=1e-7)
    np.testing.assert_allclose(loss, 2.0, atol=1e-5)  # L1 and L2 of white against zero


def test_encoder_and_autoencoder_train_by_the_same_loop(records_dir, tmp_path):
    for name in ("demo_autoencoder", "demo_encoder"):
        config = shrink(load_config(name))
        config.steps, config.data.dir = 2, str(records_dir)
        smaller = {"demo_encoder": {"depth": 1}, "demo_autoencoder": {"base_channels": 32}}
        config.model.architecture.update(smaller[name])
        train(config, tmp_path / name)
        spec = json.loads((tmp_path / name / "model" / "model.json").read_text())
        assert spec["kind"] == name.removeprefix("demo_")
        assert spec["trained"]["measured"]
