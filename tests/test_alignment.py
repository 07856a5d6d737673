"""REPA: the layer that is drawn, the loss, and how far its gradient reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config, random_params, shrink
from safetensors.numpy import load_file
from test_models import DIT, UNET
from test_prepare import recipe

from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.models.build import build_network
from ssl_diffusion.prepare import prepare
from ssl_diffusion.training.alignment import Alignment
from ssl_diffusion.training.sharding import make_mesh
from ssl_diffusion.training.state import init_state, make_train_step, means, no_totals
from ssl_diffusion.training.tasks.denoiser import DenoiserTask

TOKENS = (16, 6)  # 4x4 of dimension 6
LATENT = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 4), np.float32))
INPUTS = LATENT, jnp.array([3.0, 700.0]), jnp.ones((2, 1, 5))
# Layer, the shape of its features, and what lies behind it.
CASES = {
    "unet": (
        {**UNET, "channel_multipliers": [1, 1]},
        "middle_block_0",
        (2, 4, 4, 32),
        ("middle_block_1", "middle_block_2", "output_blocks", "out_norm", "out_conv"),
    ),
    "dit": (
        {**DIT, "depth": 3},
        "transformer_blocks_1",
        (2, 4, 4, 32),
        ("transformer_blocks_2", "scale_shift_table", "proj_out"),
    ),
}


def make(network, layer: str, tokens=TOKENS) -> Alignment:
    return Alignment({"layer": layer, "hidden": 8, "weight": 0.5}, network, tokens)


@pytest.mark.parametrize("case, remat", [("unet", True), ("dit", False), ("dit", True)])
def test_gradient_of_the_alignment_reaches_the_layers_up_to_its_own(case, remat):
    architecture, layer, shape, behind = CASES[case]
    network = build_network(architecture).clone(remat=remat)
    params = random_params(network, *INPUTS)
    alignment = make(network, layer)
    projector = jax.jit(alignment.init)(jax.random.key(0), params, *INPUTS)
    tokens = jax.random.normal(jax.random.key(1), (2, *TOKENS))

    @jax.jit
    def both(params):
        def loss(params):
            output, hidden = alignment.apply(params, *INPUTS)
            return alignment.loss(projector, hidden, tokens).sum(), (output, hidden)

        return jax.grad(loss, has_aux=True)(params)

    gradient, (output, hidden) = both(params)
    assert hidden.shape == shape
    plain = jax.jit(lambda p: build_network(architecture).apply({"params": p}, *INPUTS))(params)
    np.testing.assert_allclose(output, plain, rtol=1e-5, atol=1e-5)
    reached = {
        name: any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(part))
        for name, part in gradient.items()
    }
    assert [name for name in params if not reached[name]] == [
        name for name in params if name.startswith(behind)
    ]
    assert reached[layer] and reached["time_embed"]


def test_the_features_are_the_output_of_the_named_block():
    """Of a transformer's last block: the head alone makes the network's output of them."""
    network = build_network({**DIT, "adaln": "block"})
    params = random_params(network, *INPUTS)
    alignment = make(network, "transformer_blocks_1")
    # A head that ignores its modulation, reads one feature and puts it into every pixel.
    params["adaln_out"] = jax.tree.map(jnp.zeros_like, params["adaln_out"])
    params["proj_out"] = {"kernel": jnp.zeros((32, 16)).at[5].set(1.0), "bias": jnp.zeros(16)}
    output, hidden = jax.jit(alignment.apply)(params, *INPUTS)
    mean, std = hidden.mean(-1), hidden.std(-1)
    expected = ((hidden[..., 5] - mean) / std).repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(output, jnp.stack([expected] * 4, -1), atol=1e-4)


def test_loss_is_minus_the_mean_cosine():
    alignment = make(build_network(DIT), "transformer_blocks_1")
    hidden = jax.random.normal(jax.random.key(0), (3, 4, 4, 32))
    projector = alignment.projector.init(jax.random.key(1), hidden)["params"]
    exact = alignment.projector.apply({"params": projector}, hidden).reshape(3, 16, 6)
    np.testing.assert_allclose(alignment.loss(projector, hidden, exact), -1.0, atol=1e-6)
    # The length of a token does not matter; its direction does, in every example by itself.
    scale = jnp.array([5.0, 0.1, -2.0])[:, None, None]
    np.testing.assert_allclose(
        alignment.loss(projector, hidden, exact * scale), [-1.0, -1.0, 1.0], atol=1e-6
    )
    half = exact.at[:, :8].multiply(-1.0)
    np.testing.assert_allclose(alignment.loss(projector, hidden, half), 0.0, atol=1e-6)
    # A token of zeros has no direction, and counts as 0.
    part = exact.at[:, :4].set(0.0)
    np.testing.assert_allclose(alignment.loss(projector, hidden, part), -0.75, atol=1e-6)


class Identity:
    """In the projector's place."""

    def apply(self, params, x):
        return x


def test_features_on_a_finer_grid_are_resized_to_the_tokens_places():
    """Coordinates of 8x8 places resized to 4x4, inside the border: (2 r + 1/2, 2 c + 1/2)."""
    alignment = make(build_network(DIT), "transformer_blocks_1", (16, 3))
    alignment.projector = Identity()
    rows, columns = jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0), indexing="ij")
    hidden = jnp.stack([rows, columns, jnp.full((8, 8), 3.0)], -1)[None]
    rows, columns = jnp.meshgrid(2 * jnp.arange(4) + 0.5, 2 * jnp.arange(4) + 0.5, indexing="ij")
    tokens = jnp.stack([rows, columns, jnp.full((4, 4), 3.0)], -1)
    inside = jnp.zeros((4, 4, 1)).at[1:3, 1:3].set(1.0)
    right = (tokens * inside).reshape(1, 16, 3)
    np.testing.assert_allclose(alignment.loss({}, hidden, right), -4 / 16, atol=1e-6)
    turned = (tokens.swapaxes(0, 1) * inside).reshape(1, 16, 3)
    assert alignment.loss({}, hidden, turned)[0] > -0.249


def test_what_cannot_be_aligned_is_refused():
    network = build_network(DIT)
    with pytest.raises(InputError, match="15 patch tokens, expected a square number"):
        make(network, "transformer_blocks_1", (15, 6))
    with pytest.raises(InputError, match="repa holds layer, wide, expected hidden, layer, weight"):
        Alignment({"layer": "transformer_blocks_1", "wide": 8}, network, TOKENS)
    params = random_params(network, *INPUTS)
    with pytest.raises(
        InputError,
        match="repa.layer is 'block_9', expected one of transformer_blocks_0, transformer_blocks_1",
    ):
        make(network, "block_9").init(jax.random.key(0), params, *INPUTS)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Of a piece of the slide, with patch tokens."""
    folder = tmp_path_factory.mktemp("tokens")
    prepare(recipe(folder, patch_tokens=True), folder / "records")
    return open_records(folder / "records")


def aligned(layer: str):
    config = shrink(load_config("demo", "dit"))
    config.data.patch_tokens = True
    config.objective.repa = {"layer": layer, "hidden": 16, "weight": 0.5}
    return config


def test_a_denoiser_is_trained_with_it_and_exported_without(records, tmp_path):
    config = aligned("transformer_blocks_0")
    task = DenoiserTask(config, records)
    assert task.fields == ("embedding", "latent", "tokens")
    batch = records.source("train", task.fields, raw=True).spread(8)
    state = jax.jit(lambda: init_state(task, config))()
    totals = no_totals(task, config)
    before = jax.device_get(state.params["projector"])
    step = jax.jit(make_train_step(task, config, make_mesh(1, jax.devices()[:1])))
    for _ in range(2):  # the first is one of warm-up, at a rate of 0
        state, totals = step(state, totals, batch, {})
    found = means(jax.device_get(totals))
    assert -1 < found["alignment"] < 1
    np.testing.assert_allclose(
        found["loss"], found["denoising"] + 0.5 * found["alignment"], rtol=1e-5
    )
    after = jax.device_get(state.params["projector"])
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), before, after)))
    task.export(jax.device_get(state.params), tmp_path / "model", {})
    names = load_file(tmp_path / "model" / "weights.safetensors").keys()
    assert {name.split("/")[0] for name in names} == {"denoiser", "conditioner"}


def test_a_config_that_cannot_be_aligned_is_refused_before_anything_compiles(records):
    with pytest.raises(InputError, match="repa.layer is 'transformer_blocks_7'"):
        DenoiserTask(aligned("transformer_blocks_7"), records)
    config = aligned("transformer_blocks_0")
    assert "tokens" in DenoiserTask(config, None).fields  # of a step without records, as of a plan
    config.data.tokens.count = 64
    with pytest.raises(InputError, match="tokens .*'count': 16.*, config.data.tokens says .*64"):
        DenoiserTask(config, records)
    config.data.patch_tokens = False
    with pytest.raises(InputError, match="there are none; set config.data.patch_tokens"):
        DenoiserTask(config, records)
    config.objective.repa = {"layer": "transformer_blocks_0", "hidden": "a", "weight": 0.5}
    config.data.patch_tokens, config.data.tokens.count = True, 16
    with pytest.raises(InputError, match="repa.hidden is 'a', expected a width"):
        DenoiserTask(config, records)
