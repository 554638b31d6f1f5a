"""A table as a reader gets it: HTML for a page, on paper too, and text for a terminal of 80 columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from textwrap import wrap

from nsa_lib.contract.lines import WIDTH, folded
from nsa_lib.report.session import session_mark

OUTCOME = "outcome"
"""Heading over outcomes."""

PROSE_FROM = 40
"""Letters from which on a text is given room for several words a line."""

NARROW = "display:inline-block;max-width:9em"
"""Style of a figure in words as long as prose: it must not take the room of the text beside it."""


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and how it stands out."""

    text: str
    numeric: bool = False
    """Set flush right, on one line."""
    breaks: bool = False
    """May break over lines even if numeric: a figure in words can be long."""
    colour: str = ""
    """JupyterLab's name of a colour, `error`, `warn` or `success`; also sets bold type."""
    link: str = ""
    """Address that the text leads to."""
    folded: str = ""
    """Lines of output, shown as they are when a reader opens them."""
    folded_as: str = "stderr"


@dataclass(frozen=True)
class Table:
    """A captioned table that shows itself in a notebook and at a prompt."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    anchors: Sequence[str] = ()
    """Names by which other parts of a page lead to a row, one a row."""
    folded: Sequence[Sequence[Cell]] = ()
    """Rows that a reader opens, and that paper does not show."""
    folded_because: str = "more"
    """What the folded rows have in common; their number stands before it."""
    sorts: bool = False
    """A reader of the report may sort and filter it."""

    def _repr_html_(self) -> str:
        html = self._html(self.caption, self.rows, self.anchors) if self.rows or not self.folded else ""
        if self.folded:
            said = f"{self.caption}: {len(self.folded):,} {self.folded_because}"
            html += f"<details><summary>{escape(said)}</summary>{self._html('', self.folded)}</details>"
        return html

    def _html(self, caption_text: str, rows: Sequence[Sequence[Cell]], anchors: Sequence[str] = ()) -> str:
        if not rows:
            return f'<p class="nsa-note">{escape(caption_text)}</p>'
        numeric = [cell.numeric for cell in rows[0]]
        head = "".join(
            # An empty heading is no heading.
            f'<{"th scope=col" if name else "td"} style="text-align:{"right" if right else "left"}'
            f'{";min-width:7.6em" if name == OUTCOME else ""}">{escape(name)}'
            f"</{'th' if name else 'td'}>"
            for name, right in zip(self.header, numeric, strict=True)
        )
        anchors = [f' id="{escape(name)}" tabindex="-1"' for name in anchors] or [""] * len(rows)
        body = "".join(
            f"<tr{anchor}>{''.join(map(_cell_html, row))}</tr>" for anchor, row in zip(anchors, rows, strict=True)
        )
        caption = f'<caption style="text-align:left">{escape(caption_text)}</caption>' if caption_text else ""
        kind = "nsa-table nsa-sorts" if self.sorts else "nsa-table"
        return f'<table class="{kind}">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict]:
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}, session_mark()

    def __repr__(self) -> str:
        rows = [[cell.text for cell in row] for row in (*self.rows, *self.folded)]
        if not rows:
            return folded(self.caption)
        lines = [list(self.header), *rows]
        widths = _fitted([*zip(*lines, strict=True)])
        return "\n".join([folded(self.caption), *(text for line in lines for text in _wrapped(line, widths))])


LEAST_WIDTHS = (20, 12, 1)
"""Widths to which the columns of a table are narrowed, one after the other until all fit; up to that no word is broken.
Longer ones are settings and paths."""

SHORT = 12
"""Letters up to which a text counts as one word: "▲ differs" in two lines would make two of every row."""


def _fitted(columns: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths of columns, the widest made narrower until all fit a terminal, two spaces between them."""
    fitted = [max(map(len, column)) for column in columns]
    words = [max((len(word) for text in column for word in _words(text)), default=1) for column in columns]
    for least in LEAST_WIDTHS:
        while sum(fitted) + 2 * (len(fitted) - 1) > WIDTH:
            wide = [place for place, width in enumerate(fitted) if width > min(words[place], least)]
            if not wide:
                break
            fitted[max(wide, key=fitted.__getitem__)] -= 1
    return fitted


def _words(text: str) -> list[str]:
    return [text] if len(text) <= SHORT else text.split()


def _wrapped(texts: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a row whose texts are wrapped to the widths of their columns."""
    cells = [wrap(text, width) if len(text) > width else [text] for text, width in zip(texts, widths, strict=True)]
    for parts in zip_longest(*cells, fillvalue=""):
        padded = (part.ljust(width) for part, width in zip(parts, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _cell_html(cell: Cell) -> str:
    style = f"text-align:{'right' if cell.numeric else 'left'}"
    if cell.colour or (cell.numeric and not cell.breaks):
        style += ";white-space:nowrap"
    if cell.colour:
        style += f";font-weight:600;color:var(--jp-{cell.colour}-color0)"
    # A setting such as a:True,b:2 may break at its signs, a number may not.
    long = len(cell.text) > PROSE_FROM
    kind = ' class="nsa-prose"' if long and not cell.numeric else ""
    narrow = long and cell.numeric and cell.breaks
    text = re.sub(rf"[,:{'_' * narrow}](?=[^\W\d])", r"\g<0><wbr>", escape(cell.text))
    if narrow:
        text = f'<span style="{NARROW}">{text}</span>'
    if cell.link:
        text = f'<a href="{escape(cell.link)}">{text}</a>'
    if cell.folded:
        text += f"<details><summary>{escape(cell.folded_as)}</summary><pre>{escape(cell.folded)}</pre></details>"
    return f'<td{kind} style="{style}">{text}</td>'
