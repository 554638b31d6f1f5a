"""Lines for a terminal: folded at words where they are wider than it; a path or a command stays whole."""

from __future__ import annotations

import sys
from shutil import get_terminal_size
from textwrap import wrap
from typing import TextIO

WIDTH = 80
"""Columns of a terminal of which nothing is known, as a kernel knows nothing of the one it is shown in."""


def folded(text: str, width: int = WIDTH) -> str:
    """Return a text with its lines folded at words; what goes on is indented, and a longer word is left as it is."""
    return "\n".join(part for line in text.splitlines() for part in _parts(line, width))


def _parts(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def say(*texts: str, to: TextIO | None = None) -> None:
    """Print texts, each from a line of its own: folded on a terminal, and as they are where a program reads them."""
    stream = to or sys.stdout
    for text in texts:
        print(folded(text, get_terminal_size().columns) if stream.isatty() else text, file=stream, flush=True)
