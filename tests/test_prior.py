"""The prior's task: trained on grids of a known Gaussian, sampled, written and opened again."""

import json

import jax
import numpy as np
import pytest
from conftest import load_config
from grid_records import COVARIANCE, DIM, MEANS, correlated, write, write_gaussian
from PIL import Image

from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.prior.asked import Asked
from ssl_diffusion.prior.model import load_prior
from ssl_diffusion.prior.sampling import sample_grids
from ssl_diffusion.train import train
from ssl_diffusion.training.state import example_keys
from ssl_diffusion.training.tasks.prior import PriorTask

WINDOW = 3
LABEL = {"label": {"size": 2, "dropout": 0.1}}
CELLS = {"label_map": {"size": 2, "dropout": 0.5, "partial": 0.3, "clusters": 0}}


def config_for(records, conditions, steps=1500):
    config = load_config("demo_prior")
    config.data.update({"dir": str(records), "window": WINDOW, "encoder": "", "autoencoder": ""})
    config.data.patch_px = 8
    config.data.embedding = {"tokens": 1, "dim": DIM}
    config.model.architecture = {"width": 32, "depth": 2, "heads": 2}
    config.model.components = DIM
    config.conditions = conditions
    config.steps, config.batch_size = steps, 64
    config.log_every, config.checkpoint_every, config.sample_every = 100, steps, steps
    config.optimizer.warmup_steps, config.optimizer.learning_rate = 20, 5e-3
    config.sampling.stride, config.sampling.steps, config.sampling.guidance = 1, 20, 1.0
    return config


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    return write_gaussian(tmp_path_factory.mktemp("gaussian") / "records", sources=60)


@pytest.fixture(scope="module")
def trained(gaussian, tmp_path_factory):
    """The workdir of a prior of both classes, by label and by painted map."""
    workdir = tmp_path_factory.mktemp("prior") / "run"
    train(config_for(gaussian, LABEL | CELLS), workdir)
    return workdir


def test_a_trained_prior_has_the_moments_of_its_classes(trained):
    prior = load_prior(trained / "model")
    for name, mean in MEANS.items():
        grids = sample_grids(prior, Asked(label={name: 1.0}), 3, 3, samples=300)[..., 0, :]
        deviation = np.sqrt(np.diag(COVARIANCE))
        assert (np.abs(grids.mean((0, 1, 2)) - mean) < 0.3 * deviation).all()
        spread = grids.reshape(-1, DIM).std(0) / deviation
        assert (spread > 0.7).all() and (spread < 1.3).all()
        centred = grids[..., 2] - grids[..., 2].mean()
        right = (centred[:, :, 1:] * centred[:, :, :-1]).mean() / centred.var()
        below = (centred[:, 1:] * centred[:, :-1]).mean() / centred.var()
        assert right > below > 0.3  # 0.8 and 0.6


def test_a_painted_map_says_what_the_cells_are(trained):
    """Of one column the class is told, and the others follow it: no grid here is of both."""
    prior = load_prior(trained / "model")
    for number, sign in ((0, 1), (1, -1)):
        painted = np.full((3, 3), -1, np.int32)
        painted[:, 0] = number
        grids = sample_grids(prior, Asked(label_map=painted), 3, 3, samples=60)[..., 0, :]
        assert (sign * grids[..., 0].mean((0, 1)) > 1.5).all()  # 3 and -3


def test_what_it_measured_notices_the_conditions(trained):
    measured = json.loads((trained / "summary.json").read_text())["measured"]
    assert measured["held_out_loss"] < measured["held_out_dropped"] < measured["held_out_shuffled"]
    assert measured["variance_kept"] == pytest.approx(1)


def test_its_folder_tells_what_it_can_be_asked(trained):
    spec = load_prior(trained / "model").spec
    assert spec["conditions"]["label"] == {"classes": [*MEANS]}
    colours = spec["conditions"]["label_map"]["colours"]
    assert len(colours) == len({*colours}) == 2
    with Image.open(trained / "model" / "label_map.png") as legend:
        shown = np.asarray(legend)
    for row, colour in enumerate(colours):  # the square that begins each row
        assert "#{:02x}{:02x}{:02x}".format(*shown[36 + 68 * row, 36]) == colour
    assert spec["trained"]["steps"] == 1500 and spec["patch_px"] == 8


def test_a_cell_that_is_not_present_changes_nothing(gaussian):
    task = PriorTask(config_for(gaussian, LABEL), open_records(gaussian))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape, np.float32),
        jax.jit(task.init)(jax.random.key(0)),
    )
    examples = [task.examples(task.records, "train")[i] for i in range(8)]
    batch = {name: np.stack([example[name] for example in examples]) for name in task.fields}
    batch["present"][:, 2, 1] = False
    keys = example_keys(0, 0, 8)
    loss = jax.jit(task.loss)
    expected, _ = loss(params, task.frozen, batch, keys)
    batch["embedding"][:, 2, 1] = 50.0
    batch["label"][:, 2, 1] = 1 - batch["label"][:, 0, 0]
    found, _ = loss(params, task.frozen, batch, keys)
    np.testing.assert_array_equal(found, expected)
    batch["embedding"][:, 0, 0] += 1.0
    found, _ = loss(params, task.frozen, batch, keys)
    assert (np.abs(found - expected) > 1e-4).all()


def test_a_loss_is_the_example_s_own(gaussian):
    task = PriorTask(config_for(gaussian, LABEL | CELLS), open_records(gaussian))
    params = jax.jit(task.init)(jax.random.key(0))
    examples = [task.examples(task.records, "train")[i] for i in range(6)]
    batch = {name: np.stack([example[name] for example in examples]) for name in task.fields}
    keys = example_keys(0, 0, 6)
    loss = jax.jit(task.loss)
    losses, _ = loss(params, task.frozen, batch, keys)
    part, _ = loss(params, task.frozen, {n: v[2:4] for n, v in batch.items()}, keys[2:4])
    np.testing.assert_allclose(losses[2:4], part, rtol=1e-5)


def test_a_batch_has_the_shapes_that_are_told(gaussian):
    task = PriorTask(config_for(gaussian, LABEL | CELLS), open_records(gaussian))
    example = task.examples(task.records, "train")[0]
    told = {name: (one.shape[1:], one.dtype) for name, one in task.batch(4).items()}
    assert told == {name: (example[name].shape, example[name].dtype) for name in task.fields}
    shapes = jax.eval_shape(lambda: task.frozen)
    bare = PriorTask(config_for(gaussian, LABEL | CELLS), None)
    assert jax.tree.structure(bare.frozen) == jax.tree.structure(shapes)


def test_sentences_of_records_and_captions_are_conditions(gaussian, tmp_path):
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"a": ["one thing", "another"], "b": ["something else"]}))
    text = {"size": 384, "dropout": 0.0, "encoder": "minilm", "captions": str(captions)}
    config = config_for(gaussian, {"text": text})
    config.model.condition_dropout = 0.0
    task = PriorTask(config, open_records(gaussian))
    assert task.frozen["sentences"].shape == (5, 384)  # two texts of the records, three captions
    counts = np.asarray(task.frozen["counts"])
    assert sorted(counts.tolist()) == [2, 3]
    assert task.conditions.spec["text"]["dim"] == 384
    example = task.examples(task.records, "train")[0]
    assert counts[example["caption"][0, 0]] == 3  # of class a


def test_vectors_are_recovered_on_held_out_ones(tmp_path):
    """A map from vectors to means that no linear model knows; R^2 against a linear one's."""
    rng = np.random.default_rng(3)
    count, held = 300, 40
    vectors = rng.standard_normal((count + held, 6))
    weights = rng.standard_normal((6, DIM))
    means = 2 * np.abs(vectors @ weights) - 2
    grids = {"train": [], "test": []}
    for number, mean in enumerate(means):
        split = "train" if number < count else "test"
        grid = mean + 0.5 * correlated(rng, 1, 3, 3)[0]
        grids[split].append((f"s{number}.png", grid, {}))
    records = write(tmp_path / "records", grids)
    table = tmp_path / "genes.csv"
    names = [f"GENE{i}" for i in range(6)]
    lines = [",".join(["source", *names])]
    lines += [f"s{i}.png," + ",".join(map(str, row)) for i, row in enumerate(vectors)]
    table.write_text("\n".join(lines))
    vector = {"size": 6, "dropout": 0.1, "file": str(table), "log1p": False}
    config = config_for(records, {"vector": vector}, steps=600)
    config.data.balance = False
    train(config, tmp_path / "run")
    prior = load_prior(tmp_path / "run" / "model")
    assert prior.spec["conditions"]["vector"] == {"names": names, "log1p": False}
    sampled = np.stack(
        [
            sample_grids(prior, Asked(vector=row.astype(np.float32)), 3, 3, samples=4).mean(
                (0, 1, 2)
            )
            for row in vectors[count:]
        ]
    )[:, 0]

    def r2(predicted):
        gap = ((predicted - means[count:]) ** 2).sum(0)
        return float(np.mean(1 - gap / ((means[count:] - means[count:].mean(0)) ** 2).sum(0)))

    inputs = np.concatenate([vectors, np.ones((len(vectors), 1))], 1)
    solved, *_ = np.linalg.lstsq(inputs[:count], means[:count], rcond=None)
    assert r2(inputs[count:] @ solved) < 0.2
    assert r2(sampled) > 0.5


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda c: c.conditions.label.update({"size": 3}), "label.size is 3, the records have 2"),
        (lambda c: c.conditions.label.update({"dropout": 1.0}), "label.dropout is 1.0"),
        (lambda c: c.conditions.update({"colour": {"size": 1}}), "config.conditions has colour"),
        (lambda c: c.model.update({"components": 9}), "components is 9.*have 4"),
        (lambda c: c.data.update({"window": 0}), "window is 0"),
        (lambda c: c.data.embedding.update({"dim": 5}), r"embeddings of \[1, 4\].*says \[1, 5\]"),
        (lambda c: c.data.update({"mix": (("a", 1.0),)}), "config.data.mix is of denoisers"),
        (lambda c: c.data.update({"full_grids": 2.0}), "full_grids is 2.0"),
        (
            lambda c: c.sampling.update({"stride": 4}),
            "config.sampling.stride is 4, expected 1 to 3",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused(gaussian, change, match):
    config = config_for(gaussian, LABEL)
    with config.unlocked():
        change(config)
    with pytest.raises(InputError, match=match):
        PriorTask(config, open_records(gaussian))
