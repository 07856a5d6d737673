"""The parts of a data set's page that are pictures: patches, sources, embeddings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ssl_diffusion.data.images import cutting_of
from ssl_diffusion.data.origins import SPLITS
from ssl_diffusion.data.overview import (
    fit,
    jpeg_bytes,
    patch_mask,
    principal_components,
    tint_png,
)
from ssl_diffusion.data.recipe import recipe_of
from ssl_diffusion.data.records import Records
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.figures import scatter_plot
from ssl_diffusion.webpage import image, section

PATCHES = 96  # per split, on its contact sheet
PATCH_PX = 128  # longest side of one there
SOURCES = 48
DRAWN = 5_000  # patches of one source, at most: each is a record to be read
THUMBNAIL_PX = 320
EMBEDDINGS = 3_000
NO_LABEL = "no label"
OPACITY = 0.35  # of the tint over a thumbnail
COLOURS = {"train": "#0072b2", "val": "#00a878", "test": "#ff7a00"}
GROUP_COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#bcbd22", "#17becf", "#3b3fb8"),
)
OTHERS = "#9a9a9a"


def contact_sheets(records: Records, splits: Sequence[str]) -> str:
    """Patches spread over each split, by class where there are labels."""
    sheets = []
    for split in splits:
        examples = _spread(records, split, PATCHES, "image", "source", "x", "y")
        groups: dict[str, list[str]] = {}
        for pixels, source, x, y, label in zip(*examples.values(), strict=True):
            data, width, height = jpeg_bytes(pixels, PATCH_PX)
            place = f"{source}, x={x} y={y}"
            picture = image(data, f"patch of {place}", width, height, title=place)
            groups.setdefault(label, []).append(picture)
        figures = "".join(
            f"<figure>{_caption(records, label)}<div>{''.join(groups[label])}</div></figure>\n"
            for label in sorted(groups, key=[*classes(records), NO_LABEL].index)
        )
        count = f"{len(examples['image'])} of {records.count(split):,}"
        sheets.append(
            f'<h3>{split} <span class="soft">{count}</span></h3>\n'
            f'<div class="groups">{figures}</div>\n'
        )
    return section(
        "Patches",
        "Evenly spread over each split in the order of its records, not chosen. The pointer over "
        "one tells where it comes from.",
        "".join(sheets),
    )


def source_cards(
    records: Records, splits: Sequence[str], sources: Sequence[Mapping[str, Any]]
) -> str:
    """Thumbnails of sources, spread over all, with the patches that were kept tinted.

    Raises InputError if `sources`, the lines of sources.jsonl, do not belong to the records.
    """
    counts = {s: np.array([line["patches"].get(s, 0) for line in sources]) for s in splits}
    for split, found in counts.items():
        if found.sum() != records.count(split):
            raise InputError(
                f"sources.jsonl in {records.folder} counts {found.sum()} patches in {split}, but "
                f"the records are {records.count(split)}: it belongs to other records"
            )
    starts = {split: np.cumsum(found) - found for split, found in counts.items()}
    picks = np.linspace(0, len(sources) - 1, min(SOURCES, len(sources))).astype(int).tolist()
    cards = []
    for pick in picks:
        drawn = ""
        if sources[pick].get("width"):
            first = {split: int(starts[split][pick]) for split in splits}
            drawn = _drawn(records, sources[pick], first)
        cards.append(f"<figure>{drawn}{_source_caption(records, sources[pick])}</figure>\n")
    shown = (
        f"{len(picks)} of {len(sources):,}, spread over all"
        if len(picks) < len(sources)
        else (f"All {len(sources)}" if len(sources) > 1 else "The only one")
    )
    keys = "".join(_key(COLOURS[split], split) for split in splits)
    return section(
        "Sources",
        f"{shown}. Where a patch was kept is tinted: the colour tells its split.",
        f'<input type="checkbox" id="tint" checked> <label for="tint">show patches</label>{keys}\n'
        f'<div class="sources">{"".join(cards)}</div>',
    )


def _drawn(records: Records, source: Mapping[str, Any], first: Mapping[str, int]) -> str:
    """The thumbnail, or an empty ground where the file is gone, and the mask over it."""
    try:
        recipe = recipe_of(records.metadata["recipe"])
        pixels = (
            cutting_of(recipe).image(source.get("picture", source["path"])).thumbnail(THUMBNAIL_PX)
        )
        data, width, height = jpeg_bytes(pixels, THUMBNAIL_PX)
        ground = image(data, f"thumbnail of {source['source']}", width, height)
    except InputError:
        width, height = fit(source["width"], source["height"], THUMBNAIL_PX)
        ground = ""
    corners, kinds = _kept(records, source, first)
    scale = (
        source["scale"][0] * width / source["width"],
        source["scale"][1] * height / source["height"],
    )
    mask = patch_mask((width, height), corners, kinds, records.metadata["patch_px"], scale)
    tint = tint_png(mask, [*COLOURS.values()], OPACITY)
    return (
        f'<div class="picture" style="width: {width}px; aspect-ratio: {width} / {height}">'
        f"{ground}{image(tint, 'patches kept', width, height, kind='tint')}</div>"
    )


def _kept(
    records: Records, source: Mapping[str, Any], first: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Corners [n, 2] px and splits [n] of a source's patches; `first` is its first record's index.

    The records of a source lie together, in the order of sources.jsonl.
    """
    corners, kinds = [], []
    total = sum(source["patches"].get(split, 0) for split in first)
    for split, start in first.items():
        count = source["patches"].get(split, 0)
        if not count:
            continue
        data = records.source(split, ("x", "y", "source"))
        most = min(count, -(-DRAWN * count // max(total, DRAWN)))
        for index in np.linspace(start, start + count - 1, most).astype(int).tolist():
            record = data[index]
            if record["source"] != source["source"]:
                raise InputError(
                    f"record {split}[{index}] in {records.folder} is of {record['source']}, by "
                    f"sources.jsonl of {source['source']}: it belongs to other records"
                )
            corners.append((int(record["x"]), int(record["y"])))
            kinds.append(SPLITS.index(split))
    return np.array(corners, int).reshape(-1, 2), np.array(kinds, int)


def _source_caption(records: Records, source: Mapping[str, Any]) -> str:
    counts = [f"{n:,} {split}" for split, n in source["patches"].items() if n]
    total = sum(source["patches"].values())
    facts = [", ".join(counts) or "no patches"]
    if total > DRAWN and source.get("width"):
        facts.append(f"{DRAWN:,} of {total:,} drawn")
    if source.get("label"):
        facts.append(source["label"])
    if source.get("width"):
        size = f"{source['width']:,} × {source['height']:,} px"
        if source.get("mpp"):
            resolution, unit = in_unit(source["mpp"], records)
            size += f" at {resolution:g} {unit} per px"
        facts.append(size)
    lines = "<br>".join(escape(fact) for fact in facts)
    return f"<figcaption><b>{escape(source['source'])}</b><br>{lines}</figcaption>"


def embedding_plots(records: Records, splits: Sequence[str]) -> str:
    """Embeddings along their two principal axes, by label and by source; "" for too few."""
    total = sum(records.count(split) for split in splits)
    parts = []
    for split in splits:
        share = max(1, EMBEDDINGS * records.count(split) // max(total, EMBEDDINGS))
        parts.append(_spread(records, split, share, "embedding", "source"))
    examples = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    vectors = examples["embedding"].mean(axis=1)
    finite = np.isfinite(vectors).all(axis=1)
    lost = len(finite) - int(finite.sum())
    warning = f" <b>{lost} are not shown: they hold NaN or infinity.</b>" if lost else ""
    if finite.sum() < 3 or vectors.shape[1] < 2:
        return section("Embeddings", f"Too few to show.{warning}")
    points, explained = principal_components(vectors[finite])
    axes = tuple(
        f"component {number} ({share:.0%} of the variance)"
        for number, share in enumerate(explained, 1)
    )
    figures = []
    for title, name in (("By label", "label"), ("By source", "source")):
        if name == "label" and not classes(records):
            continue
        groups, colours, keys = _groups(examples[name][finite])
        plot = scatter_plot(points, groups, colours, axes)
        plot = image(plot, f"embeddings, {title.lower()}", 806, 691, kind="plot")
        figures.append(f"<figure><figcaption><b>{title}</b></figcaption>{plot}<br>{keys}</figure>")
    tokens = ", the mean of the tokens of each" if examples["embedding"].shape[1] > 1 else ""
    return section(
        "Embeddings",
        f"{len(points):,} of {total:,}, evenly spread over the splits{tokens}: unit vectors along "
        f"the two directions in which they differ most.{warning}",
        f'<div class="columns">{"".join(figures)}</div>',
    )


def _groups(names: np.ndarray) -> tuple[np.ndarray, list[str], str]:
    """(the group of each name, the colours of the groups, the key): the most frequent apart."""
    counts = Counter(names.tolist())
    frequent = [name for name, _ in counts.most_common() if name != NO_LABEL]
    frequent = frequent[: len(GROUP_COLOURS)]
    colours = [*GROUP_COLOURS[: len(frequent)], OTHERS]
    numbers = {name: number for number, name in enumerate(frequent)}
    groups = np.array([numbers.get(name, len(frequent)) for name in names.tolist()])
    keys = [
        _key(colour, f"{name} ({counts[name]:,})")
        for name, colour in zip(frequent, GROUP_COLOURS, strict=False)
    ]
    if others := int((groups == len(frequent)).sum()):
        kinds = set(counts) - set(frequent)
        name = NO_LABEL if kinds == {NO_LABEL} else f"{len(kinds)} others"
        keys.append(_key(OTHERS, f"{name} ({others:,})"))
    return groups, colours, "".join(keys)


def _key(colour: str, text: str) -> str:
    return f'<span class="key"><i style="background: {colour}"></i>{escape(text)}</span>'


def in_unit(mpp: float, records: Records) -> tuple[float, str]:
    """A resolution as people say it: in metres where the records say so, or 1e4 µm are reached."""
    return (mpp / 1e6, "m") if mpp >= 1e4 else (mpp, records.metadata.get("unit", "µm"))


def classes(records: Records) -> list[str]:
    """Names of the labels; none where the records have no labels."""
    return list(records.metadata["classes"]) if "label" in records.features else []


def _spread(records: Records, split: str, most: int, *fields: str) -> dict[str, np.ndarray]:
    """Examples spread over a split, stacked: these fields, and `label` as a name at the end."""
    names = [*classes(records), NO_LABEL]
    stored = ("label",) if len(names) > 1 else ()
    examples = records.source(split, fields + stored).spread(most)
    labels = examples.pop("label") if stored else np.full(len(examples[fields[0]]), -1)
    return examples | {"label": np.array(names)[labels]}


def _caption(records: Records, label: str) -> str:
    return f"<figcaption><b>{escape(label)}</b></figcaption>" if classes(records) else ""
