"""The published large image: its noise, its consensus, its decoding, any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from toy import SCHEDULE, make_toy, random_grid

from ssl_diffusion.diffusion.plans import make_plan
from ssl_diffusion.diffusion.prediction import to_prediction
from ssl_diffusion.diffusion.solvers import solve
from ssl_diffusion.diffusion.timesteps import trailing_timesteps
from ssl_diffusion.errors import InputError
from ssl_diffusion.pixels import to_uint8
from ssl_diffusion.stitching.published import (
    decode_windows,
    keyed_draws,
    published_eta,
    published_image,
    published_latent,
)

WINDOW, CHANNELS = 8, 2
TOY = make_toy()
DENOISE = TOY.denoiser(4.0)


def latent(height, width, key=0, window_batch=16, denoise=DENOISE, steps=5, condition=TOY.context):
    return published_latent(
        denoise,
        SCHEDULE,
        condition,
        jnp.asarray(random_grid(-(-height // 8), -(-width // 8))),
        keyed_draws(jax.random.key(key), (1, height, width, CHANNELS)),
        timesteps=trailing_timesteps(1000, steps),
        window=WINDOW,
        window_batch=window_batch,
    )


def test_latent_of_one_window_is_the_patch_sampler_with_its_noise():
    draw = keyed_draws(jax.random.key(0), (1, WINDOW, WINDOW, CHANNELS))
    alpha, sigma = SCHEDULE.at(jnp.array([999.0]))
    path = trailing_timesteps(1000, 5)
    plain = solve(
        make_plan("ddim", SCHEDULE, path, eta=published_eta(SCHEDULE, path)),
        lambda k: (DENOISE, jnp.asarray(random_grid(1, 1)[0])),
        alpha * draw(0) + sigma * draw(1),
        noise=lambda step, like: draw(step + 2),
    )
    np.testing.assert_allclose(latent(WINDOW, WINDOW), plain, atol=3e-6)


def test_noise_is_that_of_one_entry_of_the_table():
    every, strided = trailing_timesteps(1000, 1000), trailing_timesteps(1000, 50)
    np.testing.assert_allclose(published_eta(SCHEDULE, every), 1, atol=1e-6)
    abar = np.asarray(SCHEDULE.alpha, np.float64) ** 2
    beta, passed = 1 - abar[499] / abar[498], 1 - abar[499] / abar[479]
    assert list(strided[25:27]) == [499, 479]
    np.testing.assert_allclose(published_eta(SCHEDULE, strided)[25] ** 2, beta / passed, rtol=1e-6)


def test_consensus_is_uniform_over_windows_at_a_quarter_of_their_side():
    def says_its_context(schedule, x, timestep, context):
        x0 = jnp.broadcast_to(context[:, :1, :1, None], x.shape)
        return to_prediction("x0", x0, x, *schedule.at(timestep))

    values = np.random.default_rng(1).normal(size=9).astype(np.float32)
    numbered = lambda embeddings: jnp.tile(values[:, None, None], (1, 1, 3))  # noqa: E731
    denoise = Partial(says_its_context, SCHEDULE)
    found = latent(12, 12, denoise=denoise, steps=1, condition=numbered)
    expected, count = np.zeros((12, 12)), np.zeros((12, 12))
    for value, (y, x) in zip(values, [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)], strict=True):
        expected[y : y + 8, x : x + 8] += value
        count[y : y + 8, x : x + 8] += 1
    np.testing.assert_allclose(found[0, :, :, 0], expected / count, atol=1e-6)


def test_latent_depends_on_the_key_and_not_on_the_window_batch():
    first = latent(17, 20)
    np.testing.assert_allclose(latent(17, 20, window_batch=5), first, atol=1e-5)
    assert np.abs(latent(17, 20, key=1) - first).max() > 0.1


def test_windows_are_decoded_with_gaussian_weights():
    shapes = []

    def decode(latent):  # the mean of the window, so that weights show
        shapes.append(latent.shape)
        return jnp.full((1, 2 * latent.shape[1], 2 * latent.shape[2], 3), latent.mean())

    latent = jax.random.uniform(jax.random.key(0), (8, 12, 2), minval=-1, maxval=1)
    found = decode_windows(decode, latent, 2, WINDOW)
    assert shapes == [(1, 8, 8, 2)] * 3
    place = np.linspace(-1, 1, 16)
    weight = np.exp(-(place[:, None] ** 2 + place**2) / 0.64)
    total, image = np.zeros((16, 24)), np.zeros((16, 24))
    for x in (0, 2, 4):
        total[:, 2 * x : 2 * x + 16] += weight
        image[:, 2 * x : 2 * x + 16] += weight * float(latent[:, x : x + 8].mean())
    off = np.abs(found[..., 0].astype(int) - to_uint8(np.stack([image / total] * 3, -1))[..., 0])
    assert off.max() <= 1 and (off > 0).mean() < 0.01


def test_an_image_has_any_size_from_one_patch_on():
    image = published_image(TOY, random_grid(2, 3), 17, 33, jax.random.key(0))
    assert image.shape == (17, 33, 3) and image.std() > 10


def test_an_image_is_refused_unless_its_grid_covers_it():
    with pytest.raises(InputError, match="2 rows and 2 columns.*expected 2 rows and 3 columns"):
        published_image(TOY, random_grid(2, 2), 32, 33, jax.random.key(0))
    draw = keyed_draws(jax.random.key(0), (1, 16, 17, CHANNELS))
    with pytest.raises(InputError, match="2 rows and 1 columns for a canvas of 17x16 latent"):
        grid = jnp.asarray(random_grid(2, 1))
        published_latent(DENOISE, SCHEDULE, TOY.context, grid, draw, window=WINDOW)
