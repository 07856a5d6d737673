"""Regions that somebody drew on a slide, as QuPath exports them: GeoJSON in pixels of the slide."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.path import Path as Outline

from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json

SUFFIX = ".geojson"


@dataclass(frozen=True)
class Region:
    """A polygon with its holes, of one class; `area` in pixels of the slide."""

    label: str
    outer: Outline
    holes: tuple[Outline, ...]
    area: float

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies inside."""
        inside = self.outer.contains_point((x, y))
        return inside and not any(hole.contains_point((x, y)) for hole in self.holes)


class Annotations:
    """The regions of one slide. Of those that overlap, a point belongs to the smallest."""

    def __init__(self, regions: Sequence[Region]):
        self._regions = sorted(regions, key=lambda region: region.area)

    @property
    def labels(self) -> set[str]:
        """The classes that there are."""
        return {region.label for region in self._regions}

    def label_at(self, x: float, y: float) -> str | None:
        """Class of the region at a point, in pixels of the slide's finest level; None outside."""
        return next((region.label for region in self._regions if region.holds(x, y)), None)


def read_annotations(path: str | Path) -> Annotations:
    """The classified polygons of a GeoJSON file; others (lines, points, unclassified) are let go.

    Raises InputError if the file is not what QuPath writes.
    """
    try:
        content = read_json(path, "annotations")
    except (OSError, RecursionError) as error:
        raise InputError(
            f"annotations {path} cannot be read ({error}); export them from QuPath again"
        ) from None
    features = content if isinstance(content, list) else [content]
    if isinstance(content, dict) and "features" in content:
        features = content["features"]
    try:
        return Annotations([region for feature in features for region in _regions(feature)])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"annotations {path} are no GeoJSON of polygons ({type(error).__name__}: {error}); "
            "export them from QuPath as a FeatureCollection"
        ) from None


def _regions(feature: dict[str, Any]) -> list[Region]:
    classified = feature["properties"].get("classification") or {}
    label, geometry = classified.get("name", ""), feature["geometry"]
    polygons = {"Polygon": lambda c: [c], "MultiPolygon": lambda c: c}.get(geometry["type"])
    if not label or not polygons:
        return []
    return [_region(str(label), rings) for rings in polygons(geometry["coordinates"])]


def _region(label: str, rings: Sequence[Any]) -> Region:
    outer, *holes = (np.asarray(ring, float)[:, :2] for ring in rings)
    x, y = outer.T
    area = abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2
    return Region(label, Outline(outer), tuple(map(Outline, holes)), area)
