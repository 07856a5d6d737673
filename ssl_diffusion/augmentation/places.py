"""Where patches come from: their slides, and blocks of these where there are few slides."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ssl_diffusion.data.groups import group_of
from ssl_diffusion.data.records import SOURCES, Records
from ssl_diffusion.files import read_json, read_json_lines

BLOCK_PATCHES = 4  # side of a block where the records held out none
FEWEST = 5  # units below which a bootstrap over them says little (and tells too narrow intervals)


@dataclass(frozen=True)
class Places:
    """Of the patches of a split, in its order: `slide` is a patient where names tell it."""

    source: np.ndarray  # str
    x: Int[np.ndarray, " n"]
    y: Int[np.ndarray, " n"]
    slide: np.ndarray  # str
    block_px: int

    @property
    def blocks(self) -> Int[np.ndarray, " n"]:
        """A number for the block of its slide that each patch begins in."""
        corners = zip(self.slide, self.x // self.block_px, self.y // self.block_px, strict=True)
        return _numbered([*corners])

    @property
    def slides(self) -> Int[np.ndarray, " n"]:
        """A number for the slide of each patch."""
        return _numbered(self.slide.tolist())

    def units(self, label: Int[np.ndarray, " n"]) -> tuple[str, Int[np.ndarray, " n"]]:
        """What patches are independent of each other by, as far as they are: name and numbers.

        Slides where there are FEWEST or more, and more than one of each class (without its only
        slide a draw has no such class); else, by the same rule, blocks of slides; else patches.
        """
        for name, numbers in (("slides", self.slides), ("blocks", self.blocks)):
            of_class = [len(np.unique(numbers[label == one])) for one in np.unique(label)]
            if len(np.unique(numbers)) >= FEWEST and min(of_class) > 1:
                return name, numbers
        return "patches", np.arange(len(self.x))


def read_places(records: Records, split: str) -> Places:
    """Of all patches of a split."""
    source = records.source(split, ("source", "x", "y"))
    found = [source[index] for index in range(len(source))]
    names = [example["source"] for example in found]
    told = read_json_lines(records.folder / SOURCES)
    groups = {line["source"]: line.get("group") for line in told}
    file = records.folder / "split.json"
    block_px = read_json(file, "split file")["block_px"] if file.is_file() else None
    return Places(
        source=np.array(names),
        x=np.array([int(example["x"]) for example in found]),
        y=np.array([int(example["y"]) for example in found]),
        slide=np.array([groups.get(name) or group_of(name) for name in names]),
        block_px=block_px or BLOCK_PATCHES * records.metadata["patch_px"],
    )


def _numbered(keys: list) -> Int[np.ndarray, " n"]:
    place = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([place[key] for key in keys])
