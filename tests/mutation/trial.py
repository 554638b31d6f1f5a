"""Plant a mutant in a copy of the source and run a notebook of that copy through papermill, as a user would."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nsa_lib.runs import papermill
from nsa_lib.runs.environment import PROJECT
from tests.mutation.mutants import HONEST, QUICK, Mutant

LIMIT_S = 300

COPIED = ("nsa_lib", "notebooks", "pyproject.toml")


@dataclass(frozen=True)
class Outcome:
    """What a trial came to."""

    mutant: str
    verdict: str
    caught: bool
    because: str
    """What the gate that noticed said, or every gate that stood in the way."""
    seconds: float


def plant(mutant: Mutant, project: Path) -> None:
    """Change the copy of the source. Raises ValueError unless the old text stands exactly once in the function."""
    path = project / mutant.file
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    first, last = (0, len(lines)) if mutant.function == "*" else _place(ast.parse(text), mutant.function)
    body = "".join(lines[first:last])
    if body.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.old!r} stands {body.count(mutant.old)} times in {mutant.function}")
    changed = "".join(lines[:first]) + body.replace(mutant.old, mutant.new) + "".join(lines[last:])
    ast.parse(changed)
    path.write_text(changed)


def _place(tree: ast.AST, qualified: str) -> tuple[int, int]:
    """Return the lines of a function, the first from 0 and the one behind its last."""
    node = tree
    for name in qualified.split("."):
        node = next(child for child in ast.walk(node) if getattr(child, "name", None) == name)
    return node.lineno - 1, node.end_lineno


def copy_project(folder: Path) -> Path:
    """Copy the source into a folder and return the copy's project folder."""
    project = folder / "project"
    for name in COPIED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=shutil.ignore_patterns("__pycache__", "out*"))
        else:
            shutil.copy(source, project / name)
    return project


def run(mutant: Mutant | None, folder: Path) -> Outcome:
    """Run its notebook in a copy with a mutant in it, or the smoke of an honest copy, which must be GO."""
    project = copy_project(folder)
    if mutant is not None:
        plant(mutant, project)
    notebook = mutant.notebook if mutant else "smoke"
    given = {**HONEST[notebook], "out_dir": str(folder)}
    if mutant is not None:
        given |= {**QUICK.get(notebook, {}), **mutant.parameters}
    command = papermill.command(project / "notebooks" / f"{notebook}.ipynb", folder / "out.ipynb")
    began = time.monotonic()
    # Kernel and workers must import the copy, not the library that is installed.
    path = os.pathsep.join(filter(None, (str(project), os.environ.get("PYTHONPATH"))))
    with (folder / "papermill.log").open("wb") as log, suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [*command, *papermill.parameters(given), "--cwd", str(project)],
            cwd=project, stdout=log, stderr=log, timeout=LIMIT_S, check=False, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    return _judged(mutant, folder, time.monotonic() - began)


def _judged(mutant: Mutant | None, folder: Path, seconds: float) -> Outcome:
    name = "honest" if mutant is None else mutant.name
    summaries = sorted(folder.glob("runs/*/summary.json"))
    if not summaries:
        return Outcome(name, "nothing", False, (folder / "papermill.log").read_text()[-300:], seconds)
    summary = json.loads(summaries[-1].read_text())
    if mutant is None:
        return Outcome(name, summary["verdict"], summary["verdict"] == "GO", "; ".join(summary["reasons"]), seconds)
    noticed = [g for g in summary["gates"] if g["required"] and g["outcome"] in ("FAIL", "NOT_RUN")]
    right = [g for g in noticed if g["name"].startswith(mutant.gates)]
    said = [f"{g['name']}: {g['detail']}" for g in (right or noticed)]
    return Outcome(name, summary["verdict"], bool(right), "; ".join(said)[:400], seconds)
