"""Files of tensors: read to the bit, never run, every fault named."""

import itertools
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from oracle import FOLDER, OWN, recorded

from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.safetensors_file import DTYPES, read_tensors, write_tensors
from ssl_diffusion.weights.tensor_files import open_tensors

# A writer of pickles with the names that torch.save puts in them. bytes are instructions.


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def pickled(value: object) -> bytes:
    match value:
        case bytes():
            return value
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case str():
            return b"X" + struct.pack("<I", len(value)) + value.encode()
        case int():
            content = pickle.encode_long(value)
            return b"\x8a" + bytes([len(content)]) + content
        case tuple():
            return b"(" + b"".join(map(pickled, value)) + b"t"
        case dict():
            return b"}(" + b"".join(map(pickled, itertools.chain(*value.items()))) + b"u"
    raise TypeError(value)


def tensor(shape, strides, offset=0, size=24, key="0", storage="FloatStorage") -> bytes:
    """A tensor of a storage of `size` elements, as torch.save describes it."""
    place = pickled(("storage", name("torch", storage), key, "cpu", size)) + b"Q"
    hooks = name("collections", "OrderedDict") + b")R"
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return rebuild + pickled((place, offset, shape, strides, False, hooks)) + b"R"


NUMBERS = np.arange(24, dtype=np.float32)
WHOLE = tensor((2, 3, 4), (12, 4, 1))


def checkpoint(path: Path, content: object, **members: bytes) -> Path:
    """A checkpoint whose storage "0" holds NUMBERS; `members` replace or add others."""
    with zipfile.ZipFile(path, "w") as archive:
        parts = {"data.pkl": b"\x80\x02" + pickled(content) + b".", "byteorder": b"little"}
        for part, value in (parts | {"data/0": NUMBERS.tobytes()} | members).items():
            archive.writestr(f"archive/{part}", value)
    return path


def refused(path: Path, match: str) -> None:
    """Opening it is an error of one line that names the file and the reason."""
    with pytest.raises(InputError, match=match) as error:
        open_tensors(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 600 + len(str(path))


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


def test_content_decides_whatever_the_name(tmp_path):
    (tmp_path / "a.safetensors").write_bytes((OWN / "lightning_small.ckpt").read_bytes())
    assert len(open_tensors(tmp_path / "a.safetensors")) == 10
    # 128 and 19280 as a length look like the first bytes of a pickle and of a zip file.
    for length in (128, 19280):
        path = tmp_path / "b.ckpt"
        header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(length)
        path.write_bytes(struct.pack("<Q", length) + header + b"\7")
        np.testing.assert_array_equal(open_tensors(path)["a"], np.array([7], np.uint8))
    for content, match in {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "git lfs pull",
        b"\n<!DOCTYPE html><html>Sign in</html>": "web page",
        b"\x1f\x8b" + bytes(9): "gzip",
        b"PK\x05\x06" + bytes(18): "no PyTorch checkpoint",
        b"hello": "begins with b'hello'",
    }.items():
        path.write_bytes(content)
        refused(path, match)
    refused(tmp_path / "none.ckpt", "is no file")
    refused(path / "inside", "is no file")


def every_type() -> dict[str, np.ndarray]:
    """Arrays of every type, with axes that are empty, transposed and missing."""
    rng = np.random.default_rng(0)
    arrays = {"scalar": np.array(2.5, np.float32), "ü/é": np.ones(3, np.float16)}
    for size in (0, 1, 5):
        for kind, dtype in DTYPES.items():
            arrays[f"{kind}.{size}"] = rng.integers(0, 2, (size, 3)).astype(dtype).T
    return arrays


def test_safetensors_are_written_as_the_library_writes_them(tmp_path):
    arrays = every_type()
    write_tensors(tmp_path / "ours.safetensors", arrays)
    contiguous = {key: np.array(array, order="C") for key, array in arrays.items()}
    safetensors.numpy.save_file(contiguous, tmp_path / "library.safetensors")
    ours = (tmp_path / "ours.safetensors").read_bytes()
    assert ours == (tmp_path / "library.safetensors").read_bytes()
    found = open_tensors(tmp_path / "ours.safetensors")
    assert set(found) == set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array, strict=True)
        assert not found[key].flags.writeable


def test_floats_alone_are_converted_as_they_are_written(tmp_path):
    arrays = {"w": np.array([1.0, 1 + 2**-8, 3e38]), "n": np.arange(3), "flag": np.array([True])}
    for dtype in ("float32", ml_dtypes.bfloat16):
        write_tensors(tmp_path / "x.safetensors", arrays, dtype)
        found = open_tensors(tmp_path / "x.safetensors")
        expected = arrays | {"w": arrays["w"].astype(dtype)}
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array, strict=True)


def lie(entry: dict, data: int = 96) -> bytes:
    """A safetensors file of one tensor that `entry` describes, with so many bytes of data."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]} | entry})
    return struct.pack("<Q", len(header)) + header.encode() + bytes(data)


@pytest.mark.parametrize(
    "content, match",
    [
        (lie({}, data=95), "damaged"),
        (lie({}, data=97), "damaged"),
        (lie({"shape": [25]}), "damaged"),
        (lie({"shape": [-24]}), "damaged"),
        (lie({"shape": [2**62, 4]}), "damaged"),
        (lie({"data_offsets": [4, 100]}, data=100), "damaged"),
        (lie({"data_offsets": [96, 0]}), "damaged"),
        (lie({"dtype": "F33"}), "damaged"),
        (lie({"dtype": "F8_E4M3", "shape": [96]}), "as F8_E4M3, expected one of"),
        (struct.pack("<Q", 10**12) + b"{}", "damaged"),
        (struct.pack("<Q", 500) + lie({})[8:], "damaged"),
        (struct.pack("<Q", 10**6) + b"{" + b'"a":[' * 10**5, "damaged"),
        (struct.pack("<Q", 2) + b"{}", "holds no tensors"),
        (lie({})[:40], "damaged"),
        (lie({})[:6], "neither"),
    ],
)
def test_safetensors_that_lie_are_refused(content, match, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(content)
    refused(tmp_path / "bad.safetensors", match)


def shards(folder: Path, weight_map: object) -> Path:
    """Two shards, {"a": 0..23} and {"b": ones}, and an index that says `weight_map`."""
    folder.mkdir(exist_ok=True)
    write_tensors(folder / "1.safetensors", {"a": NUMBERS, "more": NUMBERS})
    write_tensors(folder / "2.safetensors", {"b": np.ones(2, ml_dtypes.bfloat16)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_folders_of_one_file_or_of_shards(tmp_path):
    found = open_tensors(shards(tmp_path / "x", {"b": "2.safetensors", "a": "1.safetensors"}))
    assert list(found) == ["b", "a"] and found["b"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found["a"], NUMBERS)
    (tmp_path / "x" / "model.safetensors.index.json").unlink()
    refused(tmp_path / "x", "several or no tensor files .*1.safetensors, 2.safetensors")
    (tmp_path / "x" / "1.safetensors").unlink()
    assert list(open_tensors(tmp_path / "x")) == ["b"]
    (tmp_path / "x" / "2.safetensors").unlink()
    refused(tmp_path / "x", r"tensor files \(none\)")
    (tmp_path / "x" / "2.safetensors").mkdir()
    refused(tmp_path / "x", "is no file")


@pytest.mark.parametrize(
    "weight_map, match",
    [
        ({"a": "3.safetensors"}, "3.safetensors is missing"),
        ({"b": "1.safetensors"}, "1.safetensors lacks the tensor 'b' that model.safetensors.index"),
        ({"a": "../y/1.safetensors"}, "expected the name of a file"),
        ({"a": "/etc/hostname"}, "expected the name of a file"),
        ({"a": "1.safetensors\0"}, "expected the name of a file"),
        ({"a": "\ud800"}, "expected the name of a file"),
        ({"a": ".."}, "expected the name of a file"),
        ({"a": ""}, "expected the name of a file"),
        ({"a": "a" * 1000}, "expected the name of a file"),
        ({"a": 1}, "no weight_map"),
        ([], "no weight_map"),
        ({}, "holds no tensors"),
    ],
)
def test_indices_that_lie_are_refused(weight_map, match, tmp_path):
    refused(shards(tmp_path / "x", weight_map), match)


def test_links_lead_nowhere_outside_of_a_folder(tmp_path):
    folder = shards(tmp_path / "x", {"a": "1.safetensors"})
    index = folder / "model.safetensors.index.json"
    for file, kind in ((folder / "1.safetensors", "shard"), (index, "index")):
        outside = file.rename(tmp_path / kind)
        file.symlink_to(outside)
        with pytest.raises(InputError, match=r"leads out of its folder.*cp -rL"):
            open_tensors(folder)
        file.unlink()
        file.symlink_to(file)
        with pytest.raises(InputError, match="missing"):
            open_tensors(folder)
        outside.rename(file)
    (folder / "1.safetensors").rename(folder / "target")
    (folder / "1.safetensors").symlink_to("target")
    np.testing.assert_array_equal(open_tensors(folder)["a"], NUMBERS)
    index.write_text("[" * 10**5)
    refused(folder, "no weight_map")
    index.write_text('{"weight_map": ' + "1" * 5000 + "}")
    refused(folder, "no weight_map")


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_random_damage_is_an_input_error_or_harmless(kind, tmp_path):
    """Bytes changed, put at random or cut: tensors or InputError, nothing imported, no crash."""
    path = tmp_path / f"x.{kind}"
    if kind == "ckpt":
        path.write_bytes((OWN / "lightning_small.ckpt").read_bytes())
        regions = [(0, 2300), (36000, 38538), (0, 38538)]  # pickle, directory of the zip, all
    else:
        write_tensors(path, every_type())
        regions = [(0, 100), (0, path.stat().st_size)]
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    open_tensors(path)
    modules, outcomes = set(sys.modules), {"read": 0, "refused": 0}
    for seed in range(400):
        rng = np.random.default_rng(seed)
        damaged = whole.copy()
        low, high = regions[seed % len(regions)]
        at = rng.integers(low, min(high, whole.size), rng.integers(1, 6))
        damaged[at] = rng.integers(0, 256, at.size)
        path.write_bytes(damaged[: rng.integers(whole.size) if seed % 10 == 0 else None].tobytes())
        try:
            found = open_tensors(path)
            assert sum(np.asarray(array).nbytes for array in found.values()) < 10 * whole.size
            outcomes["read"] += 1
        except InputError as error:
            assert path.name in str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
    assert set(sys.modules) == modules
    assert min(outcomes.values()) > 10, outcomes


STREAM = """
import resource, sys
from ssl_diffusion.weights.tensor_files import open_tensors
from ssl_diffusion.weights.safetensors_file import write_tensors

status = open("/proc/self/status").read()
used = 1024 * int(status.split("VmData:")[1].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (used + 24 * 2**20,) * 2)  # mapped files do not count
for source in sys.argv[1:]:
    write_tensors(source + ".out", {k: v.T for k, v in open_tensors(source).items()}, "bfloat16")
"""


def test_files_larger_than_memory_stream_through(tmp_path):
    """64 MB in tensors of 4 MB are opened, transposed, converted and written within 24 MB."""
    sizes = {str(i): tensor((1024, 1024), (1024, 1), i * 2**20, 2**24) for i in range(16)}
    values = np.arange(2**24, dtype=np.float32).reshape(16, 1024, 1024)
    ckpt = checkpoint(tmp_path / "x.ckpt", sizes, **{"data/0": values.tobytes()})
    write_tensors(tmp_path / "x.safetensors", open_tensors(ckpt))
    sources = [str(ckpt), str(tmp_path / "x.safetensors")]
    command = [sys.executable, "-c", STREAM, *sources]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for source in sources:
        found = read_tensors(Path(source + ".out"))
        assert len(found) == 16
        np.testing.assert_array_equal(found["7"], values[7].T.astype(ml_dtypes.bfloat16))
