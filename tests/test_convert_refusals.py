"""Published files that do not fit are refused in one line, before anything is written."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import convert, run_command
from handmade import checkpoint, tensor
from oracle import OWN, tensors

from ssl_diffusion import cli
from ssl_diffusion import convert as convert_command
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.safetensors_file import read_tensors, write_tensors


def test_every_fault_is_named_at_once(published, tmp_path):
    arrays = dict(read_tensors(published[0]))
    del arrays["model.diffusion_model.out.2.bias"]
    arrays["first_stage_model.decoder.conv_in.bias"] = np.zeros(5, np.float32)
    arrays["first_stage_model.quant_conv.bias"] = np.zeros(3, np.int32)
    arrays["model.diffusion_model.surprise"] = np.zeros(1, np.float32)
    write_tensors(tmp_path / "bad.safetensors", arrays)
    result = run_command(
        "convert", f"--input={tmp_path / 'bad.safetensors'}", f"--output={tmp_path / 'out'}"
    )
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for part in (
        "model.diffusion_model.out.2.bias: missing, expected [3]",
        "first_stage_model.decoder.conv_in.bias: found [5], expected [",
        "first_stage_model.quant_conv.bias: found int32, expected floating point",
        "model.diffusion_model.surprise: unexpected",
    ):
        assert part in line
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


ANCHORS = {  # what the architecture is read from: with one of them wrong, the others still tell it
    "ldm": (
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.0.0.bias",
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
        "model.diffusion_model.input_blocks.2.0.op.weight",
        "model.diffusion_model.input_blocks.3.1.norm.weight",
        "model.diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.middle_block.0.emb_layers.1.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.conv_in.weight",
        "first_stage_model.encoder.down.1.block.0.conv1.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.conv_in.weight",
        "first_stage_model.post_quant_conv.weight",
        "first_stage_model.quantize.embedding.weight",
        "cond_stage_model.patch_fc.weight",
        "betas",
    ),
    "diffusers": ("caption_projection.uncond_embedding", "pos_embed.proj.weight"),
    "vit": (
        "patch_embed.proj.weight",
        "pos_embed",
        "cls_token",
        "norm.bias",
        "blocks.0.mlp.fc1.bias",
        "blocks.0.mlp.fc2.weight",
        "blocks.0.attn.qkv.weight",
    ),
}
OTHERS = {
    "ldm": ("model.diffusion_model.out.0.bias", "first_stage_model.decoder.norm_out.bias"),
    "diffusers": ("proj_out.bias", "caption_projection.linear_2.weight"),
    "vit": ("blocks.1.norm2.bias", "blocks.1.mlp.fc2.bias"),
}


@pytest.mark.parametrize(
    ("kind", "anchor"), [(kind, name) for kind, names in ANCHORS.items() for name in names]
)
def test_what_tells_the_architecture_is_one_fault_among_others(
    kind, anchor, published, pipeline, tmp_path
):
    source, file = tmp_path / "in", tmp_path / "in" / "model.safetensors"
    if kind == "diffusers":
        shutil.copytree(pipeline, source)
        file = Path("transformer", "diffusion_pytorch_model.safetensors")
        file, arrays = source / file, dict(read_tensors(pipeline / file))
    else:
        source.mkdir()
        small = tensors("encoder_timm_vit_small")
        arrays = dict(read_tensors(published[0])) if kind == "ldm" else small
    whole = arrays.pop(anchor)
    damaged = [(arrays, "missing")]
    if whole.T.shape != whole.shape:
        damaged.append((arrays | {anchor: whole.T}, f"found {list(whole.T.shape)}"))
    for arrays, fault in damaged:
        faults = [f"{other}: missing" for other in OTHERS[kind]]
        arrays = {name: array for name, array in arrays.items() if name not in OTHERS[kind]}
        write_tensors(file, arrays | {"surprise": np.zeros(1, np.float32)})
        with pytest.raises(InputError) as error:
            convert(source, tmp_path / "out")
        message = str(error.value)
        faults += ["surprise: unexpected", anchor]
        assert all(part in message for part in faults) and "\n" not in message
        assert message.count(";") == 3
        if anchor not in ("betas", "cond_stage_model.patch_fc.weight"):  # nothing else tells these
            assert f"{anchor}: {fault}" in message


def _transposed(arrays: dict[str, np.ndarray]) -> None:
    name = "model.diffusion_model.time_embed.0.weight"
    arrays[name] = np.ascontiguousarray(arrays[name].T)


def _no_schedule(arrays: dict[str, np.ndarray]) -> None:
    del arrays["betas"]


def _strange_schedule(arrays: dict[str, np.ndarray]) -> None:
    arrays["betas"] = np.linspace(0.1, 0.5, 1000, dtype=np.float32) ** 3


def _no_unet_head(arrays: dict[str, np.ndarray]) -> None:
    del arrays["model.diffusion_model.input_blocks.0.0.weight"]


def _renamed(arrays: dict[str, np.ndarray]) -> None:
    for name in list(arrays):
        arrays[f"net.{name}"] = arrays.pop(name)


def _no_first_stage(arrays: dict[str, np.ndarray]) -> None:
    for name in [name for name in arrays if name.startswith("first_stage_model.")]:
        del arrays[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_transposed, r"time_embed.0.weight: found \[32, 128\], expected \[128, 32\]"),
        (_no_schedule, "has no betas"),
        (_strange_schedule, "are of none of the schedules"),
        (_no_unet_head, "input_blocks.0.0.weight"),
        (_renamed, "in no known layout"),
        (_no_first_stage, "first_stage_model"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(published, change, message, tmp_path):
    arrays = dict(read_tensors(published[0]))
    change(arrays)
    write_tensors(tmp_path / "bad.safetensors", arrays)
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "bad.safetensors", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer", {"num_layers": 3}, "transformer_blocks.2"),
        ("transformer", {"norm_type": "layer_norm"}, "norm_type"),
        ("transformer", {"num_attention_heads": None}, "num_attention_heads"),
        ("vae", {"down_block_types": ["Attn"] * 4}, "down_block_types"),
        ("vae", {"latent_channels": 4}, "latent|conv"),
        ("scheduler", {"prediction_type": "flow"}, "prediction_type"),
    ],
)
def test_configs_that_do_not_fit_are_refused(pipeline, part, change, message, tmp_path):
    shutil.copytree(pipeline, tmp_path / "bad")
    file = tmp_path / "bad" / part / ("scheduler_" * (part == "scheduler") + "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_one_tensor_is_in_no_layout(tmp_path):
    checkpoint(tmp_path / "x.ckpt", {"state_dict": {"a": tensor((2, 3), (3, 1))}})
    with pytest.raises(InputError, match="in no known layout"):
        convert(tmp_path / "x.ckpt", tmp_path / "out")


def _truncated_zip(path: Path, published: Path) -> Path:
    data = (OWN / "lightning_small.ckpt").read_bytes()
    (path / "x.ckpt").write_bytes(data[: len(data) // 2])
    return path / "x.ckpt"


def _changed(**change: np.ndarray | None):
    """A checkpoint with some tensors replaced, or left out (None)."""

    def make(path: Path, published: Path) -> Path:
        arrays = dict(read_tensors(published)) | change
        arrays = {name: array for name, array in arrays.items() if array is not None}
        write_tensors(path / "x.safetensors", arrays)
        return path / "x.safetensors"

    return make


def _holding(name: str, content: bytes):
    def make(path: Path, published: Path) -> Path:
        (path / name).write_bytes(content)
        return path / name

    return make


def _copied(name: str):
    return lambda path, published: Path(shutil.copy(OWN / name, path / name))


def _cut_safetensors(path: Path, published: Path) -> Path:
    (path / "x.safetensors").write_bytes(published.read_bytes()[:-100])
    return path / "x.safetensors"


def _zip_of_notes(path: Path, published: Path) -> Path:
    with zipfile.ZipFile(path / "x.ckpt", "w") as archive:
        archive.writestr("notes.txt", "these are notes")
    return path / "x.ckpt"


def _index_of_nothing(path: Path, published: Path) -> Path:
    index = {"weight_map": {"a": "gone.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def _link_outside(path: Path, published: Path) -> Path:
    (path / "folder").mkdir()
    (path / "folder" / "model.safetensors").symlink_to(published)
    return path / "folder"


def _two_files(path: Path, published: Path) -> Path:
    for name in "ab":
        write_tensors(path / f"{name}.safetensors", {"w": np.zeros(1, np.float32)})
    return path


def _config_without_tensors(path: Path, published: Path) -> Path:
    (path / "vae").mkdir()
    (path / "vae" / "config.json").write_text("{")
    return path


TRANSPOSED = np.zeros((32, 128), np.float32)
BAD = {
    "nothing there": (lambda path, published: path / "x.ckpt", "x.ckpt is no file"),
    "an empty file": (_holding("x.ckpt", b""), "neither a checkpoint"),
    "an empty folder": (lambda path, published: path, "no tensor files"),
    "text": (_holding("x.ckpt", b"these are notes"), "neither a checkpoint"),
    "a web page": (_holding("x.safetensors", b"<!DOCTYPE html><html>"), "a web page"),
    "an LFS pointer": (
        _holding("x.ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "git lfs pull",
    ),
    "gzip": (_holding("x.ckpt", b"\x1f\x8b\x08\x00"), "gzip"),
    "a truncated checkpoint": (_truncated_zip, "x.ckpt"),
    "the format before zip": (_copied("lightning_small_legacy.ckpt"), "torch.save(torch.load"),
    "a pickle that would run code": (_copied("pickle_bomb.ckpt"), "pickle_bomb.ckpt"),
    "a zip that is no checkpoint": (_zip_of_notes, "x.ckpt"),
    "truncated safetensors": (_cut_safetensors, "damaged"),
    "a lying header": (
        _holding("x.safetensors", (10**12).to_bytes(8, "little") + b'{"a":1}'),
        "damaged",
    ),
    "an index that names a missing shard": (_index_of_nothing, "gone.safetensors is missing"),
    "a link that leads out": (_link_outside, "leads out of its folder"),
    "two files": (_two_files, "several"),
    "a config that is none": (_config_without_tensors, "not valid JSON"),
    "a transposed tensor": (
        _changed(**{"model.diffusion_model.time_embed.0.weight": TRANSPOSED}),
        "time_embed.0.weight: found [32, 128], expected [128, 32]",
    ),
    "a wrong type": (
        _changed(**{"model.diffusion_model.out.2.bias": np.zeros(3, np.int64)}),
        "out.2.bias: found int64, expected floating point",
    ),
    "a missing tensor": (
        _changed(**{"first_stage_model.decoder.norm_out.bias": None}),
        "decoder.norm_out.bias: missing",
    ),
    "a tensor too many": (_changed(extra=np.zeros(1, np.float32)), "extra: unexpected"),
    "betas of two axes": (_changed(betas=np.ones((2, 500), np.float32) / 2), "betas of shape"),
    "betas with NaN": (_changed(betas=np.full(1000, np.nan, np.float32)), "between 0 and 1"),
    "another table": (
        _changed(alphas_cumprod=np.ones(1000, np.float32)),
        "alphas_cumprod is not the table",
    ),
    "a gain of 0": (_changed(scale_factor=np.array(0.0, np.float32)), "expected more than 0"),
    "an empty tensor": (
        _changed(**{"model.diffusion_model.input_blocks.0.0.weight": np.zeros((0, 3, 3, 3))}),
        "input_blocks.0.0.weight: found [0, 3, 3, 3], expected [32, 3, 3, 3]",
    ),
    "no schedule": (_changed(betas=None), "has no betas"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_one_line_and_exit_code_2(what, published, tmp_path, monkeypatch, capsys):
    make, message = BAD[what]
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in", published[0])
    monkeypatch.chdir(tmp_path)
    arguments = ["convert", f"--input={source}", f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as exit:
        cli.run(convert_command.main, convert_command.FLAGS)
    assert exit.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("setting", [{"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}])
def test_settings_that_would_do_nothing_are_refused(setting, published, tmp_path):
    with pytest.raises(InputError, match=f"--{next(iter(setting))} given, but the file"):
        convert(published[0], tmp_path / "out", **setting)
    assert not list(tmp_path.iterdir())


def test_output_that_is_there_is_kept(published, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = run_command("convert", f"--input={published[0]}", f"--output={tmp_path}")
    assert result.returncode == 2 and "is there already" in result.stderr
    assert (tmp_path / "file").read_text() == "mine"
