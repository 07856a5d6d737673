"""The pictures of the report as HTML: large images, patches beside their neighbours, plots."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ssl_diffusion.evaluation.figures import png_bytes
from ssl_diffusion.evaluation.large_numbers import LargeImage
from ssl_diffusion.evaluation.near_copies import FLAGGED
from ssl_diffusion.evaluation.patch_section import Copy, Pair
from ssl_diffusion.webpage import data_url, image, section

SCALE_BARS_UM = (1000, 500, 200, 100, 50, 20, 10)
LARGE_IMAGES = 4  # shown
MANY = 0.02  # of held-out patches flagged as copies: chance flags fewer
CAPTIONS = {
    "similarity": "Similarity of samples to the embedding asked for, and to every other (mean).",
    "components": "Real held-out patches (blue) and samples (pink) in the two leading principal "
    "components of the training patches.",
    "distances": "Distance to the nearest training patch: share of images nearer than it.",
}


def large_images(images: Sequence[LargeImage]) -> str:
    """Real, reconstruction and stitched beside each other, of the first images."""
    if not images:
        return ""
    seen = {True: ", held out from training", False: ", partly seen in training", None: ""}
    rows = []
    for one in images[:LARGE_IMAGES]:
        height, width = one.real.shape[:2]
        size = f"{width} × {height} px"
        if one.mpp:
            size += f", {width * one.mpp:.0f} × {height * one.mpp:.0f} µm"
        rows.append(
            f"<p>{escape(one.origin)}; {size}{seen[one.held_out]}.</p>{_triptych(one, width)}"
        )
    title = "A large image" if len(images) == 1 else "Large images"
    return section(
        title,
        "Look for tissue type, staining and layout, which the embeddings hold; single nuclei are "
        "the model's invention.",
        '<input type="checkbox" id="grid"> <label for="grid">show the grid, one embedding per cell '
        f"of {images[0].cell_px} px</label>\n"
        '<input type="checkbox" id="native"> <label for="native">full size, one image pixel per '
        f"screen pixel</label>\n{''.join(rows)}",
    )


def _triptych(large: LargeImage, width: int) -> str:
    height = large.real.shape[0]
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
    return f'<div class="triptych">{figures}</div>'


def _scale_bar(width_px: int, mpp: float | None) -> str:
    if not mpp:
        return ""
    width_um = width_px * mpp
    length = next((um for um in SCALE_BARS_UM if um <= 0.35 * width_um), SCALE_BARS_UM[-1])
    return (
        f'<div class="scale" style="width: {100 * length / width_um:.3f}%"><i>{length} µm</i></div>'
    )


def pairs(shown_pairs: Sequence[Pair], patch: Mapping[str, Any]) -> str:
    """Cards of a real patch, the sample and the nearest training patch, as far as there are."""

    def card(pair: Pair) -> str:
        parts = [
            (pair.real, "real", f"no. {pair.index}"),
            (pair.sample, "sample", f"<b>{_two(pair.similarity) or f'no. {pair.index}'}</b>"),
            (pair.nearest, "nearest training patch", _two(pair.nearest_similarity)),
        ]
        parts = [part for part in parts if part[0] is not None]
        pictures = "".join(_image(pixels, alt) for pixels, alt, _ in parts)
        words = "".join(f"<span>{text}</span>" for _, _, text in parts)
        return f'<div class="pair" style="--parts: {len(parts)}">{pictures}{words}</div>\n'

    if patch["paired"]:
        intro = (
            "Left to right: a <b>real</b> held-out patch, the <b>sample</b> generated from its "
            "embedding and the <b>training patch nearest</b> to the real one. Below the last two, "
            "their similarity to the embedding asked for."
        )
    else:
        intro = "A <b>sample</b> and the <b>training patch</b> nearest to it, with its similarity."
    intro += (
        f" These {len(shown_pairs)} of {patch['count']:,} are evenly spaced through the set, not "
        "chosen."
    )
    return section(
        "Patches", intro, f'<div class="pairs">{"".join(card(pair) for pair in shown_pairs)}</div>'
    )


def plots(found: Mapping[str, bytes], names: Sequence[str]) -> str:
    """The plots of those names that there are, beside each other."""
    figures = "".join(
        f'<figure><img alt="{escape(CAPTIONS[name.split("_")[0]])}" '
        f'src="{data_url(found[name])}"><figcaption>{CAPTIONS[name.split("_")[0]]}</figcaption>'
        "</figure>"
        for name in names
        if name in found
    )
    return f'<div class="plots">{figures}</div>\n' if figures else ""


def copies(found: Sequence[Copy], copying: Mapping[str, Any]) -> str:
    """The samples that agree best with a training patch, beside it; those flagged are marked."""
    if not found:
        return ""
    cards = "".join(
        f'<div class="pair" style="--parts: 2">{_image(one.sample, "sample")}'
        f"{_image(one.training, 'training patch')}<span>no. {one.index}"
        f"{' <b>flagged</b>' if one.flagged else ''}</span>"
        f"<span>{_two(one.agreement)}</span></div>\n"
        for one in found
    )
    count = len(copying["flagged_samples"])
    known, warning = copying["flagged_held_out"]["value"], ""
    if known > MANY:
        warning = (
            "<b>Held-out patches are copies of training patches too: the records overlap with what "
            "was trained on, or repeat themselves, and flags of samples mean little.</b> "
        )
    return (
        f"<p>Of {copying['sought']:,} samples {count or 'none'} "
        f"{'was' if count < 2 else 'were'} flagged as a copy: their pixels agree with those of a "
        f"training patch better than real held-out patches do by chance (above "
        f"{_two(copying['threshold'])}, set for {FLAGGED:.1%} of these; {known:.1%} of "
        f"{copying['flagged_held_out_of']} others were). {warning}The {len(found)} that agree "
        "best, each beside the "
        f'training patch it agrees with:</p><div class="pairs">{cards}</div>'
    )


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _image(pixels: UInt8[np.ndarray, "h w 3"], alt: str) -> str:
    height, width = pixels.shape[:2]
    return image(png_bytes(pixels), alt, width, height)
