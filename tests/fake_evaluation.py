"""A model that computes nothing and what all commands leave behind, for tests of `evaluate`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_diffusion import evaluate
from ssl_diffusion.data.writer import Layout, RecordsWriter
from ssl_diffusion.encoders.encoder import SSLEncoder
from ssl_diffusion.stitching.output import write_image
from ssl_diffusion.weights.model import Model

PATCH, FACTOR, REGION, SLIDE = 16, 4, (8, 16, 64, 48), "slide & <b>.png"
RECIPE = {"name": "this", "encoder_sha256": "0"}


class FakeEncoder(SSLEncoder):
    """Projects 4 x 4 block means; untrained, it sees one pixel only."""

    def __init__(self, trained: bool = True):
        augmentation = {"crop": 0.9, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1}
        spec = {
            "augmentation": augmentation | {"hue": 0.0, "blur_px": 0.5},
            "architecture": {"name": "blocks"},
            "embedding": {"tokens": 1, "dim": 48},
            "image_size": PATCH,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        }
        object.__setattr__(self, "spec", spec)
        object.__setattr__(self, "_trained", trained)

    def embed(self, images: np.ndarray) -> np.ndarray:
        size = images.shape[1] // 4
        means = images.reshape(len(images), 4, size, 4, size, 3).mean(axis=(2, 4))
        # Turns and flips are part of the augmentation, so only what they keep is looked at.
        kept = np.sort(means.reshape(len(images), 16, 3), axis=1).reshape(len(images), -1)
        kept = kept.astype(np.float32)
        return (kept if self._trained else kept[:, :1].repeat(48, axis=1))[:, None] / 64

    def reinitialised(self, seed: int) -> "FakeEncoder":
        return FakeEncoder(trained=False)


class FakeModel(Model):
    """An autoencoder that averages 4 x 4 px, and no denoiser: evaluate must not need one."""

    patch_px, factor, mpp, encoder = PATCH, FACTOR, 0.5, FakeEncoder()

    def __init__(self, name: str):
        spec = {"embedding": {"tokens": 1, "dim": 48, "mean": [[0.0] * 48]}, "name": "<i>fake</i>"}
        if name == "of_another_split":
            spec["trained"] = {"split_sha256": "0"}
        if name == "of_this_split":
            spec["trained"] = {"split_sha256": "this"}
        if name == "of_another_encoder":
            object.__setattr__(self, "encoder", FakeEncoder(trained=False))
        object.__setattr__(self, "spec", spec)
        object.__setattr__(self, "sha256", "1" if name == "retrained" else "0")

    def encode(self, images: np.ndarray) -> np.ndarray:
        n, height, width, _ = images.shape
        blocks = images.reshape(n, height // FACTOR, FACTOR, width // FACTOR, FACTOR, 3)
        return (blocks.mean(axis=(2, 4)) / 127.5 - 1).astype(np.float32)

    def decode(self, latent: np.ndarray) -> np.ndarray:
        return latent.repeat(FACTOR, axis=1).repeat(FACTOR, axis=2)


def run(*flags: str, model: str | None = "right") -> None:
    """`python -m ssl_diffusion.evaluate FLAGS` in this process."""
    for name in evaluate.FLAGS:
        evaluate.FLAGS[name].unparse()
    evaluate.FLAGS(["evaluate", *([f"--model={model}"] if model else []), *flags])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "load_model", FakeModel)
        patch.setattr(evaluate, "load_encoder", lambda folder: FakeEncoder())
        evaluate.main()


def read_report(folder: Path) -> dict:
    """report.json; no NaN is JSON."""
    return json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)


def picture(seed: int, size: int) -> np.ndarray:
    """A smooth random image."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def write_samples(folder: Path, indices: list[int], size: int = PATCH) -> Path:
    """A folder of ssl_diffusion.sample; the samples are the held-out patches themselves."""
    (folder / "patches").mkdir(parents=True)
    for index in indices:
        Image.fromarray(picture(index, size)).save(folder / "patches" / f"{index:05d}.png")
    about = {"split": "test", "indices": indices, "steps": 5, "note": "<script>x</script>"}
    text = json.dumps(about | {"model_sha256": "0", "recipe": RECIPE})
    (folder / "samples.json").write_text(text)
    return folder


def write_records(folder: Path) -> None:
    """60 training and 24 held-out patches, with the files that stand for their encoder."""
    encoder = FakeEncoder()
    writer = RecordsWriter(folder, ("train", "test"), Layout((1, 48), (4, 4, 3)))
    for split, count in (("train", 60), ("test", 24)):
        for index in range(count):
            image = picture(index if split == "test" else 1000 + index, PATCH)
            example = {"image": image, "x": 0, "y": 0, "source": "slide"}
            example["latent"] = np.zeros((4, 4, 3), np.float16)
            writer.add(split, example | {"embedding": encoder.embed(image[None])[0]})
    about = {"patch_px": PATCH, "mpp": 0.5, "split_sha256": "this", "image": {"format": "PNG"}}
    writer.close({"recipe": RECIPE} | about)
    (folder / "encoder").mkdir()
    (folder / "encoder" / "weights.safetensors").write_bytes(b"fake")
    slide = {"sha256": "", "held_out": [[0, 0], [0, 32], [32, 0], [32, 32], [64, 0], [64, 32]]}
    split = {"block_px": 32, "sources": {SLIDE: slide}}
    (folder / "split.json").write_text(json.dumps(split))


def write_stitched(folder: Path) -> None:
    """A slide, a region of it at half contrast, two by shifted windows, and one that is outside."""
    x, y, width, height = REGION
    whole = np.concatenate([picture(50 + i, 96) for i in range(2)], axis=1)
    Image.fromarray(whole).save(folder / SLIDE)
    region = whole[y : y + height, x : x + width]
    Image.fromarray(255 - (255 - region) // 2).save(folder / "stitched.png")
    stitched = {"reference": str(folder / SLIDE), "region": REGION, "stride": 2, "seconds": 3.5}
    stitched |= {"model_sha256": "0", "reference_mpp": 0.5}
    (folder / "stitched.json").write_text(json.dumps(stitched))
    shifted = stitched | {"scheme": "shifted", "grid_stride_px": PATCH}
    pixels = np.asarray(Image.open(folder / "stitched.png"))
    (folder / "several").mkdir()
    write_image(
        folder / "several" / "a.tif", [pixels], mpp=0.5, description={}, compression="deflate"
    )
    (folder / "several" / "a.json").write_text(json.dumps(shifted))
    Image.fromarray(region).save(folder / "several" / "b.png")
    (folder / "several" / "b.json").write_text(json.dumps(shifted))
    Image.fromarray(region).save(folder / "elsewhere.png")
    cell = region[:PATCH, :PATCH]
    Image.fromarray(cell).save(folder / "cell.png")
    (folder / "cell.json").write_text(
        json.dumps(stitched | {"region": [*REGION[:2], *2 * [PATCH]]})
    )
    outside = stitched | {"region": [180, 0, 64, 48]}
    (folder / "elsewhere.json").write_text(json.dumps(outside))


def write_training(folder: Path, digest: str) -> None:
    """The workdir of a finished run."""
    folder.mkdir()
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 30)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    summary = {"steps": 29, "images_per_second": 100.0, "final_loss": 0.03, "seconds": 9.0}
    summary["measured"] = {"held_out_loss": 0.5, "held_out_dropped": 0.6, "held_out_shuffled": 0.7}
    (folder / "summary.json").write_text(json.dumps(summary | {"model_sha256": digest}))
