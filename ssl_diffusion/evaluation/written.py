"""How every report is written: the numbers, the pictures, and the page last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_diffusion.files import replacing, write_json


def write_files(
    output: Path, report: Mapping[str, Any], pictures: Mapping[str, bytes], page: str
) -> None:
    """report.json, and what `write_page` writes."""
    write_json(output / "report.json", report)
    write_page(output, pictures, page)


def write_page(output: Path, pictures: Mapping[str, bytes], page: str) -> None:
    """The pictures by their names, then report.html: never beside pictures of another run."""
    for name, content in pictures.items():
        with replacing(output / name) as temporary:
            temporary.write_bytes(content)
    with replacing(output / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
