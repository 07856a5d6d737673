"""Published checkpoints <-> model folders.

python -m ssl_diffusion.convert --input=brca.ckpt --output=DIR [--encoder=DIR --mpp=0.5]
python -m ssl_diffusion.convert --export --input=DIR --output=PATH

Reads LDM checkpoints (the released large-image models, ImageNet LDMs, first stages), diffusers
folders (transformer/, vae/, scheduler/), ViT encoders of timm and transformers, CTransPath, text
encoders of transformers (MiniLM and other BERT sentence encoders), the towers of a CLIP,
EfficientNet-Lite, and the Inception-v3 that FID is measured with; which, is recognised from the
tensors' names. DIR is what `train` (init_from), `sample`, `generate`, `prepare` and `evaluate`
take. --export writes the published layout: a .safetensors file, or a folder where the layout has
config files.
"""

import logging
import math
from pathlib import Path

from absl import flags

from ssl_diffusion import cli
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.exporting import export
from ssl_diffusion.weights.importers.settings import Settings
from ssl_diffusion.weights.importing import IMPORTERS, import_model, write_imported

FLAGS = flags.FlagValues()
INPUT = flags.DEFINE_string(
    "input", None, "published file or folder; with --export a model folder", flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "model folder to write; with --export a file or folder", flag_values=FLAGS
)
LAYOUT = flags.DEFINE_enum(
    "layout",
    "auto",
    ["auto", *IMPORTERS],
    "what --input is; auto: its tensors say",
    flag_values=FLAGS,
)
EXPORT = flags.DEFINE_bool(
    "export", False, "write the published layout of a model folder", flag_values=FLAGS
)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "of the weights written", flag_values=FLAGS
)
ENCODER = flags.DEFINE_string(
    "encoder", "", "model folder of the denoiser's SSL encoder, copied in", flag_values=FLAGS
)
MPP = flags.DEFINE_float(
    "mpp",
    None,
    "µm per pixel that the denoiser was trained at",
    lower_bound=1e-6,
    flag_values=FLAGS,
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "px: a denoiser's patches (256 by default), or what an encoder is run at (its own)",
    lower_bound=1,
    flag_values=FLAGS,
)
MEAN = flags.DEFINE_list(
    "mean",
    None,
    "r,g,b of an encoder's input in [0, 1]; its config's by default",
    flag_values=FLAGS,
)
STD = flags.DEFINE_list(
    "std",
    None,
    "r,g,b of an encoder's input in [0, 1]; its config's by default",
    flag_values=FLAGS,
)


def main() -> None:
    """Reads the flags; converts or exports."""
    if not INPUT.value or not OUTPUT.value:
        raise InputError("needs --input=PATH and --output=PATH")
    source, output = Path(INPUT.value), Path(OUTPUT.value).absolute()
    if EXPORT.value:
        if DTYPE.value != "float32":
            raise InputError("--export writes float32, as published files are; leave --dtype out")
        export(source, output)
        logging.info("wrote %s in the published layout", output)
        return
    if MPP.value is not None and not math.isfinite(MPP.value):
        raise InputError(f"--mpp={MPP.value}; expected a number")
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(f"--output={output} is there already; give a new folder")
    settings = Settings(
        encoder=ENCODER.value,
        mpp=MPP.value,
        image_size=IMAGE_SIZE.value,
        mean=_colour("mean", MEAN.value),
        std=_colour("std", STD.value),
    )
    write_imported(import_model(source, LAYOUT.value, settings), output, settings, DTYPE.value)
    logging.info("wrote the model folder %s", output)


def _colour(flag: str, values: list[str] | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    try:
        numbers = tuple(float(value) for value in values)
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise InputError(f"--{flag}={','.join(values)}; expected three numbers, as 0.5,0.5,0.5")
    return numbers


if __name__ == "__main__":
    cli.run(main, FLAGS)
