"""Pictures of a prior's report: grids in the colours of their principal components, and curves."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib import pyplot

from ssl_diffusion.evaluation.coherence import Coherence
from ssl_diffusion.evaluation.figures import MIDDLE, labelled_sheet, png_of
from ssl_diffusion.evaluation.grids import Basis, GridSet
from ssl_diffusion.evaluation.prior_measures import Sampled

ABSENT = 225  # grey of a cell that is not present
SHOWN = 6  # grids of a set
SIDE_PX = 96
STYLES = {  # of the curves: name on the page, colour, width
    "train": ("real, training", "#85807c", 1.2),
    "held_out": ("real, held out", "#2f6db5", 1.6),
    "samples": ("sampled", "#b8326e", 2.0),
    "shuffled": ("real, cells shuffled", "#c99a2e", 1.2),
}


def component_colours(grids: GridSet, basis: Basis) -> UInt8[np.ndarray, "n rows cols 3"]:
    """Each cell as a colour: three principal components of real training cells as red, green, blue.

    Two deviations on either side of the mean are the range of a channel; like cells look alike.
    """
    along = basis.project(grids).cells[..., :3] / np.maximum(basis.deviation[:3], 1e-12)
    along = np.pad(along, [(0, 0)] * 3 + [(0, 3 - along.shape[-1])])
    colours = (255 * np.clip(0.5 + along / 4, 0, 1)).round().astype(np.uint8)
    colours[~grids.present] = ABSENT
    return colours


def map_colours(
    classes: Int[np.ndarray, "n rows cols"], colours: Sequence[str]
) -> UInt8[np.ndarray, "n rows cols 3"]:
    """Label maps in the colours they are painted with ("#rrggbb"); -1 is grey."""
    table = [tuple(bytes.fromhex(colour[1:])) for colour in colours]
    return np.array([*table, (ABSENT,) * 3], np.uint8)[classes]


def grids_sheet(
    sets: Sequence[Sampled], basis: Basis, map_palette: Sequence[str]
) -> UInt8[np.ndarray, "a b 3"]:
    """Of each set the first samples beside the first real held-out grids; of label maps they too.

    All have the same colours, so that they can be compared across the sheet.
    """
    rows, cols = sets[0].grids.present.shape[1:]
    groups: list[list[np.ndarray]] = []
    labels: list[str] = []
    for one in sorted(sets, key=lambda one: one.kind == "label_map"):
        parts = {"sampled": component_colours(one.grids[:SHOWN], basis)}
        if one.kind == "label_map":
            parts["asked for"] = map_colours(one.asked[:SHOWN], map_palette)
        parts["real"] = component_colours(one.held_out[:SHOWN], basis)
        for what, pictures in parts.items():
            empty = [np.full((rows, cols, 3), 255, np.uint8)] * (SHOWN - len(pictures))
            groups.append([*pictures, *empty])
            labels.append(f"{one.name}: {what}")
    zoom = max(1, SIDE_PX // max(rows, cols))
    return labelled_sheet(groups, labels, columns=2, zoom=zoom)


def coherence_figure(curves: Mapping[str, Mapping[str, Coherence]]) -> bytes:
    """PNG with a panel for each set: correlation over the distance in cells.

    Lines are of horizontal pairs, dashes of vertical ones; bars are 95 % intervals over grids.
    """
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(3.6 * columns + 0.6, 2.7 * lines + 0.4),
        dpi=144,
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for name, panel in itertools.zip_longest(curves, axes.flat):
        if name is None:
            panel.set_visible(False)
            continue
        for key, (label, colour, width) in STYLES.items():
            curve = curves[name][key]
            for estimates, dash in ((curve.horizontal, "-"), (curve.vertical, "--")):
                values = np.array([one.value for one in estimates])
                low, high = (
                    np.array([getattr(one, end) for one in estimates], float)  # None is NaN
                    for end in ("low", "high")
                )
                spread = np.nan_to_num([values - low, high - values]).clip(0)
                panel.errorbar(
                    curve.distances,
                    values,
                    spread,
                    color=colour,
                    linewidth=width,
                    linestyle=dash,
                    label=label if dash == "-" else None,
                )
        panel.axhline(0, color=MIDDLE, linewidth=0.6)
        panel.set_title(name.replace("$", r"\$"), fontsize=9)
        if curve.distances:  # a grid of one cell has none
            panel.set_xscale("log", base=2)
        panel.set_xticks(curve.distances, [str(distance) for distance in curve.distances])
        panel.set_xlabel("distance in cells", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("correlation of cells", fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=7)
    return png_of(figure)
