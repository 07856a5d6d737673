"""Pictures of the MIL report: scores over the number of slides, and where attention lies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib import pyplot
from PIL import Image

from ssl_diffusion.data.records import Records
from ssl_diffusion.evaluation.figures import MIDDLE, png_of
from ssl_diffusion.mil.bags import Bag
from ssl_diffusion.mil.experiment import ARMS

COLOURS = dict(zip(ARMS, ("#85807c", "#b8326e", "#c99a2e", "#2f6db5"), strict=True))
PICTURE_PX = 512  # longest side of a slide's picture
LEAST_PX = 2  # side of a patch in it


def scores_figure(trials: Sequence[Mapping[str, Any]], measure: str, title: str) -> bytes:
    """PNG of a measure over the real slides, a panel for each model, a line for each arm."""
    models = list(dict.fromkeys(trial["model"] for trial in trials))
    figure, panels = pyplot.subplots(
        1,
        len(models),
        figsize=(1 + 3.4 * len(models), 3.4),
        dpi=144,
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axes, model in zip(panels[0], models, strict=True):
        own = [trial for trial in trials if trial["model"] == model]
        for shift, (arm, name) in enumerate(ARMS.items()):
            points = [
                (trial["real_slides"], trial["arms"][arm][measure])
                for trial in own
                if arm in trial["arms"]
            ]
            if not points:
                continue
            across = np.array([slides for slides, _ in points]) * 1.06 ** (shift - 1.5)
            value = np.array([found["value"] for _, found in points])
            ends = np.array([[found["low"], found["high"]] for _, found in points], float)
            ends = np.where(np.isnan(ends), value[:, None], ends)
            spread = np.maximum((ends - value[:, None]) * [-1, 1], 0).T
            axes.errorbar(
                across, value, spread, label=name, color=COLOURS[arm], marker="o", markersize=4
            )
        ticks = sorted({trial["real_slides"] for trial in own})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_title(model)
        axes.set_xlabel("real training slides")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel(title)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(ARMS),
        frameon=False,
        fontsize=8,
    )
    return png_of(figure)


def attention_figure(
    records: Records,
    split: str,
    bags: Sequence[Bag],
    attention: Mapping[str, Sequence[Float[np.ndarray, " _"]]],
    classes: Sequence[str],
) -> bytes:
    """PNG: a row for each slide, its picture and each model's attention beside it.

    Colours are the rank of a patch in its slide, bright the highest; planted patches are framed.
    """
    figure, panels = pyplot.subplots(
        len(bags),
        1 + len(attention),
        figsize=(3 * (1 + len(attention)), 3.2 * len(bags)),
        dpi=110,
        layout="constrained",
        squeeze=False,
    )
    patch_px = records.metadata["patch_px"]
    for row, bag in enumerate(bags):
        left, top = int(bag.x.min()), int(bag.y.min())
        extent = (left, int(bag.x.max()) + patch_px, int(bag.y.max()) + patch_px, top)
        panels[row, 0].imshow(slide_picture(records, split, bag), extent=extent)
        panels[row, 0].set_ylabel(classes[bag.label], fontsize=11)
        for axes, (model, maps) in zip(panels[row, 1:], attention.items(), strict=True):
            axes.imshow(rank_map(bag, maps[row], patch_px), extent=extent, cmap="magma")
            if row == 0:
                axes.set_title(model)
        for axes in panels[row]:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color(MIDDLE)
            if bag.planted is not None:
                for x, y in zip(bag.x[bag.planted], bag.y[bag.planted], strict=True):
                    frame = pyplot.Rectangle(
                        (x, y), patch_px, patch_px, fill=False, edgecolor="#19b8a6", linewidth=0.8
                    )
                    axes.add_patch(frame)
    panels[0, 0].set_title("slide")
    return png_of(figure)


def slide_picture(records: Records, split: str, bag: Bag) -> UInt8[np.ndarray, "h w 3"]:
    """A slide of its recorded patches, white elsewhere, at most about 512 px large."""
    at_x, at_y, side = _places(bag, records.metadata["patch_px"])
    picture = np.full((int(at_y.max()) + side, int(at_x.max()) + side, 3), 255, np.uint8)
    source = records.source(split, ("image",))
    for row, x, y in zip(bag.rows.tolist(), at_x.tolist(), at_y.tolist(), strict=True):
        patch = Image.fromarray(source[row]["image"]).resize((side, side), Image.Resampling.BOX)
        picture[y : y + side, x : x + side] = np.asarray(patch)
    return picture


def rank_map(
    bag: Bag, attention: Float[np.ndarray, " n"], patch_px: int
) -> Float[np.ndarray, "h w"]:
    """The rank of each patch's attention in its slide, 0 to 1, as it lies; NaN where none is.

    As large as `slide_picture`.
    """
    at_x, at_y, side = _places(bag, patch_px)
    ranks = attention.argsort().argsort() / max(len(attention) - 1, 1)
    found = np.full((int(at_y.max()) + side, int(at_x.max()) + side), np.nan, np.float32)
    for x, y, rank in zip(at_x.tolist(), at_y.tolist(), ranks, strict=True):
        found[y : y + side, x : x + side] = rank
    return found


def _places(bag: Bag, patch_px: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], int]:
    """Corners (x, y) of a slide's patches in a picture of it, and their side there, pixels.

    The picture is at most PICTURE_PX large and a patch's side more, however far patches lie apart.
    """
    left, top = int(bag.x.min()), int(bag.y.min())
    longest = max(int(bag.x.max()) - left, int(bag.y.max()) - top) + patch_px
    scale = min(1.0, PICTURE_PX / longest)
    at_x, at_y = (
        np.floor((values - first) * scale).astype(int)
        for values, first in ((bag.x, left), (bag.y, top))
    )
    return at_x, at_y, max(LEAST_PX, math.ceil(patch_px * scale))  # no gaps between neighbours
