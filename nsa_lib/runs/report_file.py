"""Where the HTML report of a run lies: where the engine said that it will put it, or else in the run folder."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from IPython import get_ipython

IN_FOLDER = "report.html"
"""The report that is made from a run folder."""


def report_beside(notebook: str) -> str:
    """Return the path of the report beside an executed notebook; two notebooks never share one."""
    return f"{notebook.removesuffix('.ipynb')}.html"


def told_report() -> str | None:
    """Return where the papermill engine `nsa`, which started this kernel, will write the report; None without it."""
    shell = get_ipython()
    told = shell.config.get("Nsa", {}).get("report") if shell else None
    return None if told is None else str(told)


def report_of(folder: Path, told: object) -> str | None:
    """Return the report of a run that is there: the one that was told, or that of its folder; None without either.

    What stands in a run folder or in the history is not trusted: only an HTML file is a report.
    """
    places = [Path(told)] if isinstance(told, str) and os.path.isabs(told) and told.endswith(".html") else []
    found = (str(path) for path in (*places, folder.resolve() / IN_FOLDER) if path.is_file())
    return next(found, None)


def report_command(folder: Path) -> str:
    """Return the command that makes the report of a run, from any shell; "" if the engine makes it."""
    if told_report():
        return ""
    return shlex.join([sys.executable, "-m", "nsa_lib", "report", str(folder.resolve())])
