"""The files below a folder that are pictures, each slide once."""

import re
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from ssl_diffusion.data.imports.patch_files import check_utf8, walk
from ssl_diffusion.data.manifest import Row
from ssl_diffusion.errors import InputError

IMAGE_SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide"),
    *(".qptiff", ".dcm", ".czi", ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".jp2", ".vrt"),
    *(".img", ".ntf"),
)
HAMAMATSU = (".vms", ".vmu")  # indices of slides whose pixels are in .jpg files beside them
# Study and series of a DICOM file, which follow each other: a series that others are referred to by
# stands alone, or before its study. Values have their length in front, with or without their type.
_SERIES = re.compile(
    rb"\x20\x00\x0d\x00(?:UI..|..\0\0)[0-9.]*[\0 ]?\x20\x00\x0e\x00(?:UI..|..\0\0)([0-9.]+)",
    re.DOTALL,
)
_DICOM_HEAD = 2**18  # bytes in which it stands; pixels and colour profiles come later


def find_pictures(data: ConfigDict, root: Path, rows: dict[str, Row]) -> dict[str, str]:
    """{name: path} of the pictures; those of the manifest, if there is one."""
    if root.is_file():
        return {check_utf8(root.name, root.parent): str(data.source)}
    if rows:
        missing = [name for name in rows if not (root / name).is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of the manifest's {len(rows)} files are not in {data.source}: "
                f"{', '.join(missing[:5])}{', ...' * (len(missing) > 5)}"
            )
        return {name: str(root / name) for name in rows}
    found = _slides(sorted(root / name for name in walk(root, IMAGE_SUFFIXES)))
    if not found:
        missing = "" if root.exists() else " (it does not exist)"
        raise InputError(f"no images in {data.source}{missing}. {data.get('instructions', '')}")
    return {path.relative_to(root).as_posix(): str(path) for path in found}


def _slides(files: Sequence[Path]) -> list[Path]:
    """The files, in order, that stand for a picture: of a slide in several files, the first."""
    indexed = {path.parent for path in files if path.suffix.lower() in HAMAMATSU}
    series: set[tuple[Path, bytes]] = set()
    found = []
    for path in files:
        suffix = path.suffix.lower()
        if suffix == ".jpg" and path.parent in indexed:
            continue
        if suffix == ".dcm" and (uid := _series(path)):
            if (path.parent, uid) in series:
                continue
            series.add((path.parent, uid))
        found.append(path)
    return found


def _series(path: Path) -> bytes | None:
    """What the files of a DICOM slide have in common; None if the file does not say it."""
    try:
        with path.open("rb") as stream:
            match = _SERIES.search(stream.read(_DICOM_HEAD))
    except OSError:
        return None  # told when it is opened as a slide
    return match and match[1]
