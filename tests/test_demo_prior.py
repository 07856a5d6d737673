"""The prior that ships: it fits the encoder that ships, and does as it is asked."""

import numpy as np
import pytest

from ssl_diffusion import demo
from ssl_diffusion.files import sha256
from ssl_diffusion.prior.asked import Asked
from ssl_diffusion.prior.model import load_prior
from ssl_diffusion.prior.sampling import sample_grids
from ssl_diffusion.weights.folder import SPEC, WEIGHTS


@pytest.fixture(scope="module")
def prior():
    return load_prior(demo.PRIOR)


def test_it_makes_embeddings_of_the_encoder_that_ships(prior):
    encoder = demo.resolve(demo.ENCODER)
    assert prior.spec["encoder_sha256"] == [sha256(encoder / name) for name in (SPEC, WEIGHTS)]
    assert prior.spec["patch_px"] == 64 and prior.window == 8
    assert (demo.resolve(demo.PRIOR) / "label_map.png").is_file()


def agreement(prior, asked, wanted):
    """Share of the cells of 4x4 grids whose class of the label map `wanted` tells."""
    grids = sample_grids(prior, asked, 4, 4, samples=12, seed=1)
    return float(wanted(prior.clusters.of(grids)).mean())


@pytest.mark.parametrize("name", ["skin", "landsat"])
def test_a_label_is_followed(prior, name):
    number = prior.spec["labels"].index(name)
    labels = prior.clusters.labels
    assert agreement(prior, Asked(label={name: 1.0}), lambda cell: labels[cell] == number) > 0.7


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("skin", "histopathology of cutaneous tissue"),
        ("landsat", "terrain pictured by an orbiting spacecraft"),
    ],
)
def test_a_sentence_in_other_words_than_in_training_is_followed(prior, name, sentence):
    number = prior.spec["labels"].index(name)
    labels = prior.clusters.labels
    assert agreement(prior, Asked(text=sentence), lambda cell: labels[cell] == number) > 0.7


def test_a_painted_map_is_followed(prior):
    painted = np.full((4, 4), prior.spec["conditions"]["label_map"]["classes"].index("epidermis"))
    painted[:2] = prior.spec["conditions"]["label_map"]["classes"].index("dermis")
    painted = painted.astype(np.int32)
    assert agreement(prior, Asked(label_map=painted), lambda cell: cell == painted) > 0.8
