"""A notebook is one folder and one row: a made-up one is added, run, judged and exported; no other file names one."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

import nsa_lib
from nsa_lib.__main__ import main
from nsa_lib.judgement.gate import steps_gate
from nsa_lib.report.charts.steps import loss
from nsa_lib.report.verdict import read_verdict
from nsa_lib.runs.parameters import SIZES, Parameter
from nsa_lib.runs.request import Request
from nsa_lib.runs.training_case import training_case
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.profiles import FAULT, MACHINE, PROFILE, RUN, profiles
from nsa_lib.workbook.questions import QUESTIONS, Judging, Question, counted, plan
from nsa_lib.workbook.run import open_run
from tests.samples import export, notebook

NAME = "made_up"

ROW = Question(
    Request(
        notebook=NAME,
        parameters={**PROFILE, "steps": Parameter(int, "training steps", above=0), **SIZES, **MACHINE, **RUN, **FAULT},
        profiles=profiles(checklist={"steps": 2}, laptop={"steps": 2, "layers": 1, "seq_len": 64}),
        cases=lambda values, backends: (training_case(values),),
    ),
    Judging(
        gates=lambda run: [steps_gate(run, "training", "steps")],
        advice=lambda run: [],
        headline=lambda run: f"{len(run.steps)} steps made up",
        figures=lambda run: {"loss": loss(run.of("training"))},
    ),
    counts=True,
)

CELLS = (
    'profile: str = "laptop"',
    "from nsa_lib.report import conclude, gates_table\n"
    "from nsa_lib.runs.runner import execute\n"
    "from nsa_lib.workbook.questions import plan\n"
    "from nsa_lib.workbook.run import record",
    f'run = record(execute(plan("{NAME}", globals())))',
    'run.figures["loss"]',
    'gates_table(run.summary["gates"])',
    'conclude(run, command="none")',
)


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(QUESTIONS, NAME, ROW)


def executed(path, namespace, monkeypatch):
    """Run a notebook's cells in this process, where its row is, and keep what the last one shows."""
    nb, shown = nbformat.read(path, as_version=4), []
    monkeypatch.setattr("nsa_lib.report.verdict.display", lambda bundle, **_: shown.append(bundle))
    for count, cell in enumerate(nb.cells, start=1):
        exec(cell.source, namespace)
        cell.execution_count = count
    cell.outputs = [v4.new_output("display_data", bundle) for bundle in shown]
    return nb


def test_one_row_adds_a_notebook_that_runs_is_judged_and_reported(added, tmp_path, monkeypatch):
    path = tmp_path / f"{NAME}.ipynb"
    nbformat.write(notebook(*(v4.new_code_cell(source) for source in CELLS)), path)
    nb = executed(path, {"out_dir": str(tmp_path)}, monkeypatch)
    found = read_verdict(nb)
    assert (found.word, found.headline) == ("GO", "2 of 2 required gates passed; 2 steps made up")
    assert "2 steps made up" in export(nb)
    run = open_run(out_dir=tmp_path)
    assert (run.info["notebook"], run.verdict, set(run.figures)) == (NAME, "GO", {"loss"})


def test_the_row_alone_makes_it_known_to_readiness_and_to_the_command_line(added, tmp_path, capsys):
    assert counted()[-1] == NAME
    assert main(["check", NAME, "-p", "profile", "laptop", "-p", "out_dir", str(tmp_path)]) == 0
    assert "cases: training" in capsys.readouterr().out
    assert main(["check", "readiness", "-p", "out_dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(f"{NAME}\n")


PACKAGE = Path(nsa_lib.__file__).parent

MAY_NAME = {("backward_scaling", "smoke"), ("bring_your_own", "preflight"), ("fleet", "smoke")}
"""The smoke's train step under each allocator setting is one kind of a scaling's cases; the story of a subject of one's
own asks a preflight for its verdict; the members of a fleet run a smoke."""

PARAMETERS = {name for question in QUESTIONS.values() for name in question.request.parameters}
"""A text may be one of these too: `fleet` is what a member is told, and the notebook that compares members."""


def named(path):
    """Return the notebooks whose name, alone or with its suffix, is a text in a file."""
    constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    found = {name for name in QUESTIONS if {name, f"{name}.ipynb"} & constants}
    return found - PARAMETERS


def test_no_other_file_knows_a_notebook_by_its_name():
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).parts
        if parts == ("selftest.py",):  # its trials say which notebook catches what
            continue
        folder = parts[1] if parts[0] == "workbook" and len(parts) > 2 else None
        found = {name for name in named(path) if name != folder and (folder, name) not in MAY_NAME}
        assert not found, f"{path} names {', '.join(found)}"


def test_a_notebook_that_is_none_is_refused_in_a_line_that_names_the_one_it_may_be():
    with pytest.raises(ConfigError, match=r"smoek: no such notebook; did you mean smoke\?"):
        plan("smoek", {})
