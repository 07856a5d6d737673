"""Makes pseudo-slides of real patches, half of them with a planted region: a check of MIL.

python -m ssl_diffusion.plant_slides --records=DIR --kind=haematoxylin --output=DIR

Slides are mosaics of the records' patches. In every second one a rectangle holds patches of another
kind: a class of the records, or those dense in haematoxylin ("haematoxylin"). Which patches are
planted stands in the metadata, so that `evaluate_mil` also measures where attention lies. Slides of
train and test are made of the records' train and test patches. The folder has an index.html to look
at them with.
"""

import logging
from pathlib import Path

from absl import flags

from ssl_diffusion import cli
from ssl_diffusion.data.page import write_page
from ssl_diffusion.data.records import open_records
from ssl_diffusion.data.writer import RecordsWriter
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import replacing
from ssl_diffusion.mil import planted
from ssl_diffusion.stitching.output import check_writable
from ssl_diffusion.weights.folder import copy_model

FLAGS = flags.FlagValues()
RECORDS = flags.DEFINE_string(
    "records", None, "records of patches, with embeddings", required=True, flag_values=FLAGS
)
KIND = flags.DEFINE_string(
    "kind", planted.HAEMATOXYLIN, "haematoxylin, or a class of the records", flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "folder of the records to write", required=True, flag_values=FLAGS
)
TRAIN = flags.DEFINE_integer("train", 100, "slides to train on", lower_bound=2, flag_values=FLAGS)
TEST = flags.DEFINE_integer("test", 60, "slides to test on", lower_bound=2, flag_values=FLAGS)
SIDE = flags.DEFINE_integer(
    "side", 8, "patches along a side of a slide, even", lower_bound=2, flag_values=FLAGS
)
SEED = flags.DEFINE_integer("seed", 0, "of all draws", lower_bound=0, flag_values=FLAGS)


def main() -> None:
    """Finds the patches of both kinds, writes the slides."""
    output = Path(OUTPUT.value)
    check_writable(output, overwrite=False)
    if SIDE.value % planted.TILE:
        raise InputError(f"--side={SIDE.value}; expected a multiple of {planted.TILE}")
    records = open_records(RECORDS.value)
    layout = planted.layout(records)
    tiles = planted.find_tiles(records, KIND.value)
    counts = {"train": TRAIN.value, "test": TEST.value}
    with replacing(output) as temporary:
        writer = RecordsWriter(temporary, counts, layout)
        side = SIDE.value // planted.TILE
        regions = planted.write_planted(writer, records, tiles, counts, side, SEED.value)
        settings = {"kind": KIND.value, "seed": SEED.value, "side": SIDE.value}
        found = {
            split: {"common": len(each.common), "planted": len(each.planted)}
            for split, each in tiles.items()
        }
        writer.close(planted.metadata(records, regions, **settings, tiles=found))
        if (encoder := records.folder / "encoder").is_dir():
            copy_model(encoder, temporary / "encoder")
    write_page(output)
    logging.info("%d slides, drawn of these tiles: %s; in %s", sum(counts.values()), found, output)


if __name__ == "__main__":
    cli.run(main, FLAGS)
