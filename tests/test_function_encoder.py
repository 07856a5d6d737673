"""Any function as the encoder, and records and models that then hold no encoder's folder."""

import json
import shutil
import sys

import numpy as np
import pytest
from conftest import load_config, shrink

from ssl_diffusion import cli, evaluate, generate, sample
from ssl_diffusion.data.records import open_records
from ssl_diffusion.errors import InputError
from ssl_diffusion.train import train
from ssl_diffusion.weights.encoder import is_function, load_encoder
from ssl_diffusion.weights.model import load_model

MODULE = """
import numpy as np

calls = []

def make():
    def embed(images):
        calls.append(images.shape)
        means = images.mean((1, 2), dtype=np.float32)
        return np.stack([means, means[:, ::-1]], axis=1)
    return embed

def flat(): return lambda images: images.mean((1, 2), dtype=np.float32)
def few(): return lambda images: np.zeros((63, 1, 3), np.float32)
def double(): return lambda images: np.zeros((64, 1, 3))
def whole(): return lambda images: images.mean((2, 3), dtype=np.float32)[:, None]
def ratio(): return lambda images: (images / images).astype(np.float32).mean((1, 2))[:, None]
def nothing(): return None
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_encoders.py").write_text(MODULE)
    (tmp_path / "broken_encoders.py").write_text("import own_encoders\n1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("own_encoders", "broken_encoders"):
        sys.modules.pop(name, None)


def test_function_is_called_with_padded_chunks_and_tells_what_it_makes(module):
    encoder = load_encoder("own_encoders:make", patch_px=32)
    calls = sys.modules["own_encoders"].calls
    assert calls == [(64, 32, 32, 3)]  # the patches it is tried on
    assert encoder.spec["embedding"] == {"tokens": 2, "dim": 3}
    images = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), np.uint8)
    found = encoder.embed(images)
    assert calls[1:] == [(64, 32, 32, 3)] * 2
    np.testing.assert_allclose(found[:, 0], images.mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(found[:, 1], found[:, 0, ::-1])
    np.testing.assert_array_equal(encoder.embed(images[69:]), found[69:])
    assert encoder.embed(images[:0]).shape == (0, 2, 3) and found.dtype == np.float32


@pytest.mark.parametrize(
    "name, message",
    [
        ("no_such_module:make", "no_such_module cannot be imported .ModuleNotFoundError"),
        ("broken_encoders:make", "cannot be imported .ZeroDivisionError: division by zero"),
        ("own_encoders:no", "own_encoders has no function no; name one that takes no arguments"),
        ("own_encoders:number", "has no function number"),
        ("own_encoders:nothing", r"nothing\(\) returned NoneType, expected a function of uint8"),
        ("own_encoders:flat", r"gave shape \[64, 3\]; expected float32 \[64, tokens, dim\]"),
        ("own_encoders:few", r"gave shape \[63, 1, 3\]"),
        ("own_encoders:double", "gave numbers of float64; expected float32"),
    ],
)
def test_what_is_no_encoder_is_refused_at_once(module, name, message):
    with pytest.raises(InputError, match=message) as error:
        load_encoder(name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_embeddings_that_are_none_are_refused_but_padding_may_be_anything(module):
    images = np.ones((2, 16, 16, 3), np.uint8)
    ratio = load_encoder("own_encoders:ratio", patch_px=16)  # NaN where a patch is black
    np.testing.assert_array_equal(ratio.embed(images), np.ones((2, 1, 3), np.float32))
    with pytest.raises(InputError, match="ratio gave infinite numbers, or NaN"):
        ratio.embed(images * np.array([1, 0], np.uint8)[:, None, None, None])
    whole = load_encoder("own_encoders:whole", patch_px=16)
    with pytest.raises(InputError, match=r"gave \[64, 1, 8\] after \[64, 1, 16\]"):
        whole.embed(images[:, :8, :8])
    with pytest.raises(InputError, match="expected squares"):
        whole.embed(images[:, :8])


def test_what_a_function_cannot_do_is_said(module):
    encoder = load_encoder("own_encoders:make", patch_px=16)
    with pytest.raises(InputError, match="gives no patch tokens"):
        _ = encoder.patch_tokens
    with pytest.raises(InputError, match="gives no patch tokens"):
        encoder.embed_with_patches(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match="cannot be had untrained"):
        encoder.reinitialised(0)


def test_only_what_a_user_writes_is_imported(module, tmp_path):
    """A Path, such as one made of what a file says, is a folder whatever its name looks like."""
    assert is_function("own_encoders:make") and is_function("a.b_c.d2:make")
    for other in (
        "demo:encoder",
        "weights/hipt",
        "C:\\own:make",
        "own/encoders:make",
        "own:",
        ":f",
    ):
        assert not is_function(other)
    folder = tmp_path / "own_encoders:make"
    assert not is_function(folder.relative_to(tmp_path))
    with pytest.raises(InputError, match="no encoder model"):
        load_encoder(folder.relative_to(tmp_path))
    assert "own_encoders" not in sys.modules
    assert load_encoder("demo:encoder").spec["image_size"] == 64


def run(command, *arguments):
    """A command in this process, where its networks are compiled already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command.__name__, *map(str, arguments)])
        command.FLAGS.unparse_flags()
        cli.run(command.main, command.FLAGS)


def test_model_of_a_function_trains_and_makes_images_of_embeddings(records_dir, tmp_path, capsys):
    """Records with embeddings and no encoder/, as a function leaves them."""
    records = tmp_path / "records"
    shutil.copytree(records_dir, records, ignore=shutil.ignore_patterns("encoder"))
    file = records / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["recipe"]["encoder"] = "own_encoders:make"  # not importable here: nothing may need it
    file.write_text(json.dumps(metadata))
    config = shrink(load_config("demo"))
    config.data.dir, config.data.encoder = str(records), "own_encoders:make"
    with pytest.raises(InputError, match="encoder/model.json"):  # there was one, and it is lost
        train(config, tmp_path / "lost")
    del metadata["recipe"]["encoder_sha256"]
    file.write_text(json.dumps(metadata))
    train(config, tmp_path / "train")
    folder = tmp_path / "train" / "model"
    assert (folder / "autoencoder").is_dir() and not (folder / "encoder").exists()
    model = load_model(folder)
    assert model.own_encoder is None and (tmp_path / "train/samples/00000006.png").is_file()

    flags = f"--model={folder}", f"--records={records}"
    run(sample, *flags, "--count=4", f"--output={tmp_path / 'samples'}")
    assert len(list((tmp_path / "samples" / "patches").glob("*.png"))) == 4
    example = open_records(records, "").source("test", ("embedding",))[0]["embedding"]
    np.save(tmp_path / "grid.npy", np.broadcast_to(example, (2, 2, *example.shape)))
    grid, image = f"--grid={tmp_path / 'grid.npy'}", tmp_path / "image.png"
    run(generate, f"--model={folder}", grid, "--size=128x128", f"--output={image}")
    assert image.is_file()
    with pytest.raises(SystemExit):
        run(evaluate, *flags, f"--samples={tmp_path / 'samples'}", f"--output={tmp_path / 'r'}")
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "came without its SSL encoder" in said and "none can be embedded or judged" in said
