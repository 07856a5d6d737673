"""The report of slide-level augmentation as one self-contained HTML page."""

from collections.abc import Mapping
from html import escape
from typing import Any

from ssl_diffusion.evaluation.style import CSS
from ssl_diffusion.mil.experiment import ARMS, ORDINARY, REAL
from ssl_diffusion.webpage import data_url, details, document, facts, section, table

TITLE = "Synthetic slides for attention MIL"
STYLE = """
img.wide { max-width: 100%; }
.wide { overflow-x: auto; }
.wide td { overflow-wrap: break-word; }
td:first-child { width: auto; }
"""
HEAD = (
    "model",
    "real slides",
    "trained on",
    "training slides",
    "AUC",
    "− real",
    "− real + ordinary",
    "balanced accuracy",
    "− real",
    "− real + ordinary",
    "attention tells planted patches (AUC)",
    "highest attention is on a planted patch (chance)",
)


def html_page(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page; `report` is what report.json holds, `pictures` are PNGs by name."""
    images = {
        name: f'<img class="wide" alt="{name}" src="{data_url(data)}">'
        for name, data in pictures.items()
    }
    train, test = report["slides"]["real"], report["slides"]["test"]
    sections = [
        f'<h1>{TITLE}</h1>\n<p class="lead">Attention MIL was trained on {train} real slides and '
        f"parts of them, with and without synthetic ones, and tested on {test} real slides that "
        "nothing was made of.</p>\n",
        section(
            "Scores",
            f"Means over {report['seeds']} seed{'s' * (report['seeds'] > 1)}, each of which draws "
            "other training slides (below 100 %). "
            "Brackets are 95 % t intervals of both kinds of luck, that of seeds and that of test "
            "slides (bootstrapped). Differences are paired: the same training slides, seeds and "
            "test slides. One that holds 0 shows nothing either way; and of the "
            f"{differences(report)} differences in this table one in twenty is expected to exclude "
            "0 where nothing differs: a single one that does is no finding."
            + (" One seed tells nothing of the luck of seeds." if report["seeds"] == 1 else ""),
            table(HEAD, rows(report)),
        ),
        section("AUC over the number of real slides", "", images["auc.png"]),
        section(
            "Attention",
            "Pictures are of networks trained on real slides alone (the largest fraction, the "
            "first seed), for the slide's own class: the rank of each patch in its slide, bright "
            "the highest. Frames are patches known to make the label; the table's columns of these "
            "are over all slides that have some, and all seeds." + _probe(report["told_instances"]),
            images["attention.png"],
        ),
        section("Remarks", "", f"<ul>{''.join(map(_item, report['remarks']))}</ul>"),
        section(
            "Machine",
            "",
            f'<div class="columns"><div>{facts("Seconds", report["seconds"])}</div>'
            f"<div>{facts('Hardware', report['hardware'])}</div>"
            f"<div>{facts('Versions', report['versions'])}</div></div>",
        ),
        section(
            "Settings",
            "Everything that was set.",
            "".join(details(name, value) for name, value in report["settings"].items()),
        ),
    ]
    return document(TITLE, CSS + STYLE, "".join(sections))


def rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table: a row for each model, fraction and arm."""
    found = []
    for trial in report["trials"]:
        for arm, numbers in trial["arms"].items():
            scores = []
            for measure in ("auc", "balanced_accuracy"):
                minus = numbers[measure]["minus"]
                scores.append(_told(numbers[measure]))
                scores += [
                    _told(minus[other], "+.3f") if other in minus else ""
                    for other in (REAL, ORDINARY)
                ]
            found.append(
                [
                    trial["model"],
                    f"{trial['real_slides']} ({100 * trial['fraction']:g} %)",
                    ARMS[arm],
                    _counts(numbers),
                    *scores,
                    *_attention(numbers["attention"]),
                ]
            )
    return found


def differences(report: Mapping[str, Any]) -> int:
    """How many differences the table has."""
    return sum(
        len(numbers[measure]["minus"])
        for trial in report["trials"]
        for numbers in trial["arms"].values()
        for measure in ("auc", "balanced_accuracy")
    )


def _counts(numbers: Mapping[str, Any]) -> str:
    """Real and added slides, as "6 + 4"; of several seeds the fewest and the most."""
    added = numbers["added"]
    real = [all_ - more for all_, more in zip(numbers["slides"], added, strict=True)]
    parts = [
        f"{min(part)}" + (f"–{max(part)}" if min(part) != max(part) else "")
        for part in (real, added)
    ]
    return " + ".join(part for part in parts if part != "0")


def _probe(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    return (
        " For comparison, a linear probe (logistic regression) that was told every training "
        f"instance tells planted patches with an AUC of {_told(found['area'])}, and its highest "
        f"patch is one in {_told(found['first'], '.2f')} of the slides."
    )


def _attention(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return ["", ""]
    first = f"{_told(found['first'], '.2f')} ({found['share']['value']:.2f})"
    return [_told(found["area"]), first]


def _told(estimate: Mapping[str, Any], form: str = ".3f") -> str:
    if estimate["low"] is None:
        return f"{format(estimate['value'], form)} (too few slides for an interval)"
    low, high = format(estimate["low"], form), format(estimate["high"], form)
    return f"{format(estimate['value'], form)} [{low}, {high}]"


def _item(remark: str) -> str:
    return f"<li>{escape(remark)}</li>"
