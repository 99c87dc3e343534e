"""A report as a list of blocks, and the two forms it is written in: Markdown and one HTML file."""

import base64
import html
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `warning` is for what is missing."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header."""

    header: list[str]
    rows: list[list[str]]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column's cells are all numbers or dashes, by place; never the first, which names."""
        others = (all(map(NUMBER.fullmatch, column)) for column in zip(*self.rows, strict=True))
        return [number and place > 0 for place, number in enumerate(others)] or [False] * len(self.header)


@dataclass(frozen=True)
class Figure:
    """A PNG file and what is to be seen in it."""

    path: Path
    caption: str


NUMBER = re.compile(r"[-+.,%()\[\] \de]*")
Block = Heading | Text | Table | Figure

# The page may load nothing at all: it reads the same without a network, and a name cannot run code.
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --paper: #fff; --card: #f6f8fa;
  --line: #d8dee4; --accent: #0a5fb4; --warn: #9a5b00; --warnpaper: #fff6e0 }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e9ed; --soft: #9aa4af; --paper: #14171b;
  --card: #1c2127; --line: #323a43; --accent: #6cb3ff; --warn: #f0c674; --warnpaper: #2d2614 }} }}
body {{ font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 1360px; margin: 0 auto; padding: 2.5rem 1.5rem 5rem }}
h1 {{ font-size: 2rem; line-height: 1.2; margin: 0 0 .75rem }}
h2 {{ font-size: 1.4rem; margin: 3rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line) }}
h3 {{ font-size: 1.05rem; margin: 2rem 0 .5rem }}
p {{ max-width: 75ch; margin: .5rem 0 1rem }}
.warning {{ color: var(--warn); background: var(--warnpaper); border-left: 4px solid currentColor;
  padding: .5rem .9rem; border-radius: 4px; max-width: none }}
.scroll {{ overflow-x: auto; margin: 1rem 0 1.5rem }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 55%; font-size: .8125rem }}
th, td {{ padding: .4rem .5rem; text-align: left; border-bottom: 1px solid var(--line) }}
th {{ color: var(--soft); font-weight: 600; border-bottom-width: 2px; vertical-align: bottom }}
td {{ white-space: nowrap }}
td:first-child {{ font-weight: 500 }}
.number {{ text-align: right }}
tbody tr:hover {{ background: var(--card) }}
figure {{ margin: 1.25rem 0 2rem; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px }}
img {{ display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff; border-radius: 4px }}
figcaption {{ color: var(--soft); font-size: .9rem; margin-top: .75rem }}
</style></head><body>
"""


def to_html(blocks: list[Block], title: str) -> str:
    """Return one HTML file that needs nothing beside it: images are data URIs, every text is escaped."""
    parts = [HEAD.format(title=html.escape(title))]
    parts += [_html_block(block) for block in blocks]
    return "\n".join([*parts, "</body></html>", ""])


def to_markdown(blocks: list[Block], folder: Path) -> str:
    """Return Markdown whose images are paths relative to `folder`."""
    return "\n\n".join(_markdown_block(block, folder) for block in blocks) + "\n"


def _html_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text, warning):
            kind = ' class="warning"' if warning else ""
            return f"<p{kind}>{html.escape(text)}</p>"
        case Table(header, rows):
            kinds = [' class="number"' if number else "" for number in block.numeric]
            head = _html_cells("th", header, kinds)
            body = "\n".join(f"<tr>{_html_cells('td', row, kinds)}</tr>" for row in rows)
            table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
            return f'<div class="scroll">{table}</div>'
        case Figure(path, caption):
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            text = html.escape(caption)
            image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
            return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _html_cells(tag: str, cells: list[str], kinds: list[str]) -> str:
    return "".join(
        f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)
    )


def _markdown_block(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Text(text, warning):
            return f"> **{_plain(text)}**" if warning else _plain(text)
        case Table(header, rows):
            rule = ["---:" if number else "---" for number in block.numeric]
            lines = [
                [_plain(cell) for cell in header],
                rule,
                *[[_plain(cell) for cell in row] for row in rows],
            ]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Figure(path, caption):
            return f"![{_plain(caption)}]({path.relative_to(folder).as_posix()})\n\n*{_plain(caption)}*"


def _plain(text: str) -> str:
    # Names come from other people's data: no HTML, no broken table, no link.
    escaped = html.escape(" ".join(text.split()), quote=False)
    for mark in "\\`*_[]|":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped
