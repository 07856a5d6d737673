"""The page to look at a data set with: `index.html` in its folder, one file that needs no network.

It is made from what lies in the folder: the records, their description, `sources.jsonl` (one line
per slide or raster that was cut, in the order of the records) and `failed.jsonl` (those that could
not be). Only the thumbnails are read from the sources themselves, where they are still there.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ssl_diffusion.data.gallery import (
    NO_LABEL,
    contact_sheets,
    embedding_plots,
    in_unit,
    source_cards,
)
from ssl_diffusion.data.origins import SPLITS
from ssl_diffusion.data.records import FAILED, SOURCES, Records, open_records
from ssl_diffusion.files import read_json_lines, replacing
from ssl_diffusion.webpage import details, document, facts, section, table

LISTED = 50  # failed sources
ELSEWHERE = ("patch_px", "mpp", "unit", "recipe", "classes", "label_counts", "duplicates")
LONGEST = 120  # characters of a setting that is shown in the table
STYLE = """
.wide { overflow-x: auto; }
.wide td { padding-top: 5px; padding-bottom: 5px; }
.wide td, .wide th { white-space: nowrap; font-variant-numeric: tabular-nums; }
li { overflow-wrap: anywhere; }
.columns { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.run td:first-child { width: 40%; }
h3 { font-size: 17px; font-weight: 600; margin: 26px 0 6px; }
.key { display: inline-block; margin-right: 16px; color: var(--soft); overflow-wrap: anywhere;
  font: 13px/1.6 "Helvetica Neue", "Arial", "Liberation Sans", sans-serif; }
.key i { display: inline-block; width: 11px; height: 11px; margin-right: 6px; border-radius: 2px; }
.groups { display: flex; flex-wrap: wrap; gap: 14px 22px; }
.groups figure { min-width: 0; max-width: 100%; }
.groups figure div { display: flex; flex-wrap: wrap; gap: 4px; }
.groups img { width: 92px; height: 92px; object-fit: contain; }
.sources { display: grid; gap: 26px 22px; align-items: end; margin-top: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); }
.sources figcaption { margin: 8px 0 0; overflow-wrap: anywhere; }
.sources .picture { max-width: 100%; background: #e4deda; }
.sources .picture img { position: absolute; inset: 0; width: 100%; height: 100%; }
.tint { image-rendering: pixelated; }
#tint:not(:checked) ~ .sources .tint { display: none; }
.plot { width: 100%; max-width: 620px; height: auto; }
@media (max-width: 760px) { .groups img { width: 74px; height: 74px; } }
"""


def write_page(folder: Path) -> Path:
    """Writes `index.html` for the records in `folder`; its path.

    Raises InputError if there are no records, or if `sources.jsonl` does not belong to them.
    """
    records = open_records(folder)
    sources = read_json_lines(folder / SOURCES)
    splits = [split for split in SPLITS if records.count(split)]
    name = folder.resolve().name
    parts = [
        _head(name, records, splits, len(sources)),
        _failed(read_json_lines(folder / FAILED)),
        _duplicates(records.metadata.get("duplicates")),
        contact_sheets(records, splits),
        source_cards(records, splits, sources) if sources else "",
        embedding_plots(records, splits) if "embedding" in records.features else "",
        section(
            "Description",
            "All that the records say of themselves.",
            details("metadata", records.metadata),
        ),
    ]
    path = folder / "index.html"
    html = document(f"Records: {name}", STYLE, "".join(parts))
    with replacing(path) as temporary:
        # A file name need not be text; it is no reason to have no page.
        temporary.write_text(html, encoding="utf-8", errors="replace")
    return path


def _head(name: str, records: Records, splits: Sequence[str], sources: int) -> str:
    total = sum(records.count(split) for split in splits)
    about = records.metadata
    size, told = f"{about['patch_px']} px", "not known"
    if about.get("mpp"):
        resolution, unit = in_unit(about["mpp"], records)
        size += f" ({about['patch_px'] * resolution:g} {unit})"
        told = f"{resolution:g} {unit} per px"
    known = {
        "patch": size,
        "resolution": told,
        "encoder": about["recipe"].get("encoder") or "none",
        "autoencoder": about["recipe"].get("autoencoder") or "none",
    }
    # What else they were made by, whatever it is called. Hashes and what is long or shown elsewhere
    # are in the description at the end.
    elsewhere = {*known, *ELSEWHERE}
    rest = {
        key.replace("_", " "): _words(value)
        for key, value in (about["recipe"] | about).items()
        if key not in elsewhere and not key.endswith("sha256") and value not in (None, "", [], {})
        if len(_words(value)) <= LONGEST
    }
    origin = f" from {sources:,} {'source' if sources == 1 else 'sources'}" if sources else ""
    tables = f"<div>{facts('Patches', known)}</div><div>{facts('Settings', rest)}</div>"
    return (
        f"<h1>{escape(name)}</h1>\n"
        f'<p class="lead">{total:,} records: patches of {escape(size)}{origin}.</p>\n'
        f'{_counts(records, splits)}<div class="columns">{tables}</div>\n'
    )


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list) else str(value)


def _counts(records: Records, splits: Sequence[str]) -> str:
    """The table of how many records there are, by label and split where there are labels."""
    rows = []
    if "label" in records.features:
        names = [*records.metadata["classes"], NO_LABEL]
        counts = np.array([_label_counts(records, split) for split in splits])
        rows = [
            (name, *(f"{n:,}" for n in column), f"{column.sum():,}")
            for name, column in zip(names, counts.T, strict=True)
            if column.any()
        ]
    totals = [records.count(split) for split in splits]
    rows.append(("all", *(f"{n:,}" for n in totals), f"{sum(totals):,}"))
    return table(("label" if len(rows) > 1 else "", *splits, "all"), rows)


def _label_counts(records: Records, split: str) -> list[int]:
    """Records of a split by class, and last those without a label."""
    if counted := records.metadata.get("label_counts"):
        return counted[split]
    counts = np.zeros(len(records.metadata["classes"]) + 1, int)
    for labels in records.source(split, ("label",)).chunks("label"):
        np.add.at(counts, labels, 1)  # -1, which is none, is the last
    return counts.tolist()


def _failed(lines: Sequence[Mapping[str, Any]]) -> str:
    if not lines:
        return ""
    more = f" The first {LISTED} are listed." if len(lines) > LISTED else ""
    items = "".join(
        f"<li><b>{escape(line['source'])}</b>: {escape(line['reason'])} "
        f'<span class="soft">{escape(line["path"])}</span></li>\n'
        for line in lines[:LISTED]
    )
    return section(
        "Failed sources",
        f"{len(lines):,} could not be used; nothing of them is in the records.{more}",
        f"<ul>{items}</ul>",
    )


def _duplicates(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    intro = (
        f"{found['records']:,} records hold the very pixels of another one; "
        f"<b>{found['across_splits']:,} of them of one in another split</b>."
    )
    rows = found.get("examples") or []
    return section("Duplicates", intro, table(("Source", "x", "y", "Split"), rows) if rows else "")
