"""Which scenes show the same ground: their outlines, as polygons in degrees."""

from collections.abc import Iterator, Sequence

import numpy as np

from ssl_diffusion import demo
from ssl_diffusion.data.origins import Origin
from ssl_diffusion.data.rasters import GEO_SUFFIXES, outline

SLIVER = 0.01  # part of the smaller scene that two may share and count as neighbours


def footprints(origins: Sequence[Origin]) -> dict[str, np.ndarray]:
    """{name: `rasters.outline`} of the scenes; only the headers of rasters are read.

    What cannot be opened, and what has no place on the ground, is not in it.
    """
    found = {}
    for origin in origins:
        file = demo.resolve(origin.path)
        if file.suffix.lower() in GEO_SUFFIXES and file.is_file():
            corners = outline(file)
            if corners is not None:
                found[origin.name] = corners
    return found


def near(prints: dict[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """The pairs of names whose boxes of longitude and latitude overlap at all."""
    if not prints:
        return
    names, corners = list(prints), np.stack([*prints.values()])
    centre = (corners.max(1) + corners.min(1)) / 2
    half = np.ptp(corners, axis=1) / 2
    for index, name in enumerate(names[:-1]):
        apart = np.abs(_wrapped(centre[index + 1 :] - centre[index]))
        for other in np.flatnonzero((apart < half[index + 1 :] + half[index]).all(1)):
            yield name, names[index + 1 + other]


def share(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two outlines share more than a SLIVER of the smaller."""
    centre = one.mean(0)
    # Around the first, so that longitudes of 179 and -179 degrees are neighbours.
    moved = other - other.mean(0) + _wrapped(other.mean(0) - centre)
    areas = [abs(_area(corners)) for corners in (one, moved)]
    return abs(_area(_intersection(one - centre, moved))) > SLIVER * min(areas)


def _wrapped(degrees: np.ndarray) -> np.ndarray:
    """Differences [..., (longitude, latitude)] with that of longitude in -180 to 180."""
    return np.stack([(degrees[..., 0] + 180) % 360 - 180, degrees[..., 1]], -1)


def _area(corners: np.ndarray) -> float:
    """Of a polygon [corners, 2]; positive counterclockwise."""
    return float(_cross(corners, np.roll(corners, -1, 0)).sum() / 2)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _intersection(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of two convex polygons: the first, cut at each edge of the second (Sutherland, Hodgman)."""
    if _area(other) < 0:
        other = other[::-1]
    for start, end in zip(other, np.roll(other, -1, 0), strict=True):
        side = _cross(end - start, one - start)  # positive is inside
        kept = []
        for i in range(len(one)):
            if side[i - 1] * side[i] < 0:
                part = side[i - 1] / (side[i - 1] - side[i])
                kept.append(one[i - 1] + part * (one[i] - one[i - 1]))
            if side[i] >= 0:
                kept.append(one[i])
        one = np.reshape(kept, (-1, 2))
    return one
