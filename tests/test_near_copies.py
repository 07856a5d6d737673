"""Copies of training patches are found, however they are turned; real new patches are not taken."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssl_diffusion import demo
from ssl_diffusion.data.patches import symmetry
from ssl_diffusion.data.records import open_records
from ssl_diffusion.data.slides import open_image
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.copying import NearestTraining
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.near_copies import (
    CANDIDATES,
    FLAGGED,
    Patches,
    chance_threshold,
    find_copies,
)
from ssl_diffusion.evaluation.registration import best_correlation, correlations
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.model import load_autoencoder

COPIES = 4  # training patches that are planted, in each guise


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def noise(seed: int, size: int, grey: float = 40) -> np.ndarray:
    """Pixels that agree with no other's."""
    return (
        np.random.default_rng(seed).normal(128, grey, (size, size, 3)).clip(0, 255).astype("uint8")
    )


# Pixels


def test_correlations_are_those_of_the_overlap_at_each_shift():
    rng = np.random.default_rng(0)
    first, second = rng.normal(100, 30, (2, 1, 12, 12)).astype(np.float32)
    found = np.asarray(correlations(jnp.asarray(first), jnp.asarray(second)))[0]
    assert found.shape == (13, 13)
    for dy, dx in ((0, 0), (6, -6), (-3, 2), (5, 0)):
        rows = slice(max(dy, 0), 12 + min(dy, 0)), slice(max(-dy, 0), 12 + min(-dy, 0))
        columns = slice(max(dx, 0), 12 + min(dx, 0)), slice(max(-dx, 0), 12 + min(-dx, 0))
        a, b = first[0, rows[1], columns[1]], second[0, rows[0], columns[0]]
        expected = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert found[6 + dy, 6 + dx] == pytest.approx(expected, abs=1e-4)


def test_agreement_sees_through_symmetries_shifts_and_stain_and_not_through_noise():
    big = noise(1, 96)
    base, shifted = big[:64, :64], big[32:, 20:84]
    dimmed = (base * 0.6 + 30).astype(np.uint8)
    turned = [symmetry(base, variant) for variant in range(8)]
    copies = np.stack([base, shifted, dimmed, *turned])
    found = best_correlation(copies, np.stack([base] * len(copies)))
    assert (found[[0, *range(3, 11)]] > 0.998).all() and found[1] > 0.9 and found[2] > 0.99
    assert best_correlation(noise(2, 64)[None], base[None])[0] < 0.3
    # Averaged down to 64 px: larger patches, of twice the detail.
    large = base.repeat(4, axis=0).repeat(4, axis=1)
    assert best_correlation(large[None, ::-1], large[None])[0] > 0.998


def test_flat_patches_agree_with_nothing():
    glass = noise(3, 64, grey=2)
    again = np.clip(glass + np.random.default_rng(4).normal(0, 1, glass.shape), 0, 255)
    assert best_correlation(glass[None], again.astype(np.uint8)[None])[0] == 0
    # Tissue in a corner: where only glass overlaps, nothing counts.
    one, other = glass.copy(), glass.copy()
    one[:20, :20], other[:20, :20] = noise(5, 20), noise(6, 20)
    assert best_correlation(one[None], other[None])[0] < 0.6


def test_the_threshold_is_that_of_few_in_a_thousand():
    """Of exponential tails in Fisher's z: so many scales from the start."""
    z = np.random.default_rng(7).exponential(0.2, 20_000)
    assert np.arctanh(chance_threshold(np.tanh(z))) == pytest.approx(
        0.2 * np.log(1 / FLAGGED), rel=0.05
    )
    assert chance_threshold(np.full(30, 0.4)) == pytest.approx(0.4)
    assert chance_threshold(np.full(30, 1.0)) == 0.99


# Patches of the slide


@pytest.fixture(scope="module")
def slide(records_dir):
    """(patches with candidates, training images, held-out patches, copies by guise), of a slide."""
    records = open_records(records_dir)
    source = records.source("train", ("image", "x", "y"))
    picks = np.linspace(5, len(source) - 5, COPIES).astype(int).tolist()
    base = np.stack([source[i]["image"] for i in picks])
    picture = open_image(demo.SLIDE).at(records.metadata["mpp"])

    def shifted(by: int) -> np.ndarray:
        """Inwards, where the slide ends."""
        corners = [(int(source[i]["x"]), int(source[i]["y"])) for i in picks]
        most = picture.width - 64, picture.height - 64
        places = [
            [c + by if c + by <= m else c - by for c, m in zip(p, most, strict=True)]
            for p in corners
        ]
        return np.stack([picture.read(x, y, 64, 64) for x, y in places])

    autoencoder = load_autoencoder(demo.AUTOENCODER)
    decoded = np.asarray(autoencoder.decode(autoencoder.encode(base)))
    planted = {
        "exact": base,
        "flipped": np.ascontiguousarray(base[:, :, ::-1]),
        "turned": np.stack([symmetry(image, 5) for image in base]),
        "shifted by 5 px": shifted(5),
        "shifted by 16 px": shifted(16),
        "as JPEG": np.stack([jpeg(image) for image in base]),
        "through the autoencoder": np.clip(decoded * 127.5 + 127.5, 0, 255).round().astype("uint8"),
    }
    encoder = load_encoder(demo.ENCODER)
    stored = [*records.source("train", ("embedding",)).chunks("embedding")]
    embeddings = one_vector(np.concatenate(stored), "training")

    def patches(images: np.ndarray) -> Patches:
        found = NearestTraining(
            one_vector(encoder.embed(images), "patches"), embeddings.mean(axis=0), CANDIDATES
        )
        found.update(embeddings)
        return Patches(images, found.index)

    held_out = patches(records.source("test", ("image",)).spread(60)["image"])
    return patches, lambda index: source[index]["image"], held_out, planted


def test_planted_copies_are_flagged_and_glass_is_not(slide):
    patches, training, held_out, planted = slide
    glass = np.stack([np.clip(noise(s, 64, grey=2) + 110.0, 0, 255) for s in range(COPIES)])
    groups = planted | {"glass": glass.astype(np.uint8)}
    found = find_copies(patches(np.concatenate([*groups.values()])), held_out, training)
    flagged = dict(zip(groups, np.split(found.flagged, len(groups)), strict=True))
    assert not flagged.pop("glass").any()
    shares = {name: float(one.mean()) for name, one in flagged.items()}
    assert shares.pop("shifted by 16 px") >= 0.75 and min(shares.values()) == 1, shares
    assert found.held_out_flagged.mean() <= 0.01
    assert found.threshold < 0.95
    (first, match) = found.shown(3)[0]
    assert found.agreement[first] == found.agreement.max() and match == found.match[first]


def test_patches_that_cannot_be_compared_are_refused(slide):
    patches, training, held_out, planted = slide
    few = Patches(held_out.images[:3], held_out.candidates[:3])
    small = Patches(held_out.images[:, :32, :32], held_out.candidates)
    with pytest.raises(InputError, match="of 32 px, but training patches of 64 px"):
        find_copies(small, held_out, training)
    with pytest.raises(InputError, match="3 held-out patches, expected at least 20"):
        find_copies(held_out, few, training)
