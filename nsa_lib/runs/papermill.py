"""papermill's command line, built in one place."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def command(notebook: Path | str, output: Path | str, *options: str) -> list[str]:
    """Return the command that executes a notebook."""
    return [sys.executable, "-m", "papermill", str(notebook), str(output), *options]


def parameters(given: Mapping[str, object]) -> list[str]:
    """Return parameters as options. Texts and lists go as they are (-r): -p reads a tag such as 007 as a number."""
    options = []
    for name, value in given.items():
        is_typed = isinstance(value, bool | int | float)
        text = str(list(value)) if isinstance(value, tuple) else str(value)
        options += ["-p" if is_typed else "-r", name, text]
    return options
