"""What JupyterLab saves of a notebook of the project: the notebook as it is kept."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from nbformat import v4

from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.report import lab
from nsa_lib.report.lab import ProjectContents, strip_outputs
from nsa_lib.runs.environment import PROJECT, notebook_path
from nsa_lib.runs.panel import PAGE
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


@pytest.fixture
def contents(tmp_path, monkeypatch):
    """The files of a project in which a smoke runs, as JupyterLab is given them."""
    (tmp_path / "notebooks").mkdir()
    for name in ("smoke", "preflight"):
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(notebook_path(name).read_text())
    folder = tmp_path / "reports" / "runs" / "smoke-1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"schema": SCHEMA, "notebook": "smoke"}))
    (folder / PAGE).write_text("step 3")
    monkeypatch.setattr(lab, "runs_at_work", lambda: [folder])
    return ProjectContents(root_dir=str(tmp_path), pre_save_hook="nsa_lib.report.lab.strip_outputs")


def outputs(model):
    return {cell["id"]: cell["outputs"] for cell in model["content"]["cells"] if cell.get("outputs")}


def get(contents, name):
    return asyncio.run(contents.get(f"notebooks/{name}.ipynb"))


def test_a_notebook_that_is_loaded_while_it_runs_shows_the_run_and_not_its_verdict(contents):
    model = get(contents, "smoke")
    ((cell, (shown,)),) = outputs(model).items()
    assert cell == "run"
    assert "smoke-1 was running" in shown["data"]["text/plain"]
    assert '("/files/reports/runs/smoke-1/progress.html", ' in shown["data"]["text/html"]
    (trusted,) = [cell for cell in model["content"]["cells"] if cell["id"] == "run"]
    assert trusted["metadata"]["trusted"], "else JupyterLab would take the corner out"
    asyncio.run(contents.save(model, "notebooks/smoke.ipynb"))
    assert '"outputs": []' in contents_of(contents, "smoke")
    assert "was running" not in contents_of(contents, "smoke")


def contents_of(contents, name):
    return Path(contents.root_dir, "notebooks", f"{name}.ipynb").read_text()


def test_a_notebook_that_does_not_run_shows_nothing(contents, monkeypatch):
    assert outputs(get(contents, "preflight")) == {}
    monkeypatch.setattr(lab, "runs_at_work", lambda: [])
    assert outputs(get(contents, "smoke")) == {}


def test_of_several_runs_the_one_of_the_project_is_shown(contents, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "smoke-2"
    elsewhere.mkdir()
    (elsewhere / "run.json").write_text(json.dumps({"schema": SCHEMA, "notebook": "smoke"}))
    own = Path(contents.root_dir, "reports", "runs", "smoke-1")
    for at_work, wanted in (([own, elsewhere], "smoke-1"), ([elsewhere], "smoke-2")):
        monkeypatch.setattr(lab, "runs_at_work", lambda found=at_work: found)
        ((shown,),) = outputs(get(contents, "smoke")).values()
        assert f"{wanted} was running" in shown["data"]["text/plain"]
        assert ("/files/" in shown["data"]["text/html"]) == (wanted == "smoke-1"), "only the project's files are served"


def test_make_lab_serves_these_contents():
    said = subprocess.run(["make", "-n", "lab"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert f"--ServerApp.contents_manager_class={ProjectContents.__module__}.{ProjectContents.__name__} " in said
