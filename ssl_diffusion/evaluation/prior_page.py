"""The report of a prior as one self-contained HTML page."""

import dataclasses
from collections.abc import Mapping
from html import escape
from typing import Any

from ssl_diffusion.evaluation.style import CSS
from ssl_diffusion.webpage import data_url, details, document, facts, section

TITLE = "Grids sampled by a prior"
KINDS = {
    "label": "Labels",
    "text": "Sentences of labels",
    "cell_text": "Sentences of classes of cells",
    "label_map": "Label maps",
}
VIEWS = {
    "cell": "FD of single cells",
    "horizontal_pair": "FD of horizontal neighbours",
    "vertical_pair": "FD of vertical neighbours",
}
CONTROLS = {
    "held_out": "real held-out grids (floor)",
    "shuffled": "real cells shuffled across grids",
    "independent": "Gaussian cells, each by itself",
    "constant": "the mean cell everywhere",
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One row: a number, what it has to be compared with, and a plain sentence."""

    label: str
    value: Mapping[str, Any]
    controls: Mapping[str, Mapping[str, Any] | float]
    meaning: str


def html_page(
    report: Mapping[str, Any], pictures: Mapping[str, bytes], settings: Mapping[str, Any]
) -> str:
    """The page; `report` is what report.json holds, `pictures` has grids.png and coherence.png."""
    grids, curves = (data_url(pictures[name]) for name in ("grids.png", "coherence.png"))
    sections = [
        _summary(report),
        section(
            "Grids",
            "Each square is a cell; its colour are the three leading principal components of real "
            "training embeddings, so that cells that look alike are alike. Grey cells were not "
            "recorded. Real grids are held-out ones. Not chosen: the first of each set.",
            f'<img class="wide" alt="sampled and real grids" src="{grids}">',
        ),
    ]
    for kind, numbers in report["agreement"].items():
        intro = (
            "Judged by a logistic regression that was fitted to real training cells alone. "
            "Balanced accuracy is the mean over the classes that were asked for; chance is that of "
            "a guess among all."
        )
        sections.append(section(KINDS[kind], intro, _table({"": _agreement_lines(numbers)})))
    sections += [
        section(
            "Against real grids",
            "Frechet distances (FD) are of the leading principal components of real training cells "
            "of the condition, as many as there are cells for. Few cells raise them: compare "
            "values of one line only. Brackets are 95 % intervals over whole grids.",
            _table({name: _set_lines(numbers) for name, numbers in report["sets"].items()}),
        ),
        section(
            "Correlation of cells by their distance",
            "Mean cosine of pairs of cells from the mean training cell of the condition; lines are "
            "horizontal pairs, dashes vertical ones.",
            f'<img class="wide" alt="correlation over distance" src="{curves}">',
        ),
        _limits(report),
        section(
            "Time and machine",
            "",
            f'<div class="columns"><div>{facts("Seconds", report["seconds"])}</div>'
            f"<div>{facts('Hardware', report['hardware'])}</div>"
            f"<div>{facts('Versions', report['versions'])}</div></div>",
        ),
        section(
            "Settings",
            "Everything that was set.",
            "".join(details(name, value) for name, value in settings.items()),
        ),
    ]
    return document(TITLE, CSS + "img.wide { max-width: 100%; }\n", "".join(sections))


def _summary(report: Mapping[str, Any]) -> str:
    count = sum(numbers["samples"] for numbers in report["sets"].values())
    sentences = [
        f"{count} grids of {report['rows']} × {report['cols']} cells were sampled and compared "
        "with real ones."
    ]
    for kind, numbers in report["agreement"].items():
        what = "grids" if "grids" in numbers else "cells"
        told = numbers[what]
        sentences.append(
            f"{KINDS[kind]}: {told['balanced']['value']:.0%} of sampled {what} are taken for what "
            f"was asked for (a guess: {told['chance']:.0%})."
        )
    return f'<h1>{TITLE}</h1>\n<p class="lead">{" ".join(sentences)}</p>\n'


def _agreement_lines(numbers: Mapping[str, Any]) -> list[Line]:
    controls: dict[str, Any] = {}
    if "held_out" in numbers:
        controls["real held-out cells (ceiling)"] = numbers["held_out"]["balanced"]
    cells = numbers["cells"]
    controls["conditions shuffled among samples"] = cells["shuffled_balanced"]
    if "unconditional" in numbers:
        controls["unconditional samples"] = numbers["unconditional"]["balanced"]
    if "expected" in numbers:
        controls["real grids with a cell of the class"] = numbers["expected"]
    if "layout_ignored" in numbers:
        controls["each map's cells shuffled"] = numbers["layout_ignored"]["balanced"]
    controls["chance"] = cells["chance"]
    lines = [
        Line(
            "Cells (balanced accuracy)",
            cells["balanced"],
            controls,
            "How often the probe finds in a sampled cell the class that was asked for there.",
        ),
        Line(
            "Cells (accuracy)",
            cells["accuracy"],
            {"conditions shuffled among samples": cells["shuffled"]},
            f"The same with every cell alike: {cells['cells']:,} cells of {cells['grids']} grids.",
        ),
    ]
    for name, label in (("grids", "Whole grids"), ("label", "Label of whole grids")):
        if name in numbers:
            grids = numbers[name]
            controls = {"conditions shuffled among samples": grids["shuffled_balanced"]}
            lines.append(
                Line(
                    f"{label} (balanced accuracy)",
                    grids["balanced"],
                    controls | {"chance": grids["chance"]},
                    "The class with the largest mean probability over the cells of a grid.",
                )
            )
    return lines


def _set_lines(numbers: Mapping[str, Any]) -> list[Line]:
    frechet = numbers["frechet"]
    lines = [
        Line(
            label,
            frechet[view]["samples"],
            {text: frechet[view][name] for name, text in CONTROLS.items() if name in frechet[view]},
            f"Distance to the training grids, lower is closer; {frechet['grids']} grids and "
            f"{frechet['cells']:,} cells of each, with the same holes, in {frechet['components']} "
            f"of {frechet['dimension']} dimensions ({frechet['variance_share']:.0%} of the "
            "variance).",
        )
        for view, label in VIEWS.items()
        if view in frechet
    ]
    gap, ratio = numbers["coherence_gap"], numbers["diversity"]
    lines.append(
        Line(
            "Coherence gap",
            gap["samples"],
            {"real held-out grids": gap["held_out"], "real cells shuffled": gap["shuffled"]},
            "Mean difference of the correlation curve from the training grids', over distances and "
            "both directions: 0 where cells belong together as real ones do.",
        )
    )
    for name, label in (
        ("grid_means", "Diversity of grids' means"),
        ("cells", "Diversity of cells of two grids"),
        ("within", "Diversity of cells in a grid"),
    ):
        lines.append(
            Line(
                label,
                ratio["samples"][name],
                {"real held-out grids": ratio["held_out"][name]},
                "Mean cosine distance of pairs over that of real training grids: 1 is as diverse, "
                "0 always the same.",
            )
        )
    if copying := numbers.get("copying"):
        lines += [
            Line(
                "Distance to the nearest training grid",
                copying["median"],
                {"real held-out grids": copying["median_held_out"], "ratio": copying["ratio"]},
                "Median, cell against cell at the same position. A prior that copies makes grids "
                "nearer to the training set than new real grids are.",
            ),
            Line(
                "Suspiciously near to a training grid",
                copying["nearer"],
                {"real held-out grids, by definition": copying["nearer_held_out"]},
                "Share of samples nearer than all but the nearest 1 % of real held-out grids.",
            ),
        ]
    return lines


def _table(groups: Mapping[str, list[Line]]) -> str:
    lines = []
    for name, rows in groups.items():
        if name:
            lines.append(f'<tr class="section"><td colspan="4">{escape(name)}</td></tr>')
        for row in rows:
            controls = "".join(
                f"<dt>{escape(label)}</dt><dd>{shown(value)}</dd>"
                for label, value in row.controls.items()
            )
            lines.append(
                f'<tr><td>{escape(row.label)}</td><td class="value">{shown(row.value)}</td>'
                f'<td class="controls"><dl>{controls}</dl></td><td>{escape(row.meaning)}</td></tr>'
            )
    return (
        "<table><thead><tr><th>Measure</th><th>Value</th><th>Controls</th><th>What it says</th>"
        "</tr></thead>\n<tbody>" + "\n".join(lines) + "</tbody></table>"
    )


def shown(estimate: Mapping[str, Any] | float) -> str:
    """A number with three digits and its interval where it has one; a dash for none."""
    if not isinstance(estimate, Mapping):
        estimate = {"value": estimate}
    if estimate["value"] is None:
        return "\N{EN DASH}"
    text = f"{estimate['value']:.3g}"
    if estimate.get("low") is not None:
        text += f" [{estimate['low']:.3g}, {estimate['high']:.3g}]"
    return text.replace("-", "\N{MINUS SIGN}")


def _limits(report: Mapping[str, Any]) -> str:
    points = [
        "All is measured in the space of the encoder whose embeddings the prior was trained on. "
        "Whether images made from the grids look right is another question: look at them.",
        "Frechet distances and intervals of few grids are rough. An interval tells how a number "
        "would move with other grids, not with another training run.",
        "Samples without a condition have labels as often as the prior was trained on them, real "
        "grids as often as the records hold them: where a training is balanced, these differ.",
        "Held-out grids may come from the same slides as training ones.",
        "Where the classes of a label map are clusters of the embeddings themselves, the probe has "
        "an easy task, and its ceiling is high.",
        *report["remarks"],
    ]
    items = "".join(f"<li>{escape(point)}</li>" for point in points)
    return section("Limits", "What these numbers do not show.", f"<ul>{items}</ul>")
