"""The report of a run from its folder alone: after a reload, a Ctrl-C, a kernel that died, a copy from another machine.

The run's notebook is executed once more, over what the run recorded: the calls that would run cases or write files are
replaced by ones that give what is there. Everything is judged again; nothing is run, and the folder stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from nsa_lib.contract.files import write_text
from nsa_lib.report import NsaHTMLExporter
from nsa_lib.report.kernel import QUIET
from nsa_lib.runs.environment import notebook_path
from nsa_lib.runs.report_file import IN_FOLDER
from nsa_lib.workbook.run import Run, judged_run

REPLACING = "nsa-replay"
"""Tag of the cell that replaces the calls; it is taken out again."""


def write_report(folder: Path) -> Path:
    """Write report.html into a run folder and return its path.

    Raises:
        ConfigError: in one line, if the folder cannot be read, or its notebook gives no verdict.
        OSError: if the page cannot be written.
    """
    page = folder.resolve() / IN_FOLDER
    executed = replayed(judged_run(folder), page)
    html, _ = NsaHTMLExporter().from_notebook_node(executed, {"metadata": {"name": folder.resolve().name}})
    write_text(page, html)
    return page


def replayed(run: Run, page: Path) -> nbformat.NotebookNode:
    """Return the notebook of a run, executed over what the run recorded, for a report at `page`."""
    folder = run.folder.resolve()
    notebook = load_notebook_node(str(notebook_path(str(run.info["notebook"]))))
    given = {row["name"]: row["value"] for row in run.info["parameters"] if row["origin"] == "given"}
    notebook = parameterize_notebook(notebook, given)
    said = f"Made from the run folder `{folder}`: what it recorded, judged again. Nothing was run for this page."
    notebook.cells.insert(1, new_markdown_cell(said))
    setup = next(place for place, cell in enumerate(notebook.cells) if _sets_up(cell))
    calls = f"globals().update(recorded_calls({str(folder)!r}, {str(page)!r}))"
    source = f"from nsa_lib.workbook.replay import recorded_calls\n{calls}"
    notebook.cells.insert(setup + 1, new_code_cell(source, metadata={"tags": [REPLACING]}))
    NotebookClient(notebook, timeout=None, allow_errors=True, extra_arguments=[QUIET]).execute()
    notebook.cells = [cell for cell in notebook.cells if REPLACING not in cell.metadata.get("tags", ())]
    return notebook


def _sets_up(cell: nbformat.NotebookNode) -> bool:
    """Return whether a cell imports from the library: the first such cell comes before every call."""
    return cell.cell_type == "code" and "from nsa_lib" in cell.source


@dataclass(frozen=True)
class RecordedPlan:
    """What a run was asked, with what a notebook takes of a `Plan`."""

    info: Mapping[str, object]
    """run.json."""

    @property
    def parameter_rows(self) -> list[dict[str, object]]:
        """The effective parameters as rows."""
        return self.info["parameters"]

    @property
    def reproduce(self) -> str:
        """The command that repeats the run."""
        return str(self.info["reproduce"])

    def __getitem__(self, name: str) -> object:
        """Return a parameter's effective value."""
        return next(row["value"] for row in self.info["parameters"] if row["name"] == name)


def recorded_calls(folder: str, page: str) -> dict[str, Callable]:
    """Return, by name, what stands in the place of the calls with which a notebook makes a run.

    Args:
        folder: the run folder.
        page: where the report will be, from where its links lead.
    """
    read = judged_run(folder)
    run = replace(read, info={**read.info, "report": page})
    return {
        "plan": lambda notebook, namespace: RecordedPlan(run.info),
        "execute": lambda plan: run.folder,
        "record": lambda folder: run,
        "decide": lambda namespace: run,
        "launch": lambda namespace: RecordedPlan(run.info),
        "collect": lambda launched: run,
        "publish": lambda run: None,
    }
