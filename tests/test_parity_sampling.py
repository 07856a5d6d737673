"""The published samplers and the published stitched image against their recordings."""

import zlib

import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from ssl_diffusion.diffusion.plans import make_plan
from ssl_diffusion.diffusion.solvers import solve
from ssl_diffusion.diffusion.timesteps import leading_timesteps, trailing_timesteps
from ssl_diffusion.models.build import PRECISIONS
from ssl_diffusion.stitching.grid import interpolate_grid
from ssl_diffusion.stitching.published import decode_windows, published_latent
from ssl_diffusion.stitching.windows import cell_positions, window_origins
from ssl_diffusion.weights.model import load_model


@pytest.fixture(scope="module")
def model(published):
    return load_model(published[1])


# Patches


def test_parity_timesteps_of_the_published_samplers():
    recorded = oracle.recorded("samplers_small")
    timesteps = leading_timesteps(1000, int(recorded["steps"]))
    np.testing.assert_array_equal(timesteps[:-1], recorded["timesteps"][::-1])
    assert timesteps[-1] == 0


def patch(solver, model, recorded):
    # The samplers of patches write guidance as we do: uncond + w (cond - uncond).
    denoise = model.denoiser(float(recorded["guidance_scale"]))
    context = model.context(recorded["embedding"][:, None])
    path = leading_timesteps(1000, int(recorded["steps"]))
    noise = jnp.asarray(oracle.nhwc(recorded["noise"]))
    return solve(make_plan(solver, model.schedule, path), lambda k: (denoise, context), noise)


@pytest.mark.parametrize("solver", ["ddim", "plms"])
def test_parity_of_patch_samplers(solver, model):
    recorded = oracle.recorded("samplers_small")
    found = patch(solver, model, recorded)
    difference = oracle.difference(found, oracle.nhwc(recorded[solver]))
    print(f"samplers_small {solver}: {difference:.1e}")
    assert difference < oracle.TOLERANCE


@pytest.mark.slow
def test_a_latent_sampled_in_bfloat16_stays_within_5_percent(published):
    recorded = oracle.recorded("samplers_small")
    model = load_model(published[1], PRECISIONS["bfloat16"])
    found = patch("ddim", model, recorded)
    expected = oracle.nhwc(recorded["ddim"])
    error = np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)
    print(f"relative error {error:.4f}")
    assert error < 0.05


# The stitched image


def draw(k):
    """The k-th recorded normal canvas."""
    prefix = oracle.FOLDER / "prefix.txt"
    name = f"{prefix.read_text().strip() if prefix.exists() else ''}panorama/{k}"
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    noise = rng.standard_normal((1, 3, 256, 256), dtype=np.float32)
    return jnp.asarray(oracle.nhwc(noise))


def panorama(model, recorded, steps):
    """The canvas after so many of its fifty steps."""
    return published_latent(
        # Here the recording writes guidance as 1 + g.
        model.denoiser(1 + float(recorded["guidance_scale"])),
        model.schedule,
        model.context,
        jnp.asarray(recorded["embeddings"])[:, :, None],
        draw,
        timesteps=trailing_timesteps(1000, 50)[: steps + 1],
    )


def test_parity_of_interpolated_embeddings():
    recorded = oracle.recorded("panorama_small")
    positions = jnp.asarray(cell_positions(window_origins(256, 64, 16), 256, 64, 64))
    grid = jnp.asarray(recorded["embeddings"])[:, :, None]
    found = interpolate_grid(grid, positions, positions)[:, :, 0]
    difference = oracle.difference(found, recorded["conditioning"])
    print(f"panorama_small conditioning: {difference:.1e}")
    assert difference < 1e-5


def test_parity_of_the_stitched_image_after_three_steps(model):
    recorded = oracle.recorded("panorama_small")
    found = panorama(model, recorded, 3)
    difference = oracle.difference(found, oracle.nhwc(recorded["latent_after_3_steps"]))
    print(f"panorama_small latent_after_3_steps: {difference:.1e}")
    assert difference < oracle.TOLERANCE


@pytest.mark.slow
def test_parity_of_the_whole_stitched_image(model):
    recorded = oracle.recorded("panorama_small")
    difference = oracle.difference(panorama(model, recorded, 50), oracle.nhwc(recorded["latent"]))
    print(f"panorama_small latent: {difference:.1e}")
    assert difference < oracle.TOLERANCE


def test_parity_of_the_decoded_stitched_image(model):
    recorded = oracle.recorded("panorama_small")
    latent = jnp.asarray(oracle.nhwc(recorded["latent"])[0, :128, :128])

    stage = model.first_stage
    parameters = {"params": stage.params}
    codes = stage.network.apply(parameters, latent[None], method="nearest_code")[0]
    same_codes = (np.asarray(codes) == recorded["codes_corner"]).mean()
    image = decode_windows(model.decode, latent, model.factor)
    off = np.abs(image.astype(int) - recorded["decoded_corner"][0])
    within = (off <= 1).all(-1).mean()
    print(f"panorama_small: {same_codes:.2%} codes equal, {within:.2%} pixels within 1 level")
    assert same_codes >= 0.99 and within >= 0.99
