"""Files and folders of tensors: read to the bit, written as the library does, every fault named."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from handmade import NUMBERS, checkpoint, refused, tensor
from oracle import OWN

from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.safetensors_file import DTYPES, read_tensors, write_tensors
from ssl_diffusion.weights.tensor_files import open_tensors


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
