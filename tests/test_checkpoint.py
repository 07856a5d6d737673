"""PyTorch checkpoints: read to the bit, never run, every fault named."""

import pickle
import struct
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from handmade import NUMBERS, WHOLE, checkpoint, name, pickled, refused, tensor
from oracle import FOLDER, OWN, recorded

from ssl_diffusion.weights.tensor_files import open_tensors


def test_parity_of_the_tensors_of_a_checkpoint():
    expected = recorded("lightning_small")
    found = open_tensors(FOLDER / "lightning_small.ckpt")
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert found[key].shape == array.shape
        np.testing.assert_array_equal(found[key].astype(array.dtype), array)
    kinds = [str(array.dtype) for array in found.values()]
    assert kinds == [
        "float32", "float32", "float16", "bfloat16", "float32", "int64", *3 * ["float32"], "bool"
    ]  # fmt: skip
    view = found["view.transposed"]
    assert view.strides == (4, 32) and not view.flags.writeable  # nothing was copied
    assert np.shares_memory(view, found["view.slice"])


def test_views_types_and_wrappers_of_handmade_checkpoints(tmp_path):
    views = {
        "whole": WHOLE,
        "transposed": tensor((4, 6), (1, 4)),
        "row": tensor((4,), (1,), offset=20),
        "one": tensor((), (), offset=5),
        "empty": tensor((0, 3), (3, 1)),
        "epoch": 3,
        "nothing": None,
    }
    parameter = name("torch._utils", "_rebuild_parameter") + pickled((WHOLE, True, {})) + b"R"
    expected = {
        "whole": NUMBERS.reshape(2, 3, 4),
        "transposed": NUMBERS.reshape(6, 4).T,
        "row": NUMBERS[20:],
        "one": NUMBERS[5],
        "empty": np.zeros((0, 3), np.float32),
    }
    for content in (
        views,
        {"state_dict": views, "epoch": 1, "best": WHOLE},
        {"student": {"a": WHOLE}, "teacher": views, "optimizer": {"a": WHOLE}},
        {"optimizer": {"state": {}}, "network": views},
    ):
        found = open_tensors(checkpoint(tmp_path / "x.ckpt", content))
        assert list(found) == list(expected)
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array, strict=True)
    found = open_tensors(checkpoint(tmp_path / "x.ckpt", {"p": parameter}))
    np.testing.assert_array_equal(found["p"], expected["whole"])
    for storage, dtype in {
        "DoubleStorage": np.float64,
        "HalfStorage": np.float16,
        "BFloat16Storage": ml_dtypes.bfloat16,
        "LongStorage": np.int64,
        "CharStorage": np.int8,
        "UntypedStorage": np.uint8,
    }.items():
        values = np.arange(5).astype(dtype)
        content = {"a": tensor((5,), (1,), size=5, storage=storage)}
        path = checkpoint(tmp_path / "x.ckpt", content, **{"data/0": values.tobytes()})
        np.testing.assert_array_equal(open_tensors(path)["a"], values, strict=True)


COMMAND = pickled(("echo > ran.txt",))
SYSTEM = name("os", "system")
BOMBS = {
    "REDUCE": SYSTEM + COMMAND + b"R",
    "NEWOBJ": SYSTEM + COMMAND + b"\x81",
    "NEWOBJ_EX": SYSTEM + COMMAND + b"}\x92",
    "INST": b"(" + pickled("echo > ran.txt") + b"ios\nsystem\n",
    "OBJ": b"(" + SYSTEM + pickled("echo > ran.txt") + b"o",
    "STACK_GLOBAL": pickled("os") + pickled("system") + b"\x93" + COMMAND + b"R",
    "BUILD": name("builtins", "object") + b")\x81" + pickled((None, {"a": SYSTEM})) + b"b",
    "import": name("this", "s") + b"0" + name("antigravity", "fly"),
    "eval": name("builtins", "eval") + pickled(("open('ran.txt', 'w')",)) + b"R",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_pickles_that_want_to_run_code_are_data(bomb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    found = open_tensors(checkpoint(Path("x.ckpt"), {"w": WHOLE, "x": BOMBS[bomb]}))
    assert list(found) == ["w"]
    assert set(sys.modules) == before and [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]


def test_published_pickle_bomb_does_not_go_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = open_tensors(OWN / "pickle_bomb.ckpt")
    assert found["w"].shape == (2,) and list(found) == ["w"]
    assert not list(tmp_path.iterdir()) and not (OWN / "pickle_bomb_ran.txt").exists()


def test_checkpoint_before_the_zip_format_says_how_to_save_it_again():
    refused(OWN / "lightning_small_legacy.ckpt", r"before 1.6.*torch\.save\(torch\.load\(")


HUGE = 10**30
DOUBLED = b")" + b"q\0h\0\x86" * 200  # a tuple whose hash and text take 2^200 steps
ODD_STORAGE = pickled(("storage", DOUBLED, DOUBLED, "cpu", 24)) + b"Q"
BAD_PICKLES = {  # what the pickle holds -> what the error says
    "small storage": ({"a": tensor((30,), (1,), size=30)}, "30 elements of float32, but only 96"),
    "stride": ({"a": tensor((4, 6), (6, 2))}, "outside its storage of 24"),
    "offset": ({"a": tensor((4,), (1,), offset=21)}, "outside its storage"),
    "negative offset": ({"a": tensor((4,), (1,), offset=-1)}, "no number of elements"),
    "negative stride": ({"a": tensor((4,), (-1,), offset=3)}, "no number of elements"),
    "negative size": ({"a": tensor((-4, -4), (1, 1))}, "no number of elements"),
    "negative storage": ({"a": tensor((1,), (1,), size=-1)}, "no number of elements"),
    "huge stride": ({"a": tensor((2,), (2**62,))}, "no number of elements"),
    "huge size": ({"a": tensor((HUGE,), (0,))}, "no number of elements"),
    "expanded": ({"a": tensor((2**40,), (0,))}, "outside its storage"),
    "many axes": ({"a": tensor((1,) * 40, (1,) * 40)}, "without a shape"),
    "axes": ({"a": tensor((2, 3), (1,))}, "without a shape"),
    "text size": ({"a": tensor(("2",), (1,))}, "no number of elements"),
    "no storage": ({"a": tensor((1,), (1,), key="7")}, "lacks its member 'data/7'"),
    "other storage": ({"a": tensor((1,), (1,), key="../data.pkl")}, "lacks its member"),
    "complex": ({"a": tensor((1,), (1,), storage="ComplexFloatStorage")}, "ComplexFloatStorage"),
    "sparse": (
        {"a": name("torch._utils", "_rebuild_sparse_tensor") + b")R", "b": WHOLE},
        "sparse, quantised",
    ),
    "odd name": ({"a\n": WHOLE}, "expected text"),
    "no tensors": ({"state_dict": {"epoch": 1}}, "holds no dictionaries of tensors"),
    "no dictionary": (name("models", "Network") + b")\x81}b", "holds no dictionaries"),
    "two networks": ({"g": {"a": WHOLE}, "d": {"a": WHOLE}}, "holds 2 dictionaries"),
    "nested lists": (b"]" * 10**5 + b"a" * (10**5 - 1), "holds no"),
    "nested keys": (b"})" + b"\x85" * 2 * 10**5 + b"Ns", "holds no"),
    "doubled keys": (b"}" + DOUBLED + b"Ns", "holds no"),
    "doubled names": (b"X\1\0\0\0a" + b"q\0h\0\x93" * 200, "holds no"),
    "doubled storage": (
        {"a": name("torch._utils", "_rebuild_tensor") + pickled((ODD_STORAGE, 0, (), ())) + b"R"},
        "not read .no storage",
    ),
    "memo": (b"Nr\xff\xff\xff\x7f", "holds no"),
    "stack": (b"00", "damaged"),
    "buffer": (b"\x97", "damaged"),
    "long text": (b"\x8d" + struct.pack("<Q", 2**62), "damaged"),
    "no end": (b"X\xff\xff\xff\x7f", "damaged"),
}


@pytest.mark.parametrize("fault", BAD_PICKLES)
def test_checkpoints_that_lie_are_refused(fault, tmp_path):
    content, match = BAD_PICKLES[fault]
    refused(checkpoint(tmp_path / "bad.ckpt", content), match)


def test_archives_that_are_no_checkpoints_are_refused(tmp_path):
    path = tmp_path / "bad.ckpt"
    whole = (OWN / "lightning_small.ckpt").read_bytes()
    for length in (0, 1, 20, 2000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "cut short or damaged|neither")
    path.write_bytes(whole[:2000] + whole[4000:])
    refused(path, "damaged|directory says")
    np.savez(tmp_path / "bad.npz", a=NUMBERS)
    refused(tmp_path / "bad.npz", "no PyTorch checkpoint")
    big = {"byteorder": b"big"}
    refused(checkpoint(path, {"a": WHOLE}, **big), "byte order b'big'")
    refused(checkpoint(path, b" " * (16 * 2**20)), "at most 16777216")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1000))
    refused(path, "compressed")
    path.write_bytes(pickle.dumps({"a": 1}, 2))
    refused(path, "bare pickle")
    path.write_bytes(bytes(257) + b"ustar" + bytes(300))
    refused(path, "before 1.6")
