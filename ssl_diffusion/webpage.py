"""What the project's HTML pages share: one self-contained file each, nothing loaded from elsewhere.

Arguments called `text`, and all names and values of tables, are escaped here; those called `html`
are inserted as they are, and whoever makes them escapes what comes from data.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

# No font or file from elsewhere; dark where the reader's system is; print and phones are last.
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #262220; --soft: #6b625e; --line: #e4deda;
  --accent: #7a2048; --wash: #faf7f5; }
@media (prefers-color-scheme: dark) { :root { --paper: #1b1918; --ink: #ece6e2; --soft: #a89f9a;
  --line: #3b3634; --accent: #e58fb4; --wash: #262322; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 "Charter", "Bitstream Charter", "Georgia", "DejaVu Serif", serif; }
main { max-width: 1240px; margin: 0 auto; padding: 48px 32px 96px; }
h1 { font-size: 34px; line-height: 1.15; font-weight: 600; margin: 0 0 8px; }
h2 { font-size: 22px; font-weight: 600; margin: 56px 0 6px; padding-top: 14px;
  border-top: 2px solid var(--ink); }
h1, h2, h3, p, td { overflow-wrap: anywhere; }
p { max-width: 76ch; margin: 6px 0 14px; }
.lead { font-size: 18px; }
.soft, figcaption, th, label, summary { color: var(--soft);
  font: 13px/1.4 "Helvetica Neue", "Arial", "Liberation Sans", sans-serif; }
figure { margin: 0; }
figcaption { margin-bottom: 6px; }
figcaption b { color: var(--ink); font-size: 15px; }
.picture { position: relative; line-height: 0; }
.picture img { width: 100%; height: auto; }
label { margin-right: 22px; cursor: pointer; }
input { accent-color: var(--accent); vertical-align: -2px; }
table { border-collapse: collapse; width: 100%; margin-top: 10px; }
th { text-align: left; font-weight: 400; padding: 6px 18px 6px 0;
  border-bottom: 1px solid var(--ink); }
td { vertical-align: top; padding: 9px 18px 9px 0; border-bottom: 1px solid var(--line); }
.run td { padding: 5px 14px 5px 0; font-variant-numeric: tabular-nums; }
.run td + td { text-align: right; padding-right: 0; }
.columns { display: grid; grid-template-columns: 1fr 1.2fr 1fr; gap: 0 40px; align-items: start; }
li { max-width: 76ch; margin-bottom: 6px; }
pre { background: var(--wash); padding: 14px; overflow-x: auto; font-size: 12px; }
summary { cursor: pointer; margin: 10px 0; }
@media (max-width: 760px) { .columns { grid-template-columns: minmax(0, 1fr); }
  main { padding: 24px 16px; } }
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid; } }
"""


def document(text: str, style: str, html: str) -> str:
    """The page: its title `text`, its own `style` after the shared one, its body `html`."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(text)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body><main>{html}</main></body></html>\n"
    )


def section(title: str, intro: str, html: str = "") -> str:
    """A section under a heading; `title` and `intro` are HTML too."""
    return f"<section><h2>{title}</h2>\n<p>{intro}</p>\n{html}</section>\n"


def facts(title: str, rows: Mapping[str, Any]) -> str:
    """A table of names and values, without the values that are None."""
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(plain(value))}</td></tr>"
        for name, value in rows.items()
        if value is not None
    )
    return f'<table class="run"><tr><th colspan="2">{escape(title)}</th></tr>{cells}</table>'


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A table with a head; it scrolls by itself where the screen is narrower."""

    def row(cell: str, values: Iterable[Any]) -> str:
        cells = (f"<{cell}>{escape(plain(value))}</{cell}>" for value in values)
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(row("td", values) for values in rows)
    return (
        f'<div class="wide"><table><thead>{row("th", head)}</thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def details(text: str, value: Any) -> str:
    """`value` as JSON, shown on a click."""
    shown = json.dumps(_short(value), indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(text)}</summary><pre>{escape(shown)}</pre></details>\n"


def image(
    data: bytes, alt: str, width: int, height: int, *, title: str = "", kind: str = ""
) -> str:
    """An inlined PNG or JPEG of `width` x `height` px.

    `title` appears under the pointer, `kind` is its class in the style sheet.
    """
    more = f' title="{escape(title)}"' if title else ""
    more += f' class="{kind}"' if kind else ""
    return (
        f'<img alt="{escape(alt)}"{more} width="{width}" height="{height}" src="{data_url(data)}">'
    )


def data_url(data: bytes) -> str:
    """A PNG or JPEG as a URL that holds it."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def plain(value: Any) -> str:
    """A value in a table: fractions with one digit, all else as it is."""
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def _short(value: Any) -> Any:
    """Settings without long vectors: a model.json holds the mean embedding."""
    if isinstance(value, Mapping):
        return {name: _short(item) for name, item in value.items()}
    if isinstance(value, list):
        return f"{len(value)} numbers" if len(value) > 16 else [_short(item) for item in value]
    return value
