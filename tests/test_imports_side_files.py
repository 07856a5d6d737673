"""Patches with embeddings and latents beside them."""

import numpy as np
import pytest
from cut_before import SIDE, image_of, read, save_image, save_npy

from ssl_diffusion.errors import InputError

SLIDES = tuple(
    f"tcga/{name}-01Z" for name in ("acc/TCGA-A1-0001", "lihc/TCGA-B2-0002", "TCGA-C3-0003")
)
NAMES = [f"{slide}/{column}_{row}" for slide in SLIDES for row in (2, 3) for column in (0, 1)]
RNG = np.random.default_rng(0)


def latent(side=SIDE // 8):
    mean, deviation = RNG.normal(size=(2, 16, side, side)).astype(np.float16)
    return np.concatenate([mean, abs(deviation)])


def save(root, names=NAMES, patches="patches", features="features", side=SIDE, tokens=(1,)):
    """The published layout; returns {name: (pixels, tokens, moments)}."""
    made = {}
    for seed, name in enumerate(names):
        image = save_image(root / patches / f"{name}.jpeg", seed, side)
        embedding = RNG.normal(size=(*tokens, 6)).astype(np.float16)
        moments = latent(side // 8)
        save_npy(root / features / f"{name}_uni.npy", embedding)
        save_npy(root / features / f"{name}_sd3_vae.npy", moments)
        made[name] = image, embedding, moments
    return made


def test_every_patch_has_its_embedding_and_latent(tmp_path):
    made = save(tmp_path)
    collection, examples = read(tmp_path)
    assert (collection.layout, collection.embedding) == ("side files", (1, 6))
    assert (collection.latent, collection.latent_std) == ((4, 4, 16), True)
    assert len(examples) == len(NAMES)
    for image, embedding, moments in made.values():
        (example,) = [e for e in examples if (image_of(e) == image).all()]
        np.testing.assert_array_equal(example["embedding"], embedding)
        np.testing.assert_array_equal(example["latent"], moments[:16].transpose(1, 2, 0))
        np.testing.assert_array_equal(example["latent_std"], moments[16:].transpose(1, 2, 0))
    assert {(e["x"], e["y"]) for e in examples} == {(x, y) for x in (0, 32) for y in (64, 96)}
    splits = {o.group: o.split for o in collection.origins}
    assert sorted(splits) == ["TCGA-A1-0001", "TCGA-B2-0002", "TCGA-C3-0003"]
    assert sorted(splits.values()) == ["test", "train", "val"]


@pytest.mark.parametrize(
    "patches, features", [(".", "."), (".", "features"), ("patches", "patches")]
)
def test_files_may_lie_beside_the_patches_or_below_features(tmp_path, patches, features):
    save(tmp_path, patches=patches, features=features, tokens=())
    collection, examples = read(tmp_path)
    assert len(examples) == len(NAMES) and collection.embedding == (1, 6)


def test_folders_may_name_the_splits(tmp_path):
    names = [f"{split}/slide-{split}/0_{i}" for split in ("train", "val", "test") for i in range(2)]
    save(tmp_path, names)
    collection, _ = read(tmp_path)
    assert {o.split: o.group for o in collection.origins} == {
        split: f"slide-{split}" for split in ("train", "val", "test")
    }


def test_larger_patches_are_cut_with_their_tokens_and_latents(tmp_path):
    made = save(tmp_path, side=2 * SIDE, tokens=(16,))
    collection, examples = read(tmp_path)
    assert collection.embedding == (4, 6) and collection.latent == (4, 4, 16)
    assert len(examples) == 4 * len(NAMES)
    image, embedding, moments = made[NAMES[1]]  # column 1, row 2 of 64 px
    (piece,) = [e for e in examples if (e["image"] == image[SIDE:, :SIDE]).all()]
    assert (piece["x"], piece["y"]) == (64, 128 + 32)
    grid = embedding.reshape(4, 4, 6)
    np.testing.assert_array_equal(piece["embedding"], grid[2:, :2].reshape(4, 6))
    np.testing.assert_array_equal(piece["latent"], moments[:16, 4:, :4].transpose(1, 2, 0))


def test_what_a_link_of_the_user_leads_to_is_read(tmp_path):
    save(tmp_path / "elsewhere")
    (tmp_path / "set").mkdir()
    for folder in ("patches", "features"):
        (tmp_path / "set" / folder).mkdir()
        (tmp_path / "set" / folder / "tcga").symlink_to(tmp_path / "elsewhere" / folder / "tcga")
    (tmp_path / "elsewhere" / "patches" / "tcga" / "loop").symlink_to(tmp_path / "set" / "patches")
    assert len(read(tmp_path / "set")[1]) == len(NAMES)


def test_a_missing_file_is_named_with_the_counts(tmp_path):
    save(tmp_path)
    (tmp_path / "features" / f"{NAMES[0]}_uni.npy").unlink()
    with pytest.raises(InputError, match=f"12 patches.* 11 files .*{NAMES[0]}_uni.npy is missing"):
        read(tmp_path)


@pytest.mark.parametrize(
    "ending, array, match",
    [
        ("_uni.npy", np.zeros((1, 5), np.float16), r"\[1, 5\], expected real numbers \[1, 6\]"),
        ("_uni.npy", np.array([None]), "pickled"),
        ("_uni.npy", np.full((1, 6), np.inf), "no finite numbers"),
        ("_sd3_vae.npy", np.zeros((16, 4, 4), np.float16), "mean and standard deviation as"),
        ("_sd3_vae.npy", -np.ones((2, 16, 4, 4), np.float16), "log variances"),
    ],
)
def test_other_arrays_are_refused(tmp_path, ending, array, match):
    save(tmp_path)
    save_npy(tmp_path / "features" / f"{NAMES[5]}{ending}", array)
    with pytest.raises(InputError, match=match) as error:
        read(tmp_path)
    assert f"{NAMES[5]}{ending}" in str(error.value) or "pickled" in str(error.value)


def test_a_cut_array_and_a_patch_of_another_size_are_refused(tmp_path):
    save(tmp_path)
    path = tmp_path / "features" / f"{NAMES[5]}_uni.npy"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="_uni.npy cannot be read"):
        read(tmp_path)
    save(tmp_path)
    save_image(tmp_path / "patches" / f"{NAMES[5]}.jpeg", 0, 2 * SIDE)
    with pytest.raises(InputError, match="64x64 px, expected 32x32"):
        read(tmp_path)
    with pytest.raises(InputError, match="32x32 px, expected a square of config.data.patch_px"):
        read(tmp_path, patch_px=24)
    with pytest.raises(InputError, match="1 tokens for 32x32 px, which cannot be shared"):
        read(tmp_path, patch_px=16)
