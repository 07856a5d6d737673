"""What ships with the package: a real slide, its split, and small models made of it.

Anywhere a path is expected, `demo:NAME` means the file or folder NAME of this package, so that
configs and records never hold a path of one machine.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
PREFIX = "demo:"
SLIDE = PREFIX + "cmu_small_region.svs"
SPLIT = PREFIX + "split.json"
ENCODER = PREFIX + "encoder"
AUTOENCODER = PREFIX + "autoencoder"
PRIOR = PREFIX + "prior"
MODEL = PREFIX + "model"
JUDGE = PREFIX + "judge"


def resolve(path: str | Path) -> Path:
    """The file-system path of `path`, which may start with `demo:`."""
    text = str(path)
    if text.startswith(PREFIX):
        return FOLDER / Path(text[len(PREFIX) :]).name
    return Path(text)
