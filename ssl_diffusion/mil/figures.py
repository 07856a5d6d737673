"""Pictures of the MIL report: scores over the number of slides, and where attention lies."""

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
LEAST_PX = 2  # of a patch in it


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
            spread = np.abs(ends - value[:, None]).T
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
    panels[0, -1].legend(frameon=False, fontsize=8)
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
    patch_px = records.metadata["patch_px"]
    left, top = int(bag.x.min()), int(bag.y.min())
    longest = max(int(bag.x.max()) - left, int(bag.y.max()) - top) + patch_px
    side = max(LEAST_PX, round(patch_px * min(1.0, PICTURE_PX / longest)))
    scale = side / patch_px
    at_x, at_y = _places(bag.x, left, scale), _places(bag.y, top, scale)
    picture = np.full((int(at_y.max()) + side, int(at_x.max()) + side, 3), 255, np.uint8)
    source = records.source(split, ("image",))
    for row, x, y in zip(bag.rows.tolist(), at_x.tolist(), at_y.tolist(), strict=True):
        patch = Image.fromarray(source[row]["image"]).resize((side, side), Image.Resampling.BOX)
        picture[y : y + side, x : x + side] = np.asarray(patch)
    return picture


def rank_map(
    bag: Bag, attention: Float[np.ndarray, " n"], patch_px: int
) -> Float[np.ndarray, "h w"]:
    """The rank of each patch's attention in its slide, 0 to 1, as it lies; NaN where none is."""
    left, top = int(bag.x.min()), int(bag.y.min())
    offsets = np.concatenate([bag.x - left, bag.y - top])
    unit = int(np.gcd.reduce(np.append(offsets, patch_px)))  # pixels of a slide that share a value
    size = patch_px // unit
    rows, cols = (bag.y - top) // unit, (bag.x - left) // unit
    ranks = attention.argsort().argsort() / max(len(attention) - 1, 1)
    found = np.full((int(rows.max()) + size, int(cols.max()) + size), np.nan)
    for row, col, rank in zip(rows.tolist(), cols.tolist(), ranks, strict=True):
        found[row : row + size, col : col + size] = rank
    return found


def _places(values: Int[np.ndarray, " n"], first: int, scale: float) -> Int[np.ndarray, " n"]:
    return np.round((values - first) * scale).astype(int)
