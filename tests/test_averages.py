"""Averages over training: kept, written, and combined to a length that was not kept."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run_command

from ssl_diffusion import demo
from ssl_diffusion.average import FLAGS, average, main
from ssl_diffusion.errors import InputError
from ssl_diffusion.training.averages import (
    fit_error,
    gamma_of,
    profile_name,
    read_snapshots,
    solve_weights,
    update,
    write_snapshot,
)
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.folder import NEEDED, write_model
from ssl_diffusion.weights.safetensors_file import read_tensors

STEPS = 2000


def profile(step: int, gamma: float) -> np.ndarray:
    """The weight of every step from 1 to `step` in an average that is updated at each."""
    bounds = (np.arange(step + 1) / step) ** (gamma + 1)
    return np.diff(bounds)


def tracked(trajectory: np.ndarray, step: int, sigma_rel: float) -> np.ndarray:
    """The average after `step` steps of a trajectory [steps, dim], float64."""
    return profile(step, gamma_of(sigma_rel)) @ trajectory[:step]


def kept(every: int, sigma_rels, steps: int = STEPS) -> list[tuple[int, float]]:
    """(step, sigma_rel) of the snapshots of a run."""
    return [(step, s) for step in range(every, steps + 1, every) for s in sigma_rels]


def pairs_of(snapshots) -> list[tuple[int, float]]:
    return [(step, gamma_of(sigma_rel)) for step, sigma_rel in snapshots]


def walk(offset: float = 0.0, dim: int = 64) -> np.ndarray:
    """Parameters that wander, [STEPS, dim]."""
    return offset + np.random.default_rng(0).standard_normal((STEPS, dim)).cumsum(0)


# The profile


def test_exponents_of_the_paper_and_their_lengths():
    """EDM2 sec. 3.2 keeps sigma_rel 0.05 and 0.10, gamma 16.97 and 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    for sigma_rel in (0.001, 0.03, 0.1, 0.25, 0.288):
        gamma = gamma_of(sigma_rel)
        # Moments of the density (gamma + 1) x^gamma on [0, 1].
        mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
        assert np.sqrt(square - mean**2) == pytest.approx(sigma_rel, rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.2887, 1.0, float("nan")])
def test_a_length_that_no_average_has_is_refused(sigma_rel):
    with pytest.raises(InputError, match="above 0 and below 0.2887"):
        gamma_of(sigma_rel)


def test_names():
    assert [profile_name(value) for value in (0.05, 0.1, 0.288)] == ["0.050", "0.100", "0.288"]
    with pytest.raises(InputError, match="three decimals"):
        profile_name(0.0755)


# The update


def test_average_of_a_ramp_is_known():
    """theta(t) = t: (gamma + 1) / (gamma + 2) t, and half a step for they are discrete."""
    gammas = tuple(gamma_of(sigma_rel) for sigma_rel in (0.05, 0.1, 0.25))
    ramp = jnp.arange(1, STEPS + 1, dtype=jnp.float32)

    @jax.jit
    def run():
        def body(averages, step):
            return update(averages, {"w": {"kernel": ramp[step - 1]}}, step, gammas), None

        start = tuple({"w": {"kernel": jnp.float32(0)}} for _ in gammas)
        return jax.lax.scan(body, start, jnp.arange(1, STEPS + 1))[0]

    for found, gamma in zip(run(), gammas, strict=True):
        expected = (gamma + 1) / (gamma + 2) * STEPS + 0.5
        assert float(found["w"]["kernel"]) == pytest.approx(expected, abs=0.05)
        exact = profile(STEPS, gamma) @ np.arange(1, STEPS + 1)
        assert float(found["w"]["kernel"]) == pytest.approx(exact, rel=2e-5)


def test_first_step_is_the_parameters_themselves():
    params = {"w": jnp.asarray([0.1, -3.0, 1e-20, 7e8])}
    old = {"w": jnp.full(4, 1.7)}
    found = jax.jit(update, static_argnums=3)((old, old), params, 1, (16.97, 0.3))
    for tree in found:
        np.testing.assert_array_equal(tree["w"], params["w"])
    (second,) = update((params,), {"w": 2 * params["w"]}, 2, (1.0,))
    np.testing.assert_allclose(second["w"], 1.75 * params["w"], rtol=1e-6)  # beta = 1/4


def test_averages_of_half_precision_are_float32():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    (found,) = update(({"w": jnp.zeros(3)},), params, 3, (1.0,))
    assert found["w"].dtype == jnp.float32


@pytest.mark.parametrize("sigma_rel", [0.05, 0.2])
def test_average_of_a_long_training_still_moves(sigma_rel):
    """From step 10^6 on, 10^5 steps of a parameter near 1 that moves by 1 %: within 2 % of that."""
    start, steps, gamma = 1_000_000, 100_000, gamma_of(sigma_rel)

    def params(step):
        return 1.0 + 1e-7 * (step - start) + 1e-4 * jnp.cos(1.7 * (step - start))

    def body(i, averages):
        return update(averages, params(start + i), start + i, (gamma,))

    (found,) = jax.jit(lambda a: jax.lax.fori_loop(1, steps + 1, body, (a,)))(jnp.float32(1.0))
    weights = np.diff((np.arange(start, start + steps + 1) / (start + steps)) ** (gamma + 1))
    moved = weights @ (1e-7 * np.arange(1, steps + 1))
    assert moved > 1e-3 * (0.15 if sigma_rel == 0.2 else 1)
    assert float(found) - 1.0 == pytest.approx(moved, rel=0.02)


def test_steps_that_enter_late_in_a_training():
    def weight(step: int) -> float:
        return float(update((jnp.float32(0.0),), jnp.float32(1.0), step, (1.0,))[0])

    assert weight(8191) == pytest.approx(1 - (1 - 1 / 8191) ** 2, rel=1e-6)
    assert weight(8193) == 0.0
    assert weight(8194) == pytest.approx(1 - (1 - 2 / 8194) ** 2, rel=1e-6)
    assert [weight(2**20 + k) > 0 for k in (0, 128, 255, 256)] == [True, False, False, True]


# Combinations


def test_kept_average_is_itself():
    snapshots = pairs_of(kept(100, (0.05, 0.1)))
    weights = solve_weights(snapshots, 1500, gamma_of(0.1))
    np.testing.assert_array_equal(weights, [pair == (1500, gamma_of(0.1)) for pair in snapshots])
    assert fit_error(snapshots, weights, 1500, gamma_of(0.1)) < 1e-7


def test_almost_a_kept_average_is_almost_itself():
    snapshots = pairs_of(kept(100, (0.05, 0.1)))
    weights = solve_weights(snapshots, STEPS, gamma_of(0.1) + 1e-7)
    np.testing.assert_allclose(weights, np.eye(40)[-1], atol=1e-6)


@pytest.mark.parametrize(
    "sigma_rel, limit", [(0.06, 1e-3), (0.08, 1e-3), (0.13, 1e-3), (0.2, 5e-3)]
)
def test_length_that_was_not_kept(sigma_rel, limit):
    """20 snapshots of 0.05 and 0.1. Unit: how far the average is from the last parameters."""
    theta, snapshots = walk(), kept(100, (0.05, 0.1))
    weights = solve_weights(pairs_of(snapshots), STEPS, gamma_of(sigma_rel))
    stored = np.stack([tracked(theta, *snapshot) for snapshot in snapshots])
    direct = tracked(theta, STEPS, sigma_rel)
    unit = np.linalg.norm(direct - theta[-1])
    nearest = min(np.linalg.norm(direct - stored[i]) for i in (-1, -2))
    error = np.linalg.norm(direct - weights @ stored)
    assert error < limit * unit
    assert error < 0.02 * nearest
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)


def test_parameter_that_never_moved_keeps_its_value():
    """Without the sum of one, the average of 0.25 would be 1.3 % too small."""
    snapshots = pairs_of(kept(100, (0.05, 0.1)))
    weights = solve_weights(snapshots, STEPS, gamma_of(0.25))
    assert weights @ np.full(40, 3.0) == pytest.approx(3.0, rel=1e-12)
    error = fit_error(snapshots, weights, STEPS, gamma_of(0.25))
    assert 0.05 < error < 0.07


def test_weights_of_many_like_profiles_stay_small():
    """Solved without a ridge, their magnitudes add up to 1000 and more."""
    every = pairs_of(kept(5000, (0.05, 0.1, 0.15, 0.2, 0.25), steps=1_000_000))
    weights = solve_weights(every, 1_000_000, gamma_of(0.08))
    assert np.abs(weights).sum() < 5
    assert fit_error(every, weights, 1_000_000, gamma_of(0.08)) < 1e-6


def test_error_of_a_fit_is_the_distance_of_the_profiles():
    snapshots, weights = (
        pairs_of([(600, 0.1), (1000, 0.05), (1000, 0.2)]),
        np.array([0.2, 0.5, 0.3]),
    )
    tau = (np.arange(2_000_000) + 0.5) / 2000

    def density(step, gamma):
        return np.where(tau < step, (gamma + 1) / step * (tau / step) ** gamma, 0.0)

    target = density(1000, 3.0)
    total = sum(w * density(*pair) for w, pair in zip(weights, snapshots, strict=True))
    expected = np.sqrt(((total - target) ** 2).sum() / (target**2).sum())
    assert fit_error(snapshots, weights, 1000, 3.0) == pytest.approx(expected, rel=1e-4)


# Snapshots


def test_snapshots_come_back_sorted(tmp_path):
    trees = [{"a": {"kernel": np.full((2, 3), v, np.float32)}, "b": np.float32(v)} for v in (1, 2)]
    write_snapshot(tmp_path, 20, trees, (0.1, 0.05))
    write_snapshot(tmp_path, 3, trees, (0.1, 0.05))
    found = read_snapshots(tmp_path)
    assert [(s.step, s.sigma_rel) for s in found] == [(3, 0.05), (3, 0.1), (20, 0.05), (20, 0.1)]
    assert found[0].file == tmp_path / "00000003" / "0.050.safetensors"
    arrays = read_tensors(found[0].file)
    assert arrays["a/kernel"].tolist() == [[2.0] * 3] * 2 and arrays["b"].shape == ()
    assert read_snapshots(tmp_path / "none") == []


def test_snapshot_that_was_cut_off_is_no_snapshot(tmp_path, monkeypatch):
    tree = {"w": np.ones(2, np.float32)}
    half = tmp_path / ".00000007.partial-1"  # of a process that was killed
    half.mkdir()
    (half / "0.050.safetensors").write_bytes(b"half")
    (tmp_path / ".00000008.partial-1").mkdir()
    assert read_snapshots(tmp_path) == []
    write_snapshot(tmp_path, 7, [tree], (0.05,))
    first = (tmp_path / "00000007" / "0.050.safetensors").read_bytes()
    write_snapshot(tmp_path, 7, [tree], (0.05,))  # by a run that goes on from before
    assert (tmp_path / "00000007" / "0.050.safetensors").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [".00000008.partial-1", "00000007"]
    with pytest.raises(ValueError, match="zip"):
        write_snapshot(tmp_path, 9, [tree], (0.05, 0.1))
    assert [snapshot.step for snapshot in read_snapshots(tmp_path)] == [7]


@pytest.mark.parametrize(
    "name",
    [
        "notes",
        "123",
        "00000000",
        "0000001x",
        "00000001/0.05.safetensors",
        "00000001/0.400.safetensors",
    ],
)
def test_foreign_names_are_refused(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InputError, match="move it away") as error:
        read_snapshots(tmp_path)
    assert str(tmp_path / name) in str(error.value)


# The command


def made(workdir, kind="denoiser", prefix=False, scale=1.0):
    """A workdir with snapshots at 100, 200, ... of a random walk, and a model; the walk."""
    theta = scale * walk(offset=1.0, dim=14)

    def tree(values):
        network = {"in": {"kernel": values[:12].reshape(3, 4)}, "scale": values[12]}
        network = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), network)
        rest = {"projector": {"kernel": np.asarray(values[13:], np.float32)}}
        return rest | ({"encoder": network} if prefix else network)

    for step in range(100, STEPS + 1, 100):
        trees = [tree(tracked(theta, step, sigma_rel)) for sigma_rel in (0.05, 0.1)]
        write_snapshot(workdir / "averages", step, trees, (0.05, 0.1))
    params = tree(tracked(theta, STEPS, 0.05))
    params = params["encoder"] if prefix else {k: params[k] for k in ("in", "scale")}
    trained = {"steps": STEPS, "measured": {"loss": 1.0}}
    spec = {"kind": kind, "trained": trained} | dict.fromkeys(NEEDED[kind], 1)
    parts = {name: demo.resolve(f"demo:{name}") for name in ("encoder", "autoencoder")}
    write_model(workdir / "model", spec, params, parts if kind == "denoiser" else None)
    return theta


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, walk) that tests only add folders to."""
    workdir = tmp_path_factory.mktemp("averages")
    return workdir, made(workdir)


def test_command_makes_a_model_of_each_length(run):
    workdir, theta = run
    result = run_command("average", f"--workdir={workdir}", "--sigma_rel=0.08,0.05")
    assert result.returncode == 0, result.stderr
    assert "sigma_rel 0.080 at step 2000 from 40 averages" in result.stderr
    found = read_tensors(workdir / "model_0.080" / "weights.safetensors")
    assert found.keys() == {"in/kernel", "scale"}
    direct = tracked(theta, STEPS, 0.08)
    difference = np.append(found["in/kernel"].ravel(), found["scale"]) - direct[:13]
    unit = np.linalg.norm((direct - theta[-1])[:13])
    assert np.linalg.norm(difference) < 1e-3 * unit
    spec = json.loads((workdir / "model_0.080" / "model.json").read_text())
    assert spec["trained"].keys() == {"steps", "average"}
    how = spec["trained"]["average"]
    assert (how["sigma_rel"], how["step"], how["snapshots"]) == (0.08, STEPS, 40)
    assert 1e-3 < how["residual"] < 3e-3
    # The length that was kept is the snapshot to the bit, and the other models come along.
    for name in ("weights.safetensors", "encoder/weights.safetensors", "encoder/model.json"):
        same = (workdir / "model_0.050" / name).read_bytes()
        assert same == (workdir / "model" / name).read_bytes()
    assert load_encoder(workdir / "model_0.080" / "encoder").spec["kind"] == "encoder"
    assert sorted(path.name for path in workdir.iterdir()) == [
        "averages",
        "model",
        "model_0.050",
        "model_0.080",
    ]


def test_model_that_is_a_part_of_what_was_trained(tmp_path):
    theta = made(tmp_path, kind="encoder", prefix=True)
    average(tmp_path, {0.07: tmp_path / "seven"}, step=1500)
    found = read_tensors(tmp_path / "seven" / "weights.safetensors")
    direct = tracked(theta, 1500, 0.07)
    unit = np.linalg.norm(direct - theta[1499])
    assert np.linalg.norm(found["in/kernel"].ravel() - direct[:12]) < 2e-3 * unit
    spec = json.loads((tmp_path / "seven" / "model.json").read_text())
    assert spec["trained"]["average"]["snapshots"] == 30


def test_older_model_is_replaced_only_when_told(run, tmp_path):
    workdir, _ = run
    output = tmp_path / "model"
    average(workdir, {0.06: output})
    first = (output / "weights.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        average(workdir, {0.09: output})
    assert (output / "weights.safetensors").read_bytes() == first
    average(workdir, {0.09: output}, overwrite=True)
    assert (output / "weights.safetensors").read_bytes() != first
    with pytest.raises(InputError, match="is no model folder"):
        average(workdir, {0.09: workdir}, overwrite=True)
    assert read_snapshots(workdir / "averages")


@pytest.mark.parametrize(
    "flags, phrase",
    [
        (["--sigma_rel=0.4"], "below 0.2887"),
        (["--sigma_rel=long"], "--sigma_rel=long; expected numbers"),
        (["--sigma_rel=0.0755"], "three decimals"),
        (["--sigma_rel=0.09", "--step=2100"], "beyond the last snapshot; give up to 2000"),
        (["--sigma_rel=0.09", "--step=1560"], "the nearest is 1600"),
        (["--sigma_rel=0.08,0.1", "--output=x"], "names one folder"),
        (["--sigma_rel=0.08", "--output={workdir}/model"], "exists already"),
    ],
)
def test_bad_flags_are_one_line(run, flags, phrase):
    workdir, _ = run
    before = sorted(workdir.rglob("*"))
    FLAGS.unparse_flags()
    FLAGS(["average", f"--workdir={workdir}", *(flag.format(workdir=workdir) for flag in flags)])
    with pytest.raises(InputError) as error:
        main()
    FLAGS.unparse_flags()
    assert phrase in str(error.value) and "\n" not in str(error.value)
    assert sorted(workdir.rglob("*")) == before


def test_bad_input_is_exit_code_2(tmp_path):
    write_model(tmp_path / "model", {"kind": "autoencoder", "architecture": 1, "latent": 1}, {})
    result = run_command("average", f"--workdir={tmp_path}", "--sigma_rel=0.08")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: no snapshots in")


def test_snapshots_of_another_run_are_refused(tmp_path):
    made(tmp_path)
    other = {"in": {"kernel": np.ones((3, 5), np.float32)}, "scale": np.float32(1)}
    write_snapshot(tmp_path / "averages", 300, [other], (0.05,))
    with pytest.raises(InputError, match="00000300/0.050.safetensors does not hold"):
        average(tmp_path, {0.08: tmp_path / "new"})
    average(tmp_path, {0.05: tmp_path / "kept"})  # one snapshot, whatever is in the others
    write_snapshot(tmp_path / "averages", 100, [other], (0.05,))
    with pytest.raises(InputError, match="nowhere"):
        average(tmp_path, {0.08: tmp_path / "new"})
    twice = {"in": {"kernel": np.ones((3, 4), np.float32)}, "scale": np.float32(1)}
    write_snapshot(tmp_path / "averages", 100, [{"a": twice, "b": twice}], (0.05,))
    with pytest.raises(InputError, match="under 'a/' and 'b/'"):
        average(tmp_path, {0.08: tmp_path / "new"})
    assert not (tmp_path / "new").exists()
