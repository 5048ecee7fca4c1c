"""A report as blocks, and the blocks as an HTML page and as Markdown.

The page needs nothing else: plots are images in it, and there are no scripts. Everything that comes from a model or
from data is escaped.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Heading:
    """A heading."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; a cell is what is shown."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A plot as SVG."""

    caption: str
    svg: bytes


@dataclass(frozen=True)
class Sample:
    """A text of a model, or of data."""

    title: str
    text: str


Block: TypeAlias = "Heading | Text | Table | Figure | Sample"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #111;
  background: #fff }
h1, h2, h3 { line-height: 1.2; break-after: avoid }
h2 { margin-top: 2em; border-bottom: 1px solid #999 }
p { max-width: 48em }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px }
caption { text-align: left; font-weight: 600; padding: .3em 0; max-width: 60em }
th, td { border: 1px solid #bbb; padding: .2em .5em; text-align: left; vertical-align: top; unicode-bidi: isolate }
th { background: #eee }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
tr, figure { break-inside: avoid }
figure { margin: 1em 0 }
figure img { max-width: 100% }
figcaption, h4 { font-size: 13px; font-weight: 600; margin: .3em 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid #bbb; padding: .3em .8em; margin: 0 0 1em;
  font: 13px/1.5 ui-monospace, monospace; unicode-bidi: isolate }
@page { size: A4 landscape; margin: 12mm }
@media print { body { max-width: none; margin: 0; font-size: 11px } table, pre, figcaption { font-size: 9px }
  .wide { overflow: visible } figure img { max-height: 165mm } thead { display: table-header-group } }
"""
# A number, or an interval.
_NUMBER = re.compile(r"([+-]?\d[\d,.]*( to (?=.))?){1,2}( \(\d+\))?")
_SPECIAL = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")


def html(title: str, blocks: Sequence[Block]) -> str:
    """The page."""
    body = "\n".join(_html(block) for block in blocks)
    # Should anything slip through: the page may load nothing, and run nothing.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escaped(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{_escaped(title)}</h1>
{body}
</body>
</html>
"""


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The same as Markdown, without the plots."""
    return (
        "\n\n".join([f"# {_marked(title)}", *(text for block in blocks if (text := _markdown(block)))]) + "\n"
    )


def clean(text: str) -> str:
    """The text without control characters and halves of characters, which no file may have."""
    kept = "\n\t"
    return "".join(c if c in kept or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text)


def _escaped(text: str) -> str:
    return escape(clean(text))


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_escaped(text)}</h{level}>"
        case Text(text):
            return f"<p>{_escaped(text)}</p>"
        case Figure(caption, svg):
            data = base64.b64encode(svg).decode()
            alt = _escaped(caption)
            image = f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}">'
            return f"<figure>{image}<figcaption>{alt}</figcaption></figure>"
        case Sample(title, text):
            return f"<h4>{_escaped(title)}</h4>\n<pre>{_escaped(text)}</pre>"
        case Table(caption, columns, rows):
            head = "".join(f'<th scope="col">{_escaped(column)}</th>' for column in columns)
            lines = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
            return (
                f'<div class="wide"><table><caption>{_escaped(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
                f"<tbody>\n{lines}\n</tbody></table></div>"
            )


def _cell(text: str) -> str:
    kind = ' class="number"' if _NUMBER.fullmatch(text) else ""
    return f"<td{kind}>{_escaped(text)}</td>"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_marked(text)}"
        case Text(text):
            return _marked(text)
        case Figure():
            return ""
        case Sample(title, text):
            text = clean(text)
            # Longer than every run of the same marks in the text.
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
            return f"**{_marked(title)}**\n\n{fence}text\n{text}\n{fence}"
        case Table(caption, columns, rows):
            head = [list(map(_marked, columns)), ["---"] * len(columns)]
            lines = [f"| {' | '.join(row)} |" for row in [*head, *(list(map(_marked, row)) for row in rows)]]
            return f"**{_marked(caption)}**\n\n" + "\n".join(lines)


def _marked(text: str) -> str:
    """The text on one line, with what Markdown would take for marks escaped."""
    line = _SPECIAL.sub(r"\\\1", " ".join(clean(text).split()))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"^(#+|[+-]|-{2,}|=+)(?=\s|$)", r"\\\1", line)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)
