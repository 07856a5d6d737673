"""The files of a report: numbers, pictures, and the page last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ssl_diffusion.evaluation.figures import labelled_row, labelled_sheet, loss_curve, png_bytes
from ssl_diffusion.evaluation.patch_section import Pair
from ssl_diffusion.evaluation.report import Pictures, html_page
from ssl_diffusion.evaluation.written import write_files


def write_report(
    output: Path, report: Mapping[str, Any], pictures: Pictures, settings: Mapping[str, Any]
) -> None:
    """All files of the report of images."""
    files = {}
    if pictures.losses:
        files["loss.png"] = loss_curve(pictures.losses)
    if pictures.large:
        first = pictures.large[0]
        row = [first.real, first.reconstruction, first.stitched]
        files["large_image.png"] = png_bytes(
            labelled_row(row, ["real", "reconstruction", "stitched"])
        )
    if pictures.patches:
        files["patches.png"] = png_bytes(_sheet(pictures.patches.pairs))
        files |= {f"{name}.png": plot for name, plot in pictures.patches.plots.items()}
    page = html_page(report, pictures, loss_png=files.get("loss.png"), settings=settings)
    write_files(output, report, files, page)


def _sheet(pairs: list[Pair]) -> UInt8[np.ndarray, "a b 3"]:
    rows = [
        [image for image in (pair.real, pair.sample, pair.nearest) if image is not None]
        for pair in pairs
    ]
    labels = []
    for pair in pairs:
        value = f" {pair.similarity:.2f}" if pair.similarity is not None else ""
        names = ["real"] * (pair.real is not None) + [f"sample{value}"]
        labels.append(" | ".join(names + ["nearest"] * (pair.nearest is not None)))
    return labelled_sheet(rows, labels, columns=4, zoom=2)
