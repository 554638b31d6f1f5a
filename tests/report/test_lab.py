"""What JupyterLab saves of a notebook of the project: the notebook as it is kept."""

import subprocess
import sys

import nbformat
import pytest
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from nbformat import v4

from nsa_lib.report.lab import strip_outputs
from nsa_lib.runs.environment import PROJECT, notebook_path
from nsa_lib.workbook.questions import QUESTIONS


def model(notebook):
    return {"type": "notebook", "format": "json", "content": notebook}


def executed(notebook):
    notebook.metadata.language_info = {"name": "python", "version": "3.99"}
    for cell in notebook.cells:
        cell.metadata.trusted = True
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = 3, [v4.new_output("stream", text="GO")]
            cell.metadata.execution = {"iopub.status.busy": "then"}
    return notebook


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_notebook_that_was_run_is_saved_as_it_is_kept(name):
    kept = notebook_path(name).read_text()
    saved = model(executed(nbformat.reads(kept, as_version=4)))
    strip_outputs(saved, path=f"notebooks/{name}.ipynb", contents_manager=None)
    assert nbformat.writes(saved["content"]) + "\n" == kept


@pytest.mark.parametrize("path", ["reports/smoke.ipynb", "mine.ipynb"])
def test_a_notebook_elsewhere_keeps_what_it_shows(path):
    saved = model(executed(v4.new_notebook(cells=[v4.new_code_cell("1")])))
    strip_outputs(saved, path=path)
    assert saved["content"].cells[0].outputs
    strip_outputs({"type": "file", "content": "text"}, path="notebooks/a.txt")


def test_make_lab_opens_the_project_with_this_hook():
    said = subprocess.run(["make", "-n", "lab"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert "--ServerApp.root_dir=. " in said
    (hook,) = [word.partition("=")[2] for word in said.split() if word.startswith("--ContentsManager.pre_save_hook=")]
    assert AsyncLargeFileManager(pre_save_hook=hook).pre_save_hook is strip_outputs
    assert sys.modules[strip_outputs.__module__].FOLDER == "notebooks/"
