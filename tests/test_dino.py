"""Self-distillation: loss, head, schedules, what is carried, and a run of a few steps."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config, run_command, shrink
from safetensors.numpy import load_file

from ssl_diffusion.data.records import open_records
from ssl_diffusion.encoders.augment import augment
from ssl_diffusion.errors import InputError
from ssl_diffusion.train import train
from ssl_diffusion.training.checkpoint import Checkpoints
from ssl_diffusion.training.distillation import (
    ProjectionHead,
    crowding,
    distillation_loss,
    feature_spread,
    teacher_momentum,
    warmed_up,
)
from ssl_diffusion.training.logs import read_metrics
from ssl_diffusion.training.sharding import make_mesh
from ssl_diffusion.training.state import init_state, make_train_step, means, no_totals
from ssl_diffusion.training.tasks.dino import DinoTask
from ssl_diffusion.weights.model import load_encoder

SMALLER = {
    "--config.steps": 4,
    "--config.batch_size": 8,
    "--config.log_every": 1,
    "--config.checkpoint_every": 2,
    "--config.optimizer.warmup_steps": 1,
    "--config.data.stride_px": 64,
    "--config.model.architecture.width": 64,
    "--config.model.architecture.heads": 2,
    "--config.model.architecture.depth": 1,
    "--config.model.head.hidden": 128,
    "--config.model.head.bottleneck": 32,
    "--config.model.head.prototypes": 64,
    "--config.model.head.frozen_steps": 2,
}


def small_config(records_dir):
    config = shrink(load_config("ssl_pretrain"))
    config.ema.snapshot_every = 0
    named = {name.removeprefix("--config."): value for name, value in SMALLER.items()}
    config.update_from_flattened_dict(named)
    config.data.dir = str(records_dir)
    return config


@pytest.fixture(scope="module")
def task(records_dir) -> DinoTask:
    return DinoTask(small_config(records_dir), open_records(records_dir))


@pytest.fixture(scope="module")
def batch(task) -> dict:
    source = task.records.source("train", task.fields, raw=True)
    return {"image": jnp.stack([source[i]["image"] for i in range(8)])}


@pytest.fixture(scope="module")
def dino_run(records_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dino") / "train"
    train(small_config(records_dir), workdir)
    return workdir


def state_in(workdir, task):
    """The newest checkpoint, on the host."""
    checkpoints = Checkpoints(workdir / "checkpoints", 2)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        jax.eval_shape(lambda: init_state(task, task.config)),
    )
    state, _ = checkpoints.restore(like)
    checkpoints.close()
    return jax.device_get(state)


def test_loss_is_the_cross_entropy_over_every_pair_of_different_crops():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(3, 5, 7)), rng.normal(size=(3, 2, 7))
    centre = rng.normal(size=7)

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    expected, entropies = [], []
    for image in range(3):
        pairs, entropy = [], []
        for g in range(2):
            p = softmax((teacher[image, g] - centre) / 0.5)
            entropy.append(-(p * np.log(p)).sum())
            for v in range(5):
                if v != g:
                    pairs.append(-(p * np.log(softmax(student[image, v] / 0.2))).sum())
        assert len(pairs) == 8
        expected.append(np.mean(pairs))
        entropies.append(np.mean(entropy))
    loss, entropy = distillation_loss(
        *map(jnp.float32, (student, teacher, centre)),
        student_temperature=0.2,
        teacher_temperature=0.5,
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(entropy, entropies, rtol=1e-5)


def test_schedules_go_from_end_to_end():
    momentum = [float(teacher_momentum(step, 100, 0.996)) for step in (0, 50, 100, 110)]
    np.testing.assert_allclose(momentum, [0.996, 0.998, 1, 1], atol=1e-7)
    temperature = [float(warmed_up(step, 0.04, 0.07, 30)) for step in (0, 10, 30, 90)]
    np.testing.assert_allclose(temperature, [0.04, 0.05, 0.07, 0.07], rtol=1e-6)
    assert float(warmed_up(0, 0.04, 0.07, 0)) == pytest.approx(0.04)


def test_logits_are_cosines_and_the_last_layer_waits():
    head = ProjectionHead(hidden=16, bottleneck=8, prototypes=5, frozen_steps=3)
    x = jax.random.normal(jax.random.key(0), (4, 6))
    params = head.init(jax.random.key(1), x, jnp.int32(0))["params"]
    directions, logits = head.apply({"params": params}, x, jnp.int32(0))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-5)
    assert logits.shape == (4, 5) and jnp.abs(logits).max() <= 1 + 1e-6
    longer = params | {"prototypes": 7 * params["prototypes"]}
    np.testing.assert_allclose(
        head.apply({"params": longer}, x, jnp.int32(0))[1], logits, atol=1e-6
    )

    def gradient(step):
        def loss(params):
            return jnp.square(head.apply({"params": params}, x, jnp.int32(step))[1]).sum()

        return jax.grad(loss)(params)

    assert not jnp.any(gradient(2)["prototypes"]) and jnp.any(gradient(3)["prototypes"])
    assert jnp.any(gradient(2)["linear_3"]["kernel"])


def test_spread_tells_collapse_from_all_directions():
    directions = jax.random.normal(jax.random.key(0), (4000, 50))
    assert float(feature_spread(directions)) == pytest.approx(1, abs=0.02)
    assert float(feature_spread(jnp.ones((10, 50)) * jnp.arange(1, 11)[:, None])) < 1e-5


def test_local_crops_are_parts_at_their_own_size(task, batch):
    keys = jax.random.split(jax.random.key(0), 8)
    whole, parts = jax.jit(task.crops)(batch, keys)
    assert whole.shape == (8, 2, 64, 64, 3) and parts.shape == (8, 4, 32, 32, 3)
    assert len({view.tobytes() for view in np.asarray(parts).reshape(32, -1)}) == 32
    fewer = jax.jit(task.crops)({"image": batch["image"][2:5]}, keys[2:5])
    np.testing.assert_allclose(fewer[1], parts[2:5], atol=1e-5)
    # A ramp from 0 to 1 across the image tells how much of it a crop has.
    still = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "blur_px"), 0.0)
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 64)[None, :, None], (64, 64, 3))
    view = jax.jit(lambda key: augment(key, ramp, still | {"crop": 0.25, "largest_crop": 0.25}, 32))
    for seed in range(5):
        seen = np.asarray(view(jax.random.key(seed)))
        assert np.ptp(seen) == pytest.approx(0.5, abs=0.02)


def test_teacher_and_centre_follow_each_step(task, batch):
    config = task.config
    mesh = make_mesh(1, jax.devices()[:1])
    state = jax.jit(lambda: init_state(task, config))()
    step = jax.jit(make_train_step(task, config, mesh))
    for taken in range(2):
        before, (state, totals) = state, step(state, no_totals(task, config), batch, {})
        first = config.model.distillation.teacher_momentum
        momentum = float(teacher_momentum(taken, config.steps, first))
        for old, new, student in zip(
            *map(jax.tree.leaves, (before.carried["teacher"], state.carried["teacher"])),
            jax.tree.leaves(state.params),
            strict=True,
        ):
            np.testing.assert_allclose(new, momentum * old + (1 - momentum) * student, atol=1e-6)
        # The centre after the mean of the old teacher's logits, over images and global crops.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(config.seed + 1), taken * 8 + jnp.arange(8, dtype=jnp.uint32)
        )
        crops, _ = jax.jit(task.crops)(batch, keys)
        *_, logits = task._views(before.carried["teacher"], crops, jnp.int32(0))
        expected = 0.9 * before.carried["centre"] + 0.1 * logits.mean((0, 1))
        np.testing.assert_allclose(state.carried["centre"], expected, atol=1e-5)
        assert int(state.carried["step"]) == taken + 1
    assert "teacher_logits" not in totals and totals["teacher_entropy"].shape == (2,)
    moved = (
        state.params["encoder"]["norm"]["scale"]
        - state.carried["teacher"]["encoder"]["norm"]["scale"]
    )
    assert np.abs(moved).max() > 0


@pytest.mark.slow  # test_training has accumulation of the loop that all tasks share
def test_accumulation_and_centre_see_the_same_batch(task, batch):
    after = []
    for parts in (1, 4):
        config = task.config.copy_and_resolve_references()
        config.accumulation, config.model.distillation.crowding_weight = parts, 0.0
        other = DinoTask(config, task.records)
        state = jax.jit(lambda config=config: init_state(task, config))()
        step = jax.jit(make_train_step(other, config, make_mesh(1, jax.devices()[:1])))
        state, totals = step(state, no_totals(task, config), batch, {})
        after.append((state.carried["centre"], means(jax.device_get(totals))["loss"]))
    np.testing.assert_allclose(after[0][0], after[1][0], atol=1e-6)
    assert np.abs(after[0][0]).max() > 1e-3
    assert after[0][1] == pytest.approx(after[1][1], rel=1e-5)


def test_resumed_run_ends_with_the_same_bits(dino_run, records_dir, task, tmp_path):
    workdir = tmp_path / "train"
    shutil.copytree(dino_run, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    (workdir / "summary.json").unlink()
    train(small_config(records_dir), workdir)
    jax.tree.map(np.testing.assert_array_equal, *(state_in(w, task) for w in (workdir, dino_run)))
    weights, undisturbed = (
        load_file(w / "model" / "weights.safetensors") for w in (workdir, dino_run)
    )
    assert weights.keys() == undisturbed.keys()
    for name, value in undisturbed.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


@pytest.mark.slow  # test_sharding has it of the loop that all tasks share
def test_eight_devices_follow_the_loss_of_one(dino_run, records_dir, task, tmp_path):
    arguments = ["--config=configs/ssl_pretrain.py", f"--workdir={tmp_path / 'train'}"]
    arguments += [f"{name}={value}" for name, value in SMALLER.items()]
    arguments += [f"--config.data.dir={records_dir}", "--config.mesh.fsdp=4"]
    result = run_command("train", *arguments, devices=8)
    assert result.returncode == 0, result.stderr
    one, eight = (
        [line["loss"] for line in read_metrics(w)] for w in (dino_run, tmp_path / "train")
    )
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    centres = [state_in(w, task).carried["centre"] for w in (dino_run, tmp_path / "train")]
    np.testing.assert_allclose(*centres, atol=1e-4)


def test_the_run_leaves_an_encoder_and_its_figures(dino_run):
    encoder = load_encoder(dino_run / "model")
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    assert encoder.embed(images).shape == (3, 1, 64)
    spec = json.loads((dino_run / "model" / "model.json").read_text())
    assert spec["kind"] == "encoder" and spec["embedding"] == {"tokens": 1, "dim": 64}
    measured = json.loads((dino_run / "summary.json").read_text())["measured"]
    for name in ("", "random_init_", "colour_"):
        assert 0 <= measured[f"{name}retrieval_at_1"]["value"] <= 1
    lines = read_metrics(dino_run)
    assert {"loss", "teacher_entropy", "feature_spread"} <= lines[0].keys()
    assert 0 < lines[0]["teacher_entropy"] < np.log(64) and 0 < lines[0]["feature_spread"] < 1.2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"local_px": 24}, "local_px is 24, expected a multiple of the network's patches of 16 px"),
        ({"local_area": (0.5, 0.2)}, "local_area is .*, expected two areas, 0 < smallest"),
        ({"teacher_momentum": 1.5}, "teacher_momentum is 1.5, expected a share from 0 to 1"),
        ({"student_temperature": 0.0}, "student_temperature is 0.0, expected a number above 0"),
        ({"teacher_temperature": (0.04,)}, "teacher_temperature is .*, expected two numbers above"),
        ({"local_count": -1}, "local_count is -1, expected 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message, records_dir, tmp_path):
    config = small_config(records_dir)
    config.model.distillation.update(change)
    with pytest.raises(InputError, match=f"config.model.distillation.{message}"):
        train(config, tmp_path / "train")
    assert not (tmp_path / "train").exists()


def test_parts_of_a_batch_are_refused_where_all_of_it_is_compared(records_dir, tmp_path):
    config = small_config(records_dir)
    config.accumulation = 2
    with pytest.raises(InputError, match="accumulation is 2, expected 1 .or no model.distillation"):
        train(config, tmp_path / "train")


def test_crowding_is_minus_the_log_of_the_distance_to_the_nearest():
    points = np.random.default_rng(0).normal(size=(6, 4))
    points[3] = 5 * (points[0] + 0.01)
    found, units = [], points / np.linalg.norm(points, axis=1, keepdims=True)
    for i in range(6):
        found.append(-np.log(min(np.linalg.norm(units[i] - units[j]) for j in range(6) if j != i)))
    np.testing.assert_allclose(crowding(jnp.float32(units)), found, rtol=1e-3)


def test_a_network_of_another_size_than_the_patches_is_refused(records_dir, tmp_path):
    config = small_config(records_dir)
    config.model.architecture.image_size = 128
    with pytest.raises(InputError, match="image_size is 128, the patches have 64 px"):
        train(config, tmp_path / "train")
