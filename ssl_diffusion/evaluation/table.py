"""The tables of the report: a line for each measure, a column for each set of images."""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

NOTHING = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True)
class Measure:
    """What a number is called and what it says, in one sentence; `unit` follows the number."""

    label: str
    meaning: str
    unit: str = ""


# Set of images -> how its column is headed. The first that a section has is what is judged.
COLUMNS = {
    "samples": "Samples",
    "samples_equal": "As many samples as real",
    "stitched": "Stitched",
    "real": "Real, held out",
    "reconstructions": "Autoencoder (ceiling)",
    "reconstruction": "Autoencoder (ceiling)",
    "nearest_train": "Nearest training patch, copied",
    "copies": "Training patches through the autoencoder",
    "shuffled": "Another embedding asked for",
    "noise": "Pixel noise",
}

SETS = {
    "similarity": Measure(
        "Similarity to the embedding asked for",
        "The image is embedded again and compared with the embedding it was made from: 1 is the "
        "same direction, 0 unrelated (cosine, after subtracting the mean training embedding).",
    ),
    "retrieval_at_1": Measure(
        "Finds its own patch (retrieval@1)",
        "How often the patch that was asked for is the most similar of all.",
    ),
    "fd": Measure(
        "{title}",
        "Frechet distance to the reference set; lower is closer. Few images raise it: compare "
        "values of equally many.",
    ),
    "kid": Measure(
        "{kernel}",
        "Squared maximum mean discrepancy with a cubic kernel, unbiased whatever the number of "
        "images; 0 is the same distribution, and by chance below 0.",
    ),
    "precision": Measure(
        "Precision", "Share of images that lie where reference images are: realistic ones."
    ),
    "recall": Measure(
        "Recall", "Share of reference images that lie where images of the set are: the variety."
    ),
    "density": Measure(
        "Density",
        "In how many neighbourhoods of reference images an image lies, over what is expected: "
        "precision that an outlier in the reference does not raise. 1 is as the reference.",
    ),
    "coverage": Measure(
        "Coverage", "Share of reference images with an image of the set in their neighbourhood."
    ),
}
PIXELS = {
    "seam": Measure(
        "Seam",
        "Mean step between pixels across the borders of windows and cells, over the mean step "
        "elsewhere. A seam shows where it exceeds the real region's, which need not be 1: a "
        "slide's own JPEG blocks (8 px) may lie on the same lines.",
    ),
    "seam_in_phase": Measure(
        "Seam, in phase with 8 px",
        "The same, but compared only with the other lines at multiples of 8 px, so that JPEG "
        "blocks and the decoder's own pattern cancel: 1 is no seam.",
    ),
    "sharpness": Measure(
        "Sharpness",
        "Mean step between neighbouring pixels over that of the real region: below 1 is blurred, "
        "above 1 is noisy.",
    ),
}
COPYING = {
    "distance": Measure(
        "Distance to the nearest training patch",
        "A model that copies makes patches nearer to the training set than new real patches are, "
        "close to the value of a copy (1 \N{MINUS SIGN} cosine).",
    ),
    "ratio": Measure(
        "The same, over that of real held-out patches",
        "1 where samples are as far from the training set as new real patches, 0 for a copier.",
    ),
    "closer": Measure(
        "Suspiciously near to a training patch",
        "Share nearer to a training patch than all but the nearest 5 % of real held-out patches.",
    ),
    "flagged": Measure(
        "Flagged as copies",
        "Share whose pixels are those of a training patch, also flipped, turned or shifted. The "
        "threshold was set on one half of the real held-out patches; their column is the other.",
    ),
}
ENCODER = {
    "retrieval_at_1": Measure(
        "Recognises an altered patch (retrieval@1)",
        "Held-out patches, strongly cropped, turned, recoloured and blurred, look for themselves "
        "among the unaltered ones: tells whether the embedding holds tissue rather than stain.",
    )
}
AUTOENCODER = {
    "psnr": Measure(
        "Reconstruction of held-out patches",
        "Peak signal-to-noise ratio; what the autoencoder loses no sampler can bring back.",
        unit="dB",
    )
}
TRAIN = {
    "loss": Measure(
        "Denoising loss, held-out patches",
        "How well the network removes noise; lower is better. The right embedding has to help.",
    )
}


def matrix(
    measures: Mapping[str, Measure],
    sets: Mapping[str, Mapping[str, Any]],
    columns: Mapping[str, str] = COLUMNS,
    **names: str,
) -> str:
    """A table: a line for each measure that a set has, sets in the order of `columns`.

    `sets` are {set: {measure: number or {"value", "low", "high"}}}; `names` fill in labels. The
    first set is emphasised.
    """
    shown_sets = [name for name in columns if name in sets]
    head = "".join(f"<th>{escape(columns[name])}</th>" for name in shown_sets)
    lines = []
    for key, measure in measures.items():
        if not any(sets[name].get(key) is not None for name in shown_sets):
            continue
        cells = "".join(
            f'<td class="{"value" if column == 0 else "control"}">'
            f"{cell(sets[name].get(key), measure.unit)}</td>"
            for column, name in enumerate(shown_sets)
        )
        label = escape(measure.label.format(**names))
        lines.append(
            f"<tr><td>{label}<br><span class=soft>{escape(measure.meaning)}</span></td>{cells}</tr>"
        )
    return (
        f'<div class="wide"><table class="matrix"><thead><tr><th>Measure</th>{head}</tr></thead>\n'
        "<tbody>" + "\n".join(lines) + "</tbody></table></div>\n"
    )


def cell(estimate: Mapping[str, Any] | float | None, unit: str = "") -> str:
    """A number and, on a line below it, its interval."""
    if estimate is None:
        return NOTHING
    text = shown(estimate, unit)
    if isinstance(estimate, Mapping) and estimate.get("low") is not None:
        low, high = (shown(estimate[end]) for end in ("low", "high"))
        text += f"<br><span class=soft>{low} to {high}</span>"
    return text


def shown(estimate: Mapping[str, Any] | float | None, unit: str = "") -> str:
    """A number as printed, with three digits that count; a dash for none."""
    value = estimate["value"] if isinstance(estimate, Mapping) else estimate
    if value is None:
        return NOTHING
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    text = text.replace("-", "\N{MINUS SIGN}")
    return f"{text} {unit}" if unit else text


def warnings_list(warnings: Sequence[str]) -> str:
    """Warnings as they stand at the top of the numbers they concern."""
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<ul class="warnings">{items}</ul>\n' if items else ""
