"""What the benchmarks count, and that they run; their seconds are nobody's business here."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run_command

from ssl_diffusion import rates
from ssl_diffusion.benchmarks import evaluate, savings, stitching
from ssl_diffusion.benchmarks.denoiser import forward
from ssl_diffusion.benchmarks.published import SIZES, PublishedDenoiser
from ssl_diffusion.rates import matmul_flop

# Products and convolutions of one forward. The published U-Net takes 208.5 GFLOP; with one token
# the queries and outputs of its cross-attentions, 2 * 2 n c^2 each, need not be computed.
UNET_GFLOP = 208.5 - 4e-9 * (5 * 1024 * 384**2 + 5 * 256 * 576**2 + 6 * 64 * 960**2)
DIT_GFLOP = 1e-9 * 28 * (2 * 12 * 256 * 1152**2 + 4 * 256**2 * 1152)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for timed in (rates.repeated, rates.product_rate):
        monkeypatch.setattr(timed, "__defaults__", (0.0,))  # seconds
    monkeypatch.setattr(rates, "RUNS", 1)
    monkeypatch.setattr(stitching, "PRODUCTS", (64,))


@pytest.mark.parametrize(("name", "gflop"), [("unet", UNET_GFLOP), ("dit", DIT_GFLOP)])
def test_the_flop_of_the_published_sizes_are_counted(name, gflop):
    model = PublishedDenoiser(name, "float32")
    _, latent, width = SIZES[name]

    def apply(params, x, timestep, tokens):
        own = PublishedDenoiser(name, "float32", params=params)
        return model.network.apply({"params": params}, x, timestep, own.context(tokens))

    inputs = (jnp.zeros(shape) for shape in ((1, *latent), (1,), (1, 1, width)))
    jaxpr = jax.make_jaxpr(apply)(model.shapes, *inputs).jaxpr
    # Projecting the context is a thousandth.
    assert matmul_flop(jaxpr) / 1e9 == pytest.approx(gflop, rel=0.005)


def test_flop_in_loops_count_as_often_as_they_run():
    def looped(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, None, length=7)[0]

    assert matmul_flop(jax.make_jaxpr(looped)(jnp.zeros((4, 4))).jaxpr) == 7 * 2 * 4**3


def test_an_evaluation_denoises_every_window_and_what_fills_up_its_tiles():
    rows = [*stitching.measure("small", "float32", [128], [8], 4, 4.0, seconds=1e9)]
    _, per_forward = forward(PublishedDenoiser("small", "float32").filled(), 1)
    overlap, shifted = rows
    assert (overlap["windows"], overlap["forwards"]) == (9, 18)
    assert (shifted["windows"], shifted["forwards"]) == (9, 18)  # 2 x 2 cells and one more each way
    for row in rows:
        assert row["measured"] == row["windows"]
        forwards = row["tflop"] * 1e12 / per_forward
        assert forwards == pytest.approx(18, rel=0.01)
    assert "128" in stitching.table(rows)


def test_a_canvas_that_takes_too_long_is_measured_in_part():
    (row, _) = stitching.measure("small", "float32", [256], [8], 2, 1.0, seconds=0.0)
    assert row["measured"] < row["windows"] == 49 and "*" in stitching.table([row])


def test_what_an_evaluation_holds_does_not_grow_with_the_canvas():
    here = types.SimpleNamespace(devices=jax.devices()[:1])
    given = "small", "float32"
    found = [stitching.compile_for(here, *given, size, 8, 1, 4.0) for size in (256, 1024)]
    canvas = [(size // 4) ** 2 * 3 * 4 / 1e9 for size in (256, 1024)]
    beyond = [row["temporary_gb"] - 3 * held for row, held in zip(found, canvas, strict=True)]
    assert beyond[1] < 1.3 * found[0]["temporary_gb"]
    assert found[1]["windows"] == 31**2


def test_exact_tricks_change_nothing_and_guidance_does():
    rows = {row["trick"]: row for row in savings.measure("small", "float32", 2)}
    assert rows["context projected once"]["difference"] < 1e-5
    assert rows["one token is a bias"]["difference"] < 1e-5
    assert rows["no guidance outside the interval"]["difference"] > 0.1
    assert "another image" in savings.table([*rows.values()])


def test_a_topology_that_is_none_is_named():
    result = run_command("benchmark", "topology", "--topology=v0:1x1", "--network=small")
    assert result.returncode == 2
    assert "--topology=v0:1x1 cannot be compiled for" in result.stderr.splitlines()[-1]


def test_filled_parameters_keep_activations_sensible():
    model = PublishedDenoiser("small", "float32").filled()
    context = model.context(np.ones((1, 1, 64), np.float32))
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    assert 0.1 < float(jnp.std(model.denoiser(1.0)(x, jnp.array([500.0]), context).eps)) < 10


def test_ways_to_the_set_measures_agree():
    """Ours, the formula's and scikit-learn's, on the same made features."""
    x, y = evaluate.features(60, 8, 0), evaluate.features(60, 8, 1)
    for ways in (evaluate.WAYS["fd"], evaluate.WAYS["precision"]):
        ours, other = (way(x, y) for (_, module), way in ways.items() if not module)
        assert other == pytest.approx(ours, rel=1e-5)
    (row,) = evaluate.measure(["kid of all pairs"], 60, 8)
    assert row["ratio"] == row["core_ratio"] == 1
    assert "kid of all pairs" in evaluate.table([row])
