"""The report as one self-contained HTML page: pictures inlined, nothing loaded from elsewhere."""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ssl_diffusion.evaluation.figures import png_bytes
from ssl_diffusion.evaluation.style import CSS
from ssl_diffusion.evaluation.table import ROWS, TITLES, shown
from ssl_diffusion.webpage import data_url, details, document, facts, image, section

SCALE_BARS_UM = (1000, 500, 200, 100, 50, 20, 10)


@dataclasses.dataclass(frozen=True)
class LargeImage:
    """The pictures of the headline, all of one size; `mpp` is µm per px, if known."""

    real: UInt8[np.ndarray, "h w 3"]
    reconstruction: UInt8[np.ndarray, "h w 3"]
    stitched: UInt8[np.ndarray, "h w 3"]
    cell_px: int
    mpp: float | None
    origin: str  # which region of which image, for the caption
    held_out: bool | None  # whether training saw none of it; None if unknown


@dataclasses.dataclass(frozen=True)
class Pair:
    """A held-out patch, the sample made from its embedding, the training patch nearest to it."""

    index: int
    real: UInt8[np.ndarray, "p p 3"]
    sample: UInt8[np.ndarray, "p p 3"]
    nearest: UInt8[np.ndarray, "p p 3"]
    similarity: float
    nearest_similarity: float


def html_page(
    report: Mapping[str, Any],
    *,
    large: LargeImage | None,
    pairs: Sequence[Pair],
    loss_png: bytes | None,
    settings: Mapping[str, Any],
) -> str:
    """The page. `report` is what report.json holds; sections whose input is absent are left out."""
    sections = [
        _summary(report),
        _large_image(large) if large else "",
        _pairs(pairs, report["patch"]["count"]) if pairs else "",
        _numbers(report),
        _training(report["train"], loss_png) if loss_png else "",
        _run(report),
        _limits(report),
        _settings(settings),
    ]
    return document("Images generated from embeddings", CSS, "".join(sections))


def _summary(report: Mapping[str, Any]) -> str:
    sentences = []
    if large := report.get("large_image"):
        sentences.append(
            f"An image of {large['width_px']} × {large['height_px']} px was stitched from the "
            f"{large['count']} embeddings of a real region in {large['seconds']:.0f} s."
        )
    if patch := report.get("patch"):
        sentences.append(
            f"{patch['count']} single patches were generated from embeddings of held-out patches; "
            f"{patch['retrieval_at_1']:.0%} of them are recognised as the patch that was asked "
            f"for, among {round(1 / patch['chance'])} (a guess: {patch['chance']:.1%})."
        )
    sentences.append(
        "The generator saw embeddings only: a short list of numbers for each patch, and no pixel "
        "of the real image."
    )
    return f'<h1>Images generated from embeddings</h1>\n<p class="lead">{" ".join(sentences)}</p>\n'


def _large_image(large: LargeImage) -> str:
    height, width = large.real.shape[:2]
    size = f"{width} × {height} px"
    if large.mpp:
        size += f", {width * large.mpp:.0f} × {height * large.mpp:.0f} µm"
    pictures = (
        ("Real", "the region whose embeddings were taken", large.real),
        ("Reconstruction", "through the autoencoder: the best possible", large.reconstruction),
        ("Stitched", "generated from the grid of embeddings alone", large.stitched),
    )
    cell = f"{100 * large.cell_px / width:.4f}% {100 * large.cell_px / height:.4f}%"
    figures = "".join(
        f"<figure><figcaption><b>{title}</b><br>{meaning}</figcaption>"
        f'<div class="picture">{_image(pixels, title)}'
        f'<div class="cells" style="background-size: {cell}"></div>'
        f"{_scale_bar(width, large.mpp)}</div></figure>\n"
        for title, meaning, pixels in pictures
    )
    seen = {True: ", held out from training", False: ", partly seen in training", None: ""}
    return section(
        "A large image",
        f"{escape(large.origin)}; {size}{seen[large.held_out]}. Look for tissue type, staining and "
        "layout, which the embeddings hold; single nuclei are the model's invention.",
        '<input type="checkbox" id="grid"> <label for="grid">show the grid, one embedding per cell '
        f"of {large.cell_px} px</label>\n"
        '<input type="checkbox" id="native"> <label for="native">full size, one image pixel per '
        f'screen pixel</label>\n<div class="triptych">{figures}</div>',
    )


def _scale_bar(width_px: int, mpp: float | None) -> str:
    if not mpp:
        return ""
    width_um = width_px * mpp
    length = next((um for um in SCALE_BARS_UM if um <= 0.35 * width_um), SCALE_BARS_UM[-1])
    return (
        f'<div class="scale" style="width: {100 * length / width_um:.3f}%"><i>{length} µm</i></div>'
    )


def _pairs(pairs: Sequence[Pair], count: int) -> str:
    def card(pair: Pair) -> str:
        numbers = {"sample": pair.similarity, "nearest": pair.nearest_similarity}
        return (
            f'<div class="pair">{_image(pair.real, "real")}{_image(pair.sample, "sample")}'
            f"{_image(pair.nearest, 'nearest training patch')}<span>no. {pair.index}</span>"
            f"<span><b>{shown(numbers, 'sample', digits=2)}</b></span>"
            f"<span>{shown(numbers, 'nearest', digits=2)}</span></div>\n"
        )

    return section(
        "Patches",
        "Left to right: a <b>real</b> held-out patch, the <b>sample</b> generated from its "
        "embedding and the <b>nearest training patch</b>. Below the last two, the similarity to "
        f"the embedding asked for. These {len(pairs)} of {count} are evenly spaced through the "
        "held-out set, not chosen.",
        f'<div class="pairs">{"".join(card(pair) for pair in pairs)}</div>',
    )


def _numbers(report: Mapping[str, Any]) -> str:
    lines, current = [], None
    for row in ROWS:
        if not row.present(report):
            continue
        if row.section != current:
            current = row.section
            title = f"{TITLES[current]} {_sizes(current, report[current])}"
            lines.append(f'<tr class="section"><td colspan="4">{title}</td></tr>')
        controls = "".join(
            f"<dt>{escape(label)}</dt><dd>{value}</dd>"
            for label, value in row.control_values(report)
        )
        lines.append(
            f'<tr><td>{escape(row.label)}</td><td class="value">{row.value(report)}</td>'
            f'<td class="controls"><dl>{controls}</dl></td><td>{escape(row.meaning)}</td></tr>'
        )
    return section(
        "Numbers",
        "Each beside what it has to be compared with. ± is one standard error over the images; it "
        "does not hold the luck of a training run.",
        "<table><thead><tr><th>Measure</th><th>Value</th><th>Controls</th><th>What it says</th>"
        "</tr></thead>\n<tbody>" + "\n".join(lines) + "</tbody></table>",
    )


def _sizes(section: str, numbers: Mapping[str, Any]) -> str:
    """How many images a section's numbers rest on."""
    if section == "patch":
        text = (
            f"{numbers['count']} samples; FD of {numbers['fd_n']} images to "
            f"{numbers['fd_train_n']:,} training patches in {numbers['fd_dimension']} dimensions"
        )
    elif section == "large_image":
        text = f"{numbers['count']} cells"
    elif section == "encoder":
        text = f"{numbers['count']} patches, {numbers['draws']} views of each"
    elif section == "autoencoder":
        text = f"{numbers['count']} patches"
    else:
        return ""
    return f'<span class="soft">{text}</span>'


def _training(train: Mapping[str, Any], loss_png: bytes) -> str:
    rate = train["images_per_second"]  # None for a run too short to time
    speed = f" at {rate:.0f} images per second" if rate else ""
    return section(
        "Training",
        f"{train['steps']:,} steps{speed}; final loss {train['final_loss']:.4f}.",
        f'<img class="loss" alt="training loss over the step" src="{data_url(loss_png)}">',
    )


def _run(report: Mapping[str, Any]) -> str:
    return section(
        "Time and machine",
        "Seconds of each stage, and the machine that made this report.",
        f'<div class="columns"><div>{facts("Seconds", report["seconds"])}</div>'
        f"<div>{facts('Hardware', report['hardware'])}</div>"
        f"<div>{facts('Versions', report['versions'])}</div></div>",
    )


def _limits(report: Mapping[str, Any]) -> str:
    points = [
        "The encoder that conditions the generator also judges it. Similarity, retrieval and FD "
        "(project encoder) could be won by images that please the encoder and not the eye: look at "
        "the pictures too.",
        "FD (project encoder) is not the FID: compare it only with other values on this page.",
        "Held-out patches come from regions that no training patch touches, but from the same "
        "slides: nothing here speaks for another slide, laboratory or scanner.",
        "One training run: the standard errors tell how the numbers would move with other patches, "
        "not with another run.",
        "These images are for research into generative models, not for diagnosis.",
    ]
    if "patch" in report:
        points.insert(
            2,
            "Copying the nearest training patch scores high on every measure that uses an "
            "embedding. A high similarity alone is no achievement: read it beside Copying.",
        )
    items = "".join(f"<li>{escape(point)}</li>" for point in points)
    return section("Limits", "What these numbers do not show.", f"<ul>{items}</ul>")


def _settings(settings: Mapping[str, Any]) -> str:
    blocks = "".join(details(name, value) for name, value in settings.items())
    return section("Settings", "Everything that was set, as the commands recorded it.", blocks)


def _image(pixels: UInt8[np.ndarray, "h w 3"], alt: str) -> str:
    height, width = pixels.shape[:2]
    return image(png_bytes(pixels), alt, width, height)
