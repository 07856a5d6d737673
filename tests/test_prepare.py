"""What a recipe may store beside patches: their variants, posteriors and patch tokens."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config
from ml_collections import ConfigDict
from PIL import Image

from ssl_diffusion import demo
from ssl_diffusion.data.patches import symmetry, tissue_patches
from ssl_diffusion.data.records import open_records
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.errors import InputError
from ssl_diffusion.prepare import prepare
from ssl_diffusion.weights.model import load_autoencoder, load_encoder

EXTRAS = {"variants": 8, "posterior": True, "patch_tokens": True}


def recipe(folder: Path, **changed) -> ConfigDict:
    """The demo's `data` section for a small piece of the slide in `folder`."""
    image, split = folder / "piece.png", folder / "split.json"
    if not image.exists():
        Image.fromarray(open_image(demo.SLIDE).read(700, 1600, 320, 320)).save(image)
    data = load_config("demo").data.to_dict()
    data |= {"source": str(image), "split": str(split), "stride_px": 64, "source_mpp": 0.5}
    return ConfigDict(data | changed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(recipe(folder, **EXTRAS), folder / "records")
    return folder


def test_symmetries_are_those_of_the_square():
    square = np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8)
    variants = [symmetry(square, index) for index in range(8)]
    assert len({variant.tobytes() for variant in variants}) == 8
    np.testing.assert_array_equal(variants[0], square)
    np.testing.assert_array_equal(variants[1], np.fliplr(square))
    np.testing.assert_array_equal(variants[2], np.flipud(square))
    np.testing.assert_array_equal(variants[3], np.rot90(square, 2))
    np.testing.assert_array_equal(variants[5], np.rot90(square, -1))
    np.testing.assert_array_equal(variants[6], np.rot90(square))
    for count in (1, 2, 4, 8):
        chosen = {variant.tobytes() for variant in variants[:count]}
        for variant in variants[:count]:
            for index in range(count):
                assert symmetry(variant, index).tobytes() in chosen


def test_every_training_patch_is_there_in_every_variant(folder):
    records = open_records(folder / "records")
    slide = open_image(folder / "piece.png")
    train, test = records.source("train"), records.source("test")
    assert len(train) == 8 * 8 and len(test) == 9
    for index in range(len(train)):
        found = train[index]
        assert found["variant"] == index % 8
        patch = slide.read(found["x"], found["y"], 64, 64)
        np.testing.assert_array_equal(found["image"], symmetry(patch, index % 8))
    places = {(train[index]["x"], train[index]["y"]) for index in range(len(train))}
    assert len(places) == 8
    assert {test[index]["variant"] for index in range(len(test))} == {0}


def test_a_variant_is_embedded_and_encoded_itself(folder):
    records = open_records(folder / "records")
    found = records.source("train", raw=True)[5]
    encoder = load_encoder(demo.ENCODER)
    embedding, tokens = encoder.embed_with_patches(found["image"][None])
    np.testing.assert_allclose(found["embedding"], embedding[0], atol=1e-5)
    np.testing.assert_allclose(
        found["embedding"], encoder.embed(found["image"][None])[0], atol=1e-5
    )
    np.testing.assert_allclose(found["tokens"], tokens[0], atol=2e-3)
    # This encoder's embedding is the mean of its patch tokens.
    np.testing.assert_allclose(tokens.mean(1), embedding[:, 0], atol=1e-5)
    assert (
        records.metadata["tokens"]
        == {"count": 16, "dim": 192}
        == {
            "count": tokens.shape[1],
            "dim": tokens.shape[2],
        }
    )

    stage = load_autoencoder(demo.AUTOENCODER)
    np.testing.assert_allclose(found["latent"], stage.encode(found["image"][None])[0], atol=0.02)
    mean, log_variance = stage.network.apply(
        {"params": stage.params}, jnp.asarray(found["image"][None] / 127.5 - 1), method="moments"
    )
    np.testing.assert_allclose(found["latent"], mean[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        found["latent_std"], np.exp(log_variance[0] / 2), rtol=1e-3, atol=1e-7
    )


def test_patch_tokens_lie_row_by_row():
    encoder = load_encoder(demo.ENCODER)
    image = open_image(demo.SLIDE).read(700, 1600, 64, 64)
    changed = image.copy()
    changed[16:32, 48:] = 255  # row 1, column 3 of the 4 x 4 patches
    before, after = (encoder.embed_with_patches(one[None])[1][0] for one in (image, changed))
    assert np.argmax(np.square(after - before).sum(-1)) == 1 * 4 + 3


def test_a_flipped_latent_is_not_the_latent_of_the_flipped_image():
    """Why variants are encoded: the error is a third to a half of the latents' spread."""
    patches = tissue_patches(open_image(demo.SLIDE), 64, 256, 0.12)
    pixels = np.stack([patch.pixels for patch in patches])
    stage = load_autoencoder(demo.AUTOENCODER)
    latents = stage.encode(pixels)
    for index in range(1, 8):
        expected = stage.encode(np.stack([symmetry(image, index) for image in pixels]))
        flipped = np.stack([symmetry(latent, index) for latent in latents])
        error = np.sqrt(np.mean(np.square(flipped - expected))) / latents.std()
        assert 0.33 < error < 0.55, (index, error)


def test_a_recipe_without_the_extras_is_the_recipe_with_none_of_them(folder):
    plain = recipe(folder, encoder="", autoencoder="")
    for name in EXTRAS:
        del plain[name]
    prepare(plain, folder / "plain")
    assert "variant" not in open_records(folder / "plain").features
    file = folder / "plain" / "metadata.json"
    content = json.loads(file.read_text())
    assert content["recipe"]["variants"] == 1
    for name in EXTRAS:
        del content["recipe"][name]  # as older records have it
    file.write_text(json.dumps(content))
    prepare(plain, folder / "plain")
    none_of_them = {"variants": 1, "posterior": False, "patch_tokens": False}
    prepare(ConfigDict(plain.to_dict() | none_of_them), folder / "plain")
    with pytest.raises(InputError, match=r"made otherwise \(variants differ\)"):
        prepare(ConfigDict(plain.to_dict() | {"variants": 2}), folder / "plain")


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"variants": 3}, "variants is 3, expected one of 1, 2, 4, 8"),
        ({"patch_tokens": True, "encoder": ""}, "patch_tokens needs an encoder"),
        ({"posterior": True, "autoencoder": ""}, "needs a KL autoencoder; found '', which is none"),
    ],
)
def test_a_recipe_that_its_models_cannot_serve_is_refused(folder, changed, message):
    with pytest.raises(InputError, match=message):
        prepare(recipe(folder, **changed), folder / "refused")
    assert not (folder / "refused").exists()


def test_a_quantising_autoencoder_has_no_posterior_to_store(folder, published):
    changed = {"posterior": True, "autoencoder": str(published[1] / "autoencoder")}
    with pytest.raises(InputError, match="quantises vectors and has no posterior"):
        prepare(recipe(folder, **changed), folder / "refused")
