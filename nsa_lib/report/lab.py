"""What `make lab` tells JupyterLab: how a notebook of the project is saved, and what it shows when it is loaded.

It is saved as it is kept, without what a run showed. So a run dirties no tracked file, and a page that is loaded again
during a run never shows the verdict of the one before; it shows the run that goes on. What was shown is not lost:
`python -m nsa_lib report newest` makes the page of any run from its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from nbformat.v4 import new_output

from nsa_lib.runs.at_work import runs_at_work
from nsa_lib.runs.panel import PAGE, following, in_corner
from nsa_lib.runs.recorded import read_info
from nsa_lib.subject.config import ConfigError

FOLDER = "notebooks/"

RUN_CELL = "run"
"""The cell, by its id, that runs the cases."""


class ProjectContents(AsyncLargeFileManager):
    """The files of the project; a notebook of which a run goes on is given to JupyterLab with a panel that says so."""

    async def get(self, path: str, *args: object, **kwargs: object) -> dict:
        """Return what is at a path, as every contents manager does."""
        model = await super().get(path, *args, **kwargs)
        if model["type"] == "notebook" and model["content"] and path.lstrip("/").startswith(FOLDER):
            root = Path(self.root_dir).resolve()
            going_on = [folder for folder in runs_at_work() if _notebook_of(folder) == Path(path).stem]
            if going_on:
                newest = max(going_on, key=lambda folder: (folder.is_relative_to(root), folder.name))
                show_running(model["content"], newest, root, base_url=self._base_url)
        return model

    @property
    def _base_url(self) -> str:
        return getattr(self.parent, "base_url", "/")


def _notebook_of(folder: Path) -> str | None:
    try:
        return str(read_info(folder)["notebook"])
    except (OSError, KeyError, ConfigError):  # it is being made, or of another library
        return None


def show_running(notebook: Mapping, folder: Path, root: Path, *, base_url: str) -> None:
    """Let the cell that runs the cases show that a run goes on, in the corner too; the notebook is changed in place."""
    said = f"{folder.name} was running when this page was loaded, so its cells do not show it."
    html, script, page = f"<p>{escape(said)}</p>", "", folder / PAGE
    if page.is_file() and page.is_relative_to(root):
        place, script = following(f"{base_url}files/{quote(str(page.relative_to(root)))}")
        html += place
    for cell in notebook["cells"]:
        if cell.get("id") == RUN_CELL:
            shown = {"text/html": html + in_corner(html, seconds=0) + script, "text/plain": said}
            cell["outputs"] = [new_output("display_data", data=shown)]
            cell["metadata"]["trusted"] = True  # it is ours, and not of the file


def strip_outputs(model: Mapping, path: str, **_: object) -> None:
    """Take outputs, execution counts and times of execution out of a notebook of the project before it is saved.

    Args:
        model: of jupyter_server's contents; it is changed in place.
        path: relative to the folder that JupyterLab was started for.
    """
    if model["type"] != "notebook" or not path.lstrip("/").startswith(FOLDER):
        return
    content = model["content"]
    # The kernel's own description of itself changes with the version of Python.
    content["metadata"]["language_info"] = {"name": "python"}
    for cell in content["cells"]:
        cell["metadata"].pop("execution", None)
        cell["metadata"].pop("trusted", None)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
