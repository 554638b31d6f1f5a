"""Which code a run is of, on made-up projects: what changes the hash, and the commit as git tells it."""

import json
import os

import pytest

from nsa_lib.contract import source
from nsa_lib.runs import environment, provenance
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import QUESTIONS, judged


def cell(source, *tags, kind="code", outputs=(), count=None):
    return {"cell_type": kind, "source": source, "metadata": {"tags": [*tags]}, "outputs": [*outputs],
            "execution_count": count}  # fmt: skip


CELLS = [
    cell("# Smoke", kind="markdown"),
    cell("steps: int = 100", "parameters"),
    cell("run = execute(plan)"),
    cell("run.verdict"),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one module and one notebook."""
    package = tmp_path / "nsa_lib"
    (package / "attention").mkdir(parents=True)
    (package / "attention" / "rope.py").write_text("BASE = 10_000\n")
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path, CELLS)
    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    monkeypatch.setattr(source, "PACKAGE", package)
    # A process hashes the source at its import: here each call stands for a process of its own.
    monkeypatch.setattr(provenance, "package_sha256", source.sha256_on_disk)
    return tmp_path


def write_notebook(project, cells, name="smoke"):
    (project / "notebooks" / f"{name}.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}}))


def changes(project, change):
    """Return whether a change makes other source of the project."""
    before = provenance.source_sha256(["smoke"])
    change(project)
    return provenance.source_sha256(["smoke"]) != before


SOURCE_CHANGES = {
    "a line": lambda p: (p / "nsa_lib" / "attention" / "rope.py").write_text("BASE = 10_001\n"),
    "a new module": lambda p: (p / "nsa_lib" / "checks.py").write_text(""),
    "a new name": lambda p: (p / "nsa_lib" / "attention" / "rope.py").rename(p / "nsa_lib" / "attention" / "rotary.py"),
    "a cell": lambda p: write_notebook(p, [*CELLS[:2], cell("run = execute(other)"), CELLS[3]]),
    "one cell less": lambda p: write_notebook(p, CELLS[:2]),
    "a comment": lambda p: (p / "nsa_lib" / "attention" / "rope.py").write_text("BASE = 10_000\n# of the paper\n"),
    "a comment in a cell": lambda p: write_notebook(p, [*CELLS[:3], cell("run.verdict  # GO")]),
    "a module less": lambda p: (p / "nsa_lib" / "attention" / "rope.py").unlink(),
    "the order of cells": lambda p: write_notebook(p, [*CELLS[:2], *CELLS[:1:-1]]),
    "text instead of code": lambda p: write_notebook(
        p, [*CELLS[:2], cell(CELLS[2]["source"], kind="markdown"), CELLS[3]]
    ),
}

RUN_CELLS = [CELLS[0], cell("steps: int = 7", "parameters", count=1), cell(CELLS[2]["source"], outputs=[{}], count=2),
             CELLS[3]]  # fmt: skip

OTHER_CHANGES = {
    "the parameters, outputs and counts": lambda p: write_notebook(p, RUN_CELLS),
    "a source in lines": lambda p: write_notebook(p, [*CELLS[:2], cell(["run = ", "execute(plan)"]), CELLS[3]]),
    "an output of papermill": lambda p: write_notebook(p, RUN_CELLS, name="out"),
    "a report": lambda p: (p / "notebooks" / "out.html").write_text("<html>"),
    "compiled modules": lambda p: [(p / "nsa_lib" / "__pycache__").mkdir(),
                                   (p / "nsa_lib" / "__pycache__" / "rope.pyc").write_text("x")],
    "a template": lambda p: (p / "nsa_lib" / "page.html.j2").write_text("<p>"),
    "text": lambda p: write_notebook(p, [cell("# A smoke", kind="markdown"), *CELLS[1:]]),
    "an empty cell": lambda p: write_notebook(p, [*CELLS, cell(""), cell("  \n")]),
    "a blank line at the end": lambda p: write_notebook(p, [*CELLS[:2], cell(CELLS[2]["source"] + "\n"), CELLS[3]]),
    "injected parameters": lambda p: write_notebook(
        p, [*CELLS[:2], cell("steps = 7", "injected-parameters"), *CELLS[2:]]
    ),
    "a checkpoint of Jupyter": lambda p: [(p / "nsa_lib" / ".ipynb_checkpoints").mkdir(),
                                          (p / "nsa_lib/.ipynb_checkpoints/rope-checkpoint.py").write_text("x")],
    "what editors leave": lambda p: [(p / "nsa_lib" / "attention" / name).write_text("x")
                                     for name in ("rope.py~", ".rope.py.swp", "#rope.py#", ".#rope.py", "4913")],
    "line ends of Windows": lambda p: [
        (p / "nsa_lib" / "attention" / "rope.py").write_bytes(b"BASE = 10_000\r\n"),
        write_notebook(p, [*CELLS[:2], cell("run = execute(plan)\r\n"), CELLS[3]]),
    ],
    "ids and metadata of cells": lambda p: write_notebook(
        p, [{**one, "id": f"new-{place}", "metadata": {**one["metadata"], "collapsed": True, "papermill": {}}}
            for place, one in enumerate(CELLS)]
    ),
    "a raw cell": lambda p: write_notebook(p, [*CELLS, cell("a note", kind="raw")]),
    "a copy that JupyterLab made": lambda p: write_notebook(p, CELLS[:2], name="smoke-Copy1"),
    "a checkpoint of the notebook": lambda p: [
        (p / "notebooks" / ".ipynb_checkpoints").mkdir(),
        write_notebook(p, CELLS[:2], name=".ipynb_checkpoints/smoke-checkpoint"),
    ],
    "links to nowhere, and folders": lambda p: [(p / "nsa_lib" / ".#rope.py").symlink_to("me@here.1234"),
                                                (p / "nsa_lib" / "copy of rope.py").mkdir()],
    "a readme": lambda p: (p / "README.md").write_text("# Read"),
}  # fmt: skip


@pytest.mark.parametrize("change", SOURCE_CHANGES)
def test_the_hash_tells_other_source(project, change):
    assert changes(project, SOURCE_CHANGES[change])


@pytest.mark.parametrize("change", OTHER_CHANGES)
def test_the_hash_keeps_still_for_what_is_no_source(project, change):
    assert not changes(project, OTHER_CHANGES[change])


def test_the_hash_does_not_depend_on_where_the_project_is(project, tmp_path_factory, monkeypatch):
    before = provenance.source_sha256(["smoke"])
    moved = project.rename(tmp_path_factory.mktemp("elsewhere") / "project")
    monkeypatch.setattr(environment, "PROJECT", moved)
    monkeypatch.setattr(source, "PACKAGE", moved / "nsa_lib")
    assert provenance.source_sha256(["smoke"]) == before


def test_lines_in_a_cell_that_end_as_on_windows_are_the_same_code(project):
    write_notebook(project, [cell("a = 1\nb = 2")])
    assert not changes(project, lambda p: write_notebook(p, [cell(["a = 1\r\n", "b = 2"])]))


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\n{}", "", "[]", '{"metadata": {}}'])
def test_a_notebook_that_is_none_is_named_in_one_line(project, text):
    (project / "notebooks" / "smoke.ipynb").write_text(text)
    with pytest.raises(ConfigError, match=r"smoke\.ipynb: no notebook \(") as refusal:
        provenance.source_sha256(["smoke"])
    assert "\n" not in str(refusal.value)


def test_without_git_there_is_no_commit(project, monkeypatch):
    assert provenance.provenance(["smoke"])["git_commit"] is None  # a folder that is no repository
    (project / ".git").mkdir()
    monkeypatch.setenv("PATH", str(project))
    assert provenance.provenance(["smoke"]) == {
        "git_commit": None,
        "package_sha256": source.sha256_on_disk(),
        "source_sha256": provenance.source_sha256(["smoke"]),
    }


def test_the_commit_is_gits_own(project, monkeypatch):
    (project / ".git").mkdir()
    fake = project / "git"
    # As git does with a checkout of another user: it answers only where that is said to be safe.
    options = "--no-optional-locks -c safe.directory=$PROJECT -C $PROJECT"
    fake.write_text(f'#!/bin/sh\ncase "$*" in "{options} rev-parse HEAD") echo 0123abc;; "{options} "*) true;; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{project}:{os.environ['PATH']}")
    monkeypatch.setenv("PROJECT", str(project))
    assert provenance.provenance(["smoke"])["git_commit"] == "0123abc"
    fake.write_text("#!/bin/sh\ncase \"$*\" in *rev-parse*) echo 0123abc;; *) echo ' M nsa_lib/x.py';; esac\n")
    assert provenance.provenance(["smoke"])["git_commit"] == "0123abc-dirty"
    fake.write_text("#!/bin/sh\necho 'fatal: ambiguous argument HEAD' >&2; exit 128\n")
    assert provenance.provenance(["smoke"])["git_commit"] is None  # a repository without a commit


def test_notebooks_for_tinkering_do_not_count():
    assert set(QUESTIONS) - set(judged()) == {"bring_your_own", "capacity", "explore"}
