"""What `make lab` tells JupyterLab: a notebook of the project is saved as it is kept, without what a run showed.

So a run dirties no tracked file, and a page that is loaded again during a run never shows the verdict of the one
before. What was shown is not lost: `python -m nsa_lib report newest` makes the page of any run from its folder.
"""

from __future__ import annotations

from collections.abc import Mapping

FOLDER = "notebooks/"


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
