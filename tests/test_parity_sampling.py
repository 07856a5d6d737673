"""The published samplers and the published stitched image against their recordings."""

import zlib
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import traverse_util

from ssl_diffusion.diffusion.denoiser import make_denoiser
from ssl_diffusion.diffusion.schedule import make_schedule
from ssl_diffusion.diffusion.solvers import ddim, leading_timesteps, plms, trailing_timesteps
from ssl_diffusion.models.autoencoder import Autoencoder
from ssl_diffusion.models.conditioner import Conditioner, null_context
from ssl_diffusion.models.unet import UNet
from ssl_diffusion.stitching.grid import interpolate_grid
from ssl_diffusion.stitching.published import decode_windows, published_latent
from ssl_diffusion.stitching.windows import cell_positions, window_origins
from ssl_diffusion.weights.layouts.ldm import UNET
from ssl_diffusion.weights.model import Apply
from ssl_diffusion.weights.naming import POINTWISE, Naming, to_ours

SCHEDULE = make_schedule("ldm_linear")
NETWORK = UNet(32, (1, 2), 1, attention_levels=(1,), heads=1, out_channels=3)
CONDITIONER = Conditioner(64)
FIRST_STAGE = Naming(
    prefix="first_stage_model.",
    rules=(
        (r"^(encoder|decoder)/(down|up)_(\d)_block_(\d)", r"\1/\2/\3/block/\4"),
        (r"/downsample_(\d)", r"/down/\1/downsample/conv"),
        (r"/upsample_(\d)", r"/up/\1/upsample/conv"),
        (r"/attn_1_norm", "/attn_1/norm"),
        (r"/attn_1/to_([qkv])", r"/attn_1/\1"),
        (r"/attn_1/to_out", "/attn_1/proj_out"),
        (r"^codes$", "quantize/embedding/weight"),
    ),
    transforms=((r"/attn_1/to_\w+/kernel$", POINTWISE),),
)
EMBEDDER = Naming(prefix="cond_stage_model.", rules=((r"^projection", "patch_fc"),))


@cache
def checkpoint():
    return oracle.tensors("small")


def load(naming, module, *args):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    params, _, problems = to_ours(naming, shapes, checkpoint())
    assert not problems
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(params, sep="/"))


@cache
def networks():
    """Parameters of the conditioner and of the U-Net."""
    conditioner = load(EMBEDDER, CONDITIONER, jnp.zeros((1, 1, 48)))
    latent, context = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 1, 64))
    return conditioner, load(UNET, NETWORK, latent, jnp.zeros(1), context)


def condition(embedding):
    return CONDITIONER.apply({"params": networks()[0]}, embedding)


def denoiser(guidance):
    conditioner, unet = networks()
    null = null_context(conditioner, 1)
    return make_denoiser(Apply(NETWORK), unet, SCHEDULE, "eps", null, guidance)


# Patches


def test_parity_timesteps_of_the_published_samplers():
    recorded = oracle.recorded("samplers_small")
    timesteps = leading_timesteps(1000, int(recorded["steps"]))
    np.testing.assert_array_equal(timesteps[:-1], recorded["timesteps"][::-1])
    assert timesteps[-1] == 0


@pytest.mark.parametrize("solver", [ddim, plms])
def test_parity_of_patch_samplers(solver):
    recorded = oracle.recorded("samplers_small")
    # The samplers of patches write guidance as we do: uncond + w (cond - uncond).
    found = solver(
        denoiser(float(recorded["guidance_scale"])),
        SCHEDULE,
        jnp.asarray(oracle.nhwc(recorded["noise"])),
        condition(jnp.asarray(recorded["embedding"])[:, None]),
        timesteps=leading_timesteps(1000, int(recorded["steps"])),
    )
    difference = oracle.difference(found, oracle.nhwc(recorded[solver.__name__]))
    print(f"samplers_small {solver.__name__}: {difference:.1e}")
    assert difference < oracle.TOLERANCE


# The stitched image


def draw(k):
    """The k-th recorded normal canvas."""
    prefix = oracle.FOLDER / "prefix.txt"
    name = f"{prefix.read_text().strip() if prefix.exists() else ''}panorama/{k}"
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    noise = rng.standard_normal((1, 3, 256, 256), dtype=np.float32)
    return jnp.asarray(oracle.nhwc(noise))


def panorama(recorded, steps):
    """The canvas after so many of its fifty steps."""
    return published_latent(
        # Here the recording writes guidance as 1 + g.
        denoiser(1 + float(recorded["guidance_scale"])),
        SCHEDULE,
        condition,
        jnp.asarray(recorded["embeddings"])[:, :, None],
        draw,
        timesteps=trailing_timesteps(1000, 50)[: steps + 1],
    )


def test_parity_of_interpolated_embeddings():
    recorded = oracle.recorded("panorama_small")
    positions = jnp.asarray(cell_positions(window_origins(256, 64, 16), 256, 64))
    grid = jnp.asarray(recorded["embeddings"])[:, :, None]
    found = interpolate_grid(grid, positions, positions)[:, :, 0]
    difference = oracle.difference(found, recorded["conditioning"])
    print(f"panorama_small conditioning: {difference:.1e}")
    assert difference < 1e-5


def test_parity_of_the_stitched_image_after_three_steps():
    recorded = oracle.recorded("panorama_small")
    found = panorama(recorded, 3)
    difference = oracle.difference(found, oracle.nhwc(recorded["latent_after_3_steps"]))
    print(f"panorama_small latent_after_3_steps: {difference:.1e}")
    assert difference < oracle.TOLERANCE


@pytest.mark.slow
def test_parity_of_the_whole_stitched_image():
    recorded = oracle.recorded("panorama_small")
    difference = oracle.difference(panorama(recorded, 50), oracle.nhwc(recorded["latent"]))
    print(f"panorama_small latent: {difference:.1e}")
    assert difference < oracle.TOLERANCE


def test_parity_of_the_decoded_stitched_image():
    recorded = oracle.recorded("panorama_small")
    network = Autoencoder(32, (1, 2, 4), 2, codebook=512)
    params = {"params": load(FIRST_STAGE, network, jnp.zeros((1, 64, 64, 3)))}
    latent = jnp.asarray(oracle.nhwc(recorded["latent"])[0, :128, :128])

    codes = network.apply(params, latent[None], method="nearest_code")[0]
    same_codes = (np.asarray(codes) == recorded["codes_corner"]).mean()

    @jax.jit
    def decode(latent):
        return jnp.clip(network.apply(params, latent, method="decode"), -1, 1)

    image = decode_windows(decode, latent, network.factor)
    off = np.abs(image.astype(int) - recorded["decoded_corner"][0])
    within = (off <= 1).all(-1).mean()
    print(f"panorama_small: {same_codes:.2%} codes equal, {within:.2%} pixels within 1 level")
    assert same_codes >= 0.99 and within >= 0.99
