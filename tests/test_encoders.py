"""Augmentation, the ViT, and encoders as they are used."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssl_diffusion import demo
from ssl_diffusion.encoders.augment import strong_augment, views_of
from ssl_diffusion.encoders.encoder import SSLEncoder
from ssl_diffusion.encoders.vit import ViT
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.encoder import load_encoder

STILL = {
    "crop": 1.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "blur_px": 0.0,
}


@pytest.fixture(scope="module")
def images() -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(0).uniform(-0.4, 0.4, (6, 16, 16, 3)), jnp.float32)


def _orbit(image) -> list[np.ndarray]:
    image = np.asarray(image)
    return [np.rot90(m, turns) for m in (image, image[::-1]) for turns in range(4)]


def test_without_colour_or_crop_a_view_is_one_of_the_eight_flips_and_turns(images):
    seen = set()
    for seed in range(6):
        for view, image in zip(
            strong_augment(jax.random.key(seed), images, STILL), images, strict=True
        ):
            close = [np.allclose(view, turned, atol=2e-5) for turned in _orbit(image)]
            assert sum(close) == 1
            seen.add(close.index(True))
    assert len(seen) == 8


@pytest.mark.parametrize(
    "name, low, high",
    [("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("saturation", 0.6, 1.4)],
)
def test_colour_strength_is_what_the_settings_say(name, low, high):
    """Each change alone, on two colours whose statistic it scales by a known factor."""
    image = np.zeros((16, 16, 3), np.float32)
    image[:8], image[8:] = (0.1, 0.0, -0.1), (-0.05, -0.1, -0.2)
    unit = (image + 1) / 2
    weights = np.array([0.299, 0.587, 0.114])

    def statistic(x):
        x = (np.asarray(x) + 1) / 2
        if name == "brightness":
            return x.mean()
        if name == "contrast":
            return np.ptp(x @ weights)
        return np.abs(x - (x @ weights)[..., None]).mean()

    views = strong_augment(
        jax.random.key(0), jnp.broadcast_to(image, (400, *image.shape)), STILL | {name: 0.4}
    )
    ratios = np.array([statistic(view) for view in views]) / statistic(2 * unit - 1)
    assert low - 1e-3 <= ratios.min() < low + 0.03 and high - 0.03 < ratios.max() <= high + 1e-3


def test_hue_turn_keeps_luma_and_changes_colour(images):
    views = strong_augment(jax.random.key(3), images, STILL | {"hue": 0.1})
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(
        np.sort((np.asarray(views) @ weights).reshape(6, -1)),
        np.sort((np.asarray(images) @ weights).reshape(6, -1)),
        atol=2e-3,
    )
    assert np.abs(np.sort(views.reshape(6, -1)) - np.sort(images.reshape(6, -1))).max() > 0.01


def test_blur_and_crop_smooth_and_stay_in_range(images):
    settings = STILL | {"blur_px": 1.0, "crop": 0.5}
    views = np.asarray(strong_augment(jax.random.key(1), images, settings))
    rough = np.abs(np.diff(images, axis=1)).mean()
    assert np.abs(np.diff(views, axis=1)).mean() < 0.8 * rough
    assert np.abs(views).max() <= 1 and views.shape == images.shape


def test_every_example_has_its_own_draw_and_keeps_it_in_any_batch(images):
    same = jnp.broadcast_to(images[:1], images.shape)
    settings = STILL | {"brightness": 0.4}
    views = np.asarray(strong_augment(jax.random.key(0), same, settings))
    assert len({view.tobytes() for view in views}) == 6
    fewer = np.asarray(strong_augment(jax.random.key(0), same[:3], settings))
    np.testing.assert_allclose(fewer, views[:3], atol=1e-6)


def test_views_are_fixed_by_their_seed():
    images = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    first, again, other = (views_of(images, STILL | {"hue": 0.1}, 2, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (
        first.shape == (2, 3, 16, 16, 3) and (first != other).any() and (first[0] != first[1]).any()
    )


@pytest.mark.parametrize("stem, pooling", [("patch", "class"), ("conv", "mean")])
def test_vit_sees_the_whole_image_and_each_image_alone(stem, pooling):
    vit = ViT(image_size=32, patch_size=8, width=32, depth=2, heads=2, stem=stem, pooling=pooling)
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    params = vit.init(jax.random.key(1), image)
    embedding = vit.apply(params, image)
    assert embedding.shape == (2, 1, 32)
    changed = vit.apply(params, image.at[1, 31, 31].add(3.0))
    np.testing.assert_allclose(changed[0], embedding[0], atol=1e-6)
    assert np.abs(changed[1] - embedding[1]).max() > 1e-4


def test_vit_small_16_has_the_published_number_of_parameters():
    vit = ViT(image_size=256, patch_size=16, width=384, depth=12, heads=6)
    shapes = jax.eval_shape(vit.init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
    # ViT-S/16 without a head: 21.3 M in the blocks, 0.3 M in the patch projection, 257 positions.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 21_688_704


def test_embedding_does_not_depend_on_the_batch_and_shape_is_checked():
    encoder = load_encoder(demo.ENCODER)
    images = np.random.default_rng(0).integers(0, 255, (70, 64, 64, 3), np.uint8)
    together = encoder.embed(images)
    assert together.shape == (70, 1, 192)
    np.testing.assert_array_equal(encoder.embed(images[66:67]), together[66:67])
    with pytest.raises(InputError, match=r"shape \(64, 32, 3\), expected squares"):
        encoder.embed(np.zeros((1, 64, 32, 3), np.uint8))
    untrained = encoder.reinitialised(1)
    assert np.abs(untrained.embed(images[:1]) - together[:1]).max() > 1e-3


def test_patches_of_another_size_are_resized_each_by_itself():
    encoder = load_encoder(demo.ENCODER)
    images = np.random.default_rng(0).integers(0, 255, (66, 80, 80, 3), np.uint8)
    small = np.stack(
        [np.asarray(Image.fromarray(i).resize((64, 64), Image.Resampling.BICUBIC)) for i in images]
    )
    found = encoder.embed(images)
    np.testing.assert_array_equal(found, encoder.embed(small))
    np.testing.assert_array_equal(found[65:], encoder.embed(images[65:]))
    with_patches, _ = encoder.embed_with_patches(images[:3])
    np.testing.assert_allclose(with_patches, found[:3], atol=1e-5)


def test_the_rule_of_resizing_is_that_of_the_model_json(tmp_path):
    shutil.copytree(demo.resolve(demo.ENCODER), tmp_path / "model")
    spec = json.loads((tmp_path / "model" / "model.json").read_text())
    images = np.random.default_rng(0).integers(0, 255, (1, 96, 96, 3), np.uint8)

    def load(rule: object) -> SSLEncoder:
        (tmp_path / "model" / "model.json").write_text(json.dumps(spec | {"image_resize": rule}))
        return load_encoder(tmp_path / "model")

    default = load_encoder(demo.ENCODER).embed(images)
    np.testing.assert_array_equal(load("bicubic").embed(images), default)
    small = np.asarray(Image.fromarray(images[0]).resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(
        load("bilinear").embed(images), load("bicubic").embed(small[None])
    )
    for rule in ("nearest", 3, ["bicubic"]):
        with pytest.raises(InputError, match="image_resize is .* expected one of bicubic, bil"):
            load(rule)
