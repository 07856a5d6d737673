"""The pictures of the pages: labelled rows and sheets (Pillow), curves and points (matplotlib)."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

matplotlib.use("Agg")  # no display on a server

from matplotlib import pyplot  # noqa: E402

MIDDLE = "#85807c"  # is read on white and on black
INK, PAPER, GAP_PX, TEXT_PX = (38, 34, 32), (255, 255, 255), 12, 15


def labelled_row(
    images: list[UInt8[np.ndarray, "h w 3"]], labels: list[str]
) -> UInt8[np.ndarray, "a b 3"]:
    """Images of one size side by side on white, each with a label above it."""
    return _sheet([images], [labels], gap=GAP_PX)


def labelled_sheet(
    rows: list[list[UInt8[np.ndarray, "h w 3"]]], labels: list[str], columns: int, zoom: int
) -> UInt8[np.ndarray, "a b 3"]:
    """One group of images per label (say real | sample | nearest), `columns` groups to a row.

    Each pixel becomes a square of `zoom` px: what is seen is what was generated.
    """

    def group(row: list[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "a b 3"]:
        large = [image.repeat(zoom, axis=0).repeat(zoom, axis=1) for image in row]
        spaced = [np.pad(image, ((0, 0), (0, 2), (0, 0)), constant_values=255) for image in large]
        return np.concatenate(spaced, axis=1)

    groups = [group(row) for row in rows]
    starts = range(0, len(groups), columns)
    return _sheet(
        [groups[s : s + columns] for s in starts],
        [labels[s : s + columns] for s in starts],
        gap=GAP_PX,
    )


def _sheet(
    table: list[list[UInt8[np.ndarray, "h w 3"]]], labels: list[list[str]], gap: int
) -> UInt8[np.ndarray, "a b 3"]:
    height, width = table[0][0].shape[:2]
    cell_h, cell_w = height + TEXT_PX + 2 * gap, width + gap
    sheet = Image.new("RGB", (len(table[0]) * cell_w + gap, len(table) * cell_h + gap), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX)
    for row, (images, names) in enumerate(zip(table, labels, strict=True)):
        for column, (image, name) in enumerate(zip(images, names, strict=True)):
            left, top = gap + column * cell_w, gap // 2 + row * cell_h
            draw.text((left, top), name, INK, font)
            sheet.paste(Image.fromarray(image), (left, top + TEXT_PX + gap // 2))
    return np.asarray(sheet)


def loss_curve(losses: list[tuple[int, float]]) -> bytes:
    """PNG of the training loss over the step, with a running median over 5 % of the points."""
    steps, values = (np.array(column) for column in zip(*losses, strict=True))
    window = max(len(values) // 20, 1)
    padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)
    figure, axes = pyplot.subplots(figsize=(7.5, 2.8), dpi=144, layout="constrained")
    axes.plot(steps, values, color="#c9a3b4", linewidth=0.8, label="logged")
    axes.plot(steps, smooth, color="#7a2048", linewidth=1.6, label="running median")
    axes.set_ylim(
        0.95 * values.min(), np.quantile(values, 0.98) * 1.05
    )  # the first steps dwarf the rest
    axes.set(xlabel="training step", ylabel="denoising loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return png_of(figure)


def scatter_plot(
    points: Float[np.ndarray, "n 2"],
    groups: Int[np.ndarray, " n"],
    colours: Sequence[str],
    axis_labels: tuple[str, str],
) -> bytes:
    """PNG of points, each in the colour of its group, on no ground: for a light or a dark page.

    The key to the colours is the page's, which has the font for every name and wraps it. Points
    are drawn in a random order: no group lies on top of another.
    """
    order = np.random.default_rng(0).permutation(len(points))
    figure, axes = pyplot.subplots(figsize=(5.6, 4.8), dpi=144, layout="constrained")
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    shown = np.array(colours)[groups[order]]
    axes.scatter(*points[order].T, c=shown, s=11, alpha=0.75, linewidths=0)
    axes.set_xlabel(axis_labels[0], fontsize=12, color=MIDDLE)
    axes.set_ylabel(axis_labels[1], fontsize=12, color=MIDDLE)
    axes.tick_params(labelsize=10, color=MIDDLE, labelcolor=MIDDLE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(MIDDLE)
    return png_of(figure)


def png_of(figure: pyplot.Figure) -> bytes:
    """PNG of a figure, which is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pyplot.close(figure)
    return buffer.getvalue()


def png_bytes(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """uint8 [h, w, 3] -> PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
