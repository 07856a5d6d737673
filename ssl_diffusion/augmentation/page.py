"""The report of a comparison as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ssl_diffusion.augmentation.arms import ARMS
from ssl_diffusion.augmentation.comparison import REFERENCES
from ssl_diffusion.augmentation.scores import METRICS
from ssl_diffusion.evaluation.figures import MIDDLE, labelled_sheet, png_of, pyplot
from ssl_diffusion.webpage import data_url, details, document, facts, section, table

TITLE = "Does synthetic data help?"
STYLE = """
.wide { overflow-x: auto; }
.wide td, .wide th { white-space: nowrap; font-variant-numeric: tabular-nums; }
img.full { max-width: 100%; }
"""
SHORT = {"balanced_accuracy": "balanced accuracy", "auc": "AUC"}
TITLES = {"linear": "Linear probe", "fine-tuned": "Fine-tuned network"}
COLOURS = {
    "real": "#6b7280",
    "synthetic": "#b8860b",
    "real + synthetic": "#a23b72",
    "real + ordinary": "#2e86ab",
}


def html_page(
    report: Mapping[str, Any], pictures: Mapping[str, bytes], settings: Mapping[str, Any]
) -> str:
    """The page; `report` is what report.json holds, `pictures` has scores.png and sheet.png."""
    names = list(dict.fromkeys(row["classifier"] for row in report["rows"]))
    parts = [_summary(report)]
    parts.append(
        section(
            "Scores over the share of labelled patches",
            f"Bars are 95 % intervals, of t distributions: over the {report['seeds_of_each']} "
            "seeds (which patches are labelled, how training went) and the "
            f"{report['bootstrap_units']} test {report['bootstrap_over']}.",
            f'<img class="full" alt="scores over fraction" '
            f'src="{data_url(pictures["scores.png"])}">',
        )
    )
    parts += [
        section(
            TITLES[name],
            escape(report["classifiers"][name]["meaning"])
            + " Differences are paired: both classifiers on the same resamples.",
            "".join(
                _table([row for row in report["rows"] if row["classifier"] == name], metric)
                for metric in METRICS
            ),
        )
        for name in names
    ]
    parts.append(
        section(
            "Variations beside their originals",
            "Real patch first, then its variations. Not chosen: spread over the training patches.",
            f'<img class="full" alt="variations" src="{data_url(pictures["sheet.png"])}">',
        )
    )
    items = "".join(f"<li>{escape(remark)}</li>" for remark in report["remarks"])
    parts.append(section("Limits", "What these numbers do not show.", f"<ul>{items}</ul>"))
    parts.append(
        section(
            "Time and machine",
            "",
            f'<div class="columns"><div>{facts("Seconds", report["seconds"])}</div>'
            f"<div>{facts('Hardware', report['hardware'])}</div>"
            f"<div>{facts('Versions', report['versions'])}</div></div>",
        )
    )
    parts.append(
        section(
            "Settings",
            "Everything that was set.",
            "".join(details(name, value) for name, value in settings.items()),
        )
    )
    return document(TITLE, STYLE, "".join(parts))


def _table(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    head = ("labelled", "trained on", "patches", SHORT[metric], "sd of seeds")
    head += tuple(f"minus {other}" for other in REFERENCES)
    lines = []
    for row in rows:
        spread = row[metric]["seed_sd"]
        line = [f"{row['fraction']:g} ({row['real']:,})", row["arm"], f"{row['patches']:,}"]
        line += [interval(row[metric]), "" if spread is None else f"{spread:.3f}"]
        line += [
            interval(row["minus"][other][metric], sign="+") if other in row["minus"] else ""
            for other in REFERENCES
        ]
        lines.append(line)
    return table(head, lines)


def interval(told: Mapping[str, Any], sign: str = "") -> str:
    """A number and its interval in brackets."""
    shown = f"{told['value']:{sign}.3f}"
    if told["low"] is None:
        return shown
    return f"{shown} [{told['low']:{sign}.3f}, {told['high']:{sign}.3f}]"


def _summary(report: Mapping[str, Any]) -> str:
    """In words: at each fraction, whether synthetic patches beat none, and ordinary ones."""
    sentences = [
        f"{report['variations']:,} synthetic patches, variations of {report['train']['patches']:,} "
        f"labelled ones ({', '.join(report['classes'])}), tested on {report['test']['patches']:,} "
        "real held-out patches. Shares are of the labelled patches, the score balanced accuracy."
    ]
    both = [row for row in report["rows"] if row["arm"] == "real + synthetic"]
    for name in dict.fromkeys(row["classifier"] for row in both):
        for other, words in zip(REFERENCES, ("real patches alone", "ordinary ones"), strict=True):
            found: dict[str, list[str]] = {}
            for row in both:
                if row["classifier"] == name:
                    verdict = _verdict(row["minus"][other]["balanced_accuracy"])
                    found.setdefault(verdict, []).append(f"{100 * row['fraction']:g} %")
            told = ", ".join(f"{verdict} at {', '.join(at)}" for verdict, at in found.items())
            sentences.append(f"{TITLES[name]}, synthetic added, against {words}: {told}.")
    return f'<h1>{TITLE}</h1>\n<p class="lead">{escape(" ".join(sentences))}</p>\n'


def _verdict(told: Mapping[str, Any]) -> str:
    if told["low"] is None:
        return "too few patches to tell"
    if told["low"] > 0:
        return "better"
    if told["high"] < 0:
        return "worse"
    return "no difference beyond the interval"


def score_figure(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: a panel for each classifier and metric, score over fraction, a line for each arm."""
    names = list(dict.fromkeys(row["classifier"] for row in rows))
    figure, panels = pyplot.subplots(
        len(names), len(METRICS), figsize=(11, 4 * len(names)), squeeze=False, layout="constrained"
    )
    for axes_row, name in zip(panels, names, strict=True):
        for axes, metric in zip(axes_row, METRICS, strict=True):
            for shift, arm in enumerate(ARMS):
                own = [row for row in rows if row["classifier"] == name and row["arm"] == arm]
                x = np.array([row["fraction"] for row in own]) * 1.04 ** (shift - 1.5)
                told = [row[metric] for row in own]
                y = np.array([one["value"] for one in told])
                low, high = (
                    np.array([one["value"] if one[end] is None else one[end] for one in told])
                    for end in ("low", "high")
                )
                reach = np.maximum([y - low, high - y], 0)
                axes.errorbar(
                    x, y, reach, fmt="o-", label=arm, color=COLOURS[arm], capsize=2, lw=1.5, ms=4
                )
            axes.set_xscale("log")
            axes.set(xlabel="share of the labelled patches", ylabel=SHORT[metric])
            axes.set_title(TITLES[name], fontsize=11)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color=MIDDLE, alpha=0.25)
    panels[0, 0].legend(frameon=False, fontsize=9)
    return png_of(figure)


def variation_sheet(
    groups: list[list[UInt8[np.ndarray, "h w 3"]]], labels: list[str]
) -> UInt8[np.ndarray, "a b 3"]:
    """Each original with its variations after it, under its label."""
    columns = max(1, 16 // len(groups[0]))
    return labelled_sheet(groups, labels, columns=columns, zoom=max(1, 128 // len(groups[0][0])))
