"""Makes synthetic slides of labelled ones, region by region, as records: bags for MIL.

python -m ssl_diffusion.augment_slides --model=DIR --records=DIR --output=DIR --per_slide=1 \\
    --region_px=512

The cells of every labelled source are cut into regions of whole cells. Each region is generated
from its grid of embeddings by the stitched sampler, cut into patches where the source has some, and
these are embedded again by the model's encoder. The records have the source NAME#synthetic0 and so
on, with its label and its places. Copies of a slide differ by their noise; with --interpolate=T the
grid of each region also goes T of the way, cell by cell, towards that of another region of the same
class. The metadata say which real slides each synthetic one is made of: `evaluate_mil` uses none
whose parents it does not train on.

A run that was killed goes on when the same command is given again. With --images every slide is
also written as a pyramidal .tif into OUTPUT/slides. Each region is made by itself, so that a seam
may be seen between neighbours; no patch lies across it.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

import ssl_diffusion
from ssl_diffusion import cli
from ssl_diffusion.augmentation.trained import split_of
from ssl_diffusion.data.page import write_page
from ssl_diffusion.data.records import Records, open_records
from ssl_diffusion.data.writer import Layout, RecordsWriter
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.inputs import read_png
from ssl_diffusion.files import read_json, remove, replacing, sha256, write_json
from ssl_diffusion.locks import only_one
from ssl_diffusion.mil.bags import SYNTHETIC, read_bags
from ssl_diffusion.mil.synthetic import Copy, cells_of, copies_of, parents_of, regions_of
from ssl_diffusion.models.build import PRECISIONS
from ssl_diffusion.sampling import define_flags, sampling_of
from ssl_diffusion.stitching.large_image import LargeImage
from ssl_diffusion.stitching.output import check_writable, write_image
from ssl_diffusion.stitching.pyramid import build_levels
from ssl_diffusion.stitching.schemes import SCHEMES
from ssl_diffusion.stitching.settings import SEEDS, Settings, default_settings, default_window_batch
from ssl_diffusion.weights.folder import WEIGHTS, copy_model, part_of
from ssl_diffusion.weights.model import Model, load_model

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string(
    "model", None, "model folder, as train exports it", required=True, flag_values=FLAGS
)
RECORDS = flags.DEFINE_string(
    "records", None, "labelled records, one class a source", required=True, flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "folder of the records to write", required=True, flag_values=FLAGS
)
SPLIT = flags.DEFINE_string(
    "split", "train", "whose slides are varied; never test", flag_values=FLAGS
)
PER_SLIDE = flags.DEFINE_integer(
    "per_slide", 1, "synthetic slides of each", lower_bound=1, flag_values=FLAGS
)
REGION_PX = flags.DEFINE_integer(
    "region_px", 512, "side of a region, whole patches", lower_bound=1, flag_values=FLAGS
)
INTERPOLATE = flags.DEFINE_float(
    "interpolate",
    0.0,
    "how far a region's grid goes towards another's of the class",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)
IMAGES = flags.DEFINE_bool("images", False, "write the slides as .tif too", flag_values=FLAGS)
SCHEME = flags.DEFINE_enum(
    "scheme", None, SCHEMES, "where windows lie; the model's by default", flag_values=FLAGS
)
SEED = flags.DEFINE_integer("seed", 0, "of all draws", lower_bound=0, flag_values=FLAGS)
define_flags(FLAGS)


def main() -> None:
    """Checks everything, makes the regions that are not there yet, writes the records."""
    output = Path(OUTPUT.value)
    check_writable(output, overwrite=False)
    if SPLIT.value == "test":
        raise InputError(
            "--split=test: no synthetic slides are made of test slides, since whatever is trained "
            "on them has seen the test; use --split=train"
        )
    records = open_records(RECORDS.value)
    model = load_model(MODEL.value, PRECISIONS[FLAGS.precision])
    check_records(records, model)
    bags = read_bags(records, SPLIT.value)
    side = REGION_PX.value // model.patch_px
    regions = [region for bag in bags for region in regions_of(cells_of(bag, model.patch_px), side)]
    copies = copies_of(regions, PER_SLIDE.value, INTERPOLATE.value > 0, SEED.value)
    if not copies:
        raise InputError(f"no labelled slide in split {SPLIT.value} of {records.folder}")
    if copies[-1].seed >= SEEDS:
        raise InputError(f"--seed={SEED.value} and {len(copies)} regions; give a smaller seed")
    settings = read_settings(model)
    described = describe(records, model, settings, copies)
    work = output.with_name(f"{output.name}.unfinished")
    with only_one(work.with_name(f".{work.name}.lock"), f"another run makes {output}; wait for it"):
        begin(work, described)
        make_regions(model, settings, copies, side, work)
        write_records(output, records, model, copies, work, described)
        write_page(output)
        remove(work)
    work.with_name(f".{work.name}.lock").unlink(missing_ok=True)
    logging.info("%d synthetic slides: %s", len(bags) * PER_SLIDE.value, output)


def check_records(records: Records, model: Model) -> None:
    """Raises InputError unless the model can make patches like the records' of their embeddings."""
    expected = model.spec["embedding"]["tokens"], model.spec["embedding"]["dim"]
    found = records.shape("embedding")
    if found != expected:
        raise InputError(
            f"records with embeddings of shape {list(found)}; the model takes {list(expected)}: "
            "prepare them with the model's encoder"
        )
    theirs = records.metadata["recipe"].get("encoder_sha256")
    own = part_of(MODEL.value, "encoder") / WEIGHTS
    _ = model.encoder  # refused now where it came without
    if theirs and theirs[-1] != sha256(own):  # of model.json, and of the weights
        raise InputError(
            "the records' embeddings are of another encoder than the model's; prepare them with "
            f"--encoder={own.parent}"
        )
    if records.metadata["patch_px"] != model.patch_px:
        raise InputError(
            f"records of {records.metadata['patch_px']} px patches, a model of {model.patch_px} "
            "px; prepare them with the model's patch_px"
        )
    if REGION_PX.value % model.patch_px:
        raise InputError(
            f"--region_px={REGION_PX.value}; expected a multiple of the patch, {model.patch_px} px"
        )


def read_settings(model: Model) -> Settings:
    """The flags, over the model's own settings."""
    settings = default_settings(model)
    sampling = sampling_of(model.spec["sampling"], FLAGS)
    return settings._replace(sampling=sampling, scheme=SCHEME.value or settings.scheme)


def describe(
    records: Records, model: Model, settings: Settings, copies: list[Copy]
) -> dict[str, Any]:
    """What decides the slides, and what each is made of."""
    described = settings._asdict() | {"seed": SEED.value}
    return {
        "model": MODEL.value,
        "model_sha256": model.sha256,
        "model_split_sha256": split_of(model.spec, records, "the model", "slides"),
        "records_sha256": sha256(records.folder / "dataset_info.json"),
        "split": SPLIT.value,
        "per_slide": PER_SLIDE.value,
        "region_px": REGION_PX.value,
        "interpolate": INTERPOLATE.value,
        "precision": FLAGS.precision,
        **dataclasses.asdict(described.pop("sampling")),
        **described,
        "regions": len(copies),
        "parents": parents_of(copies),
        "version": ssl_diffusion.__version__,
    }


def begin(work: Path, described: dict[str, Any]) -> None:
    """Makes the folder of unfinished work; InputError if it holds that of other settings."""
    file = work / "settings.json"
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        write_json(file, described)
    elif read_json(file, "settings of unfinished work") != _plain(described):
        raise InputError(
            f"{work} holds regions of other settings; give those again, or delete the folder"
        )


def make_regions(
    model: Model, settings: Settings, copies: list[Copy], side: int, work: Path
) -> None:
    """Generates every region that is not there yet, or damaged, as NUMBER.png."""
    size = REGION_PX.value
    blank = LargeImage(
        model,
        np.zeros((side, side, *_embedding(model)), np.float32),
        size,
        size,
        settings,
        default_window_batch(),
    )
    for number, copy in enumerate(tqdm(copies, desc="regions", unit="region")):
        file = _file(work, number)
        if _is_whole(file):
            continue
        grid = copy.grid(INTERPOLATE.value, model.spec["embedding"]["tokens"])
        own = settings._replace(seed=copy.seed)
        pixels = dataclasses.replace(blank, grid=grid, settings=own).pixels()
        with replacing(file) as temporary:
            Image.fromarray(pixels).save(temporary)


def write_records(
    output: Path,
    records: Records,
    model: Model,
    copies: list[Copy],
    work: Path,
    described: dict[str, Any],
) -> None:
    """Cuts, embeds and writes the patches of all regions, and the slides; whole or not at all."""
    classes = tuple(records.metadata["classes"])
    counts = [0] * (len(classes) + 1)
    layout = Layout(embedding=_embedding(model), classes=classes)
    px, mpp = model.patch_px, records.metadata["mpp"]
    slides: dict[str, list[int]] = {}
    for number, copy in enumerate(copies):
        slides.setdefault(copy.name, []).append(number)
    with replacing(output) as temporary:
        writer = RecordsWriter(temporary, ["train"], layout)
        for name, numbers in tqdm(slides.items(), desc="records", unit="slide"):
            cells = copies[numbers[0]].region.cells
            rows, cols = cells.index.shape
            slide = np.full((rows * px, cols * px, 3), 255, np.uint8) if IMAGES.value else None
            for number in numbers:
                region = copies[number].region
                patches = cut(read_png(_file(work, number)), px)
                at_row, at_col = np.nonzero(region.present)
                chosen = patches[at_row, at_col]
                embeddings = model.encoder.embed(chosen)
                counts[cells.bag.label] += len(chosen)
                for row, col, patch, embedding in zip(
                    at_row + region.row, at_col + region.col, chosen, embeddings, strict=True
                ):
                    example = {
                        "image": patch,
                        "embedding": embedding,
                        "source": name,
                        "label": cells.bag.label,
                        "x": cells.left + int(col) * px,
                        "y": cells.top + int(row) * px,
                        "mpp": np.nan if mpp is None else mpp,
                    }
                    writer.add("train", example)
                    if slide is not None:
                        slide[row * px : (row + 1) * px, col * px : (col + 1) * px] = patch
            if slide is not None:
                file = temporary / "slides" / (name.replace("/", "_") + ".tif")
                said = described | {"parents": described["parents"][name], "source": name}
                write_image(file, build_levels(slide, None), mpp=mpp, description=said)
        own = {name: records.metadata[name] for name in ("recipe", "patch_px", "mpp", "embedding")}
        metadata = own | {
            "image": {"format": "PNG"},
            "classes": list(classes),
            "label_counts": {"train": counts},
            "layout": "synthetic slides",
            SYNTHETIC: described,
        }
        writer.close(metadata)
        copy_model(part_of(MODEL.value, "encoder"), temporary / "encoder")


def cut(
    image: UInt8[np.ndarray, "h w 3"], patch_px: int
) -> UInt8[np.ndarray, "rows cols {patch_px} {patch_px} 3"]:
    """The patches of an image side by side."""
    rows, cols = image.shape[0] // patch_px, image.shape[1] // patch_px
    parts = image.reshape(rows, patch_px, cols, patch_px, 3)
    return np.ascontiguousarray(parts.swapaxes(1, 2))


def _embedding(model: Model) -> tuple[int, int]:
    return model.spec["embedding"]["tokens"], model.spec["embedding"]["dim"]


def _file(work: Path, number: int) -> Path:
    return work / f"{number:06d}.png"


def _is_whole(file: Path) -> bool:
    """Whether a region is there and can be read."""
    if not file.is_file():
        return False
    try:
        return read_png(file).shape[:2] == (REGION_PX.value, REGION_PX.value)
    except InputError as error:
        logging.warning("%s", error)
        return False


def _plain(described: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON, which has no tuples."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in described.items()
    }


if __name__ == "__main__":
    cli.run(main, FLAGS)
