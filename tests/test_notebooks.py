"""The notebooks as they are kept, and as they run through papermill."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from nsa_lib.report.verdict import read_verdict
from nsa_lib.runs.environment import PROJECT
from nsa_lib.workbook.questions import QUESTIONS
from nsa_lib.workbook.run import open_run

FOLDER = PROJECT / "notebooks"

PATHS = [FOLDER / f"{name}.ipynb" for name in QUESTIONS]

COMMON = (
    "profile", "gpus", "strategies", "device_gib", "backend", "steps", "layers", "seq_len", "seq_lens", "batch",
    "batches", "dtype", "device", "out_dir", "tag",
)  # fmt: skip
"""The parameters that are changed most often, which come first where there are many."""

MANY = 12

REST = "# The rest. What says None is decided by the profile."

TINY = {"profile": "laptop", "layers": 1, "seq_len": 128, "vocab": 64}


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_a_notebook_is_kept_clean(path, notebook):
    nbformat.validate(notebook)
    assert path.read_text() == nbformat.writes(notebook) + "\n", "not as nbformat writes it"
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


def test_a_notebook_has_one_parameters_cell_that_declares_what_the_library_reads(path, notebook):
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    found, lines = {}, [line for line in cell.source.splitlines() if line != REST]
    for line, node in zip(lines, ast.parse(cell.source).body, strict=True):
        found[node.target.id] = (node.annotation.id, ast.literal_eval(node.value), line.split("  # ")[1])
    declared = {
        name: (p.kind.__name__, p.default, p.help) for name, p in QUESTIONS[path.stem].request.parameters.items()
    }
    assert found == declared
    common = [name for name in COMMON if name in declared] if len(declared) > MANY else []
    assert list(found) == [*common, *(name for name in declared if name not in common)]
    assert not common or cell.source.splitlines()[len(common)] == REST


def test_papermill_lists_every_parameter(path, notebook):
    listed = papermill.inspect_notebook(notebook)
    assert {n: (p["inferred_type_name"], p["help"]) for n, p in listed.items()} == {
        name: (p.kind.__name__, p.help) for name, p in QUESTIONS[path.stem].request.parameters.items()
    }


def test_a_notebook_tells_a_story_and_holds_no_logic(notebook):
    assert notebook.cells[0].cell_type == "markdown"
    for cell in code_cells(notebook):
        if "parameters" in cell.metadata.get("tags", ()):
            continue
        assert len(cell.source.splitlines()) <= 12
        logic = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Try, ast.If)
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not any(isinstance(node, logic) for node in nodes)
        shown = [node.args[0] for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "show"]
        assert all(node in shown for node in nodes if isinstance(node, ast.Lambda))


def prose(cell):
    """Return the sentences of a text cell, without its heading and the question of the notebook."""
    text = " ".join(line for line in cell.source.splitlines() if not line.startswith(("#", "**")))
    return [sentence for sentence in re.split(r"(?<=[.?!])\s+", text) if sentence.strip()]


def test_a_text_cell_is_a_sentence_or_two(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert 1 <= len(prose(cell)) <= 2 + (cell is notebook.cells[0]), cell.source
            assert max(map(len, prose(cell))) <= 300, cell.source


@pytest.mark.parametrize("cell_id", ["plan-why", "environment-why", "verdict-why", "tail-why"])
def test_what_notebooks_say_alike_they_say_in_the_same_words(cell_id):
    judged = [name for name, question in QUESTIONS.items() if question.request.cases and question.judging]
    cells = [cell for name in judged for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells]
    assert len({cell.source for cell in cells if cell.id == cell_id}) == 1
    assert len([cell for cell in cells if cell.id == cell_id]) == len(judged) == 5


def test_cells_call_functions_with_visible_arguments_and_show_the_frame_of_steps(path, notebook):
    sources = [cell.source for cell in code_cells(notebook)]
    assert not [source for source in sources if ".figures[" in source], "which hides what a chart is drawn from"
    if path.stem not in ("readiness", "bring_your_own", "fleet"):  # they have no steps of their own
        assert any(source.rstrip(")").endswith(".tail(") for source in sources)


def run(*arguments, cwd, notebook="smoke.ipynb", **parameters):
    """Run papermill as a user would; the outcome, with everything it printed."""
    command = [sys.executable, "-m", "papermill", str(notebook), *map(str, arguments)]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def errors(path):
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", ()) if output.output_type == "error"]


def test_a_run_from_the_notebooks_folder_reaches_its_verdict_and_its_report(tmp_path):
    out = tmp_path / "out.ipynb"
    ended = run(out, "--engine", "nsa", cwd=FOLDER, steps=60, out_dir=tmp_path, **TINY)
    found = read_verdict(nbformat.read(out, as_version=4))
    assert (ended.returncode, found.word) == (0, "GO"), ended.stderr + str(found)
    html = out.with_suffix(".html").read_text()
    assert "GO" in html
    opened = open_run("newest", out_dir=tmp_path)
    assert opened.verdict == "GO"
    assert len(opened.steps.query("case_id == 'training'")) == 60
    summary = json.loads((opened.folder / "summary.json").read_text())
    assert summary["verdict"] == "GO"
    assert summary["custom"], "other sizes than the profile's make a custom run"


def test_a_run_too_short_to_be_judged_is_incomplete_and_fails_the_command(tmp_path):
    out = tmp_path / "out.ipynb"
    ended = run(out, cwd=PROJECT, notebook="notebooks/smoke.ipynb", steps=12, out_dir=tmp_path, anomaly=False, **TINY)
    assert ended.returncode != 0
    assert read_verdict(nbformat.read(out, as_version=4)).word == "INCOMPLETE"
    (error,) = errors(out)
    assert error.traceback[0].startswith("VerdictError: INCOMPLETE")


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"stepz": 3}, "stepz: no such parameter"),
        ({"steps": "ten"}, "steps='ten': accepts a whole number above 0"),
        ({"device": "cuda", "profile": "laptop"}, "device=cuda: needs a CUDA device"),
    ],
)
def test_a_request_that_cannot_be_met_stops_in_one_line_before_any_work(tmp_path, parameters, line):
    out = tmp_path / "out.ipynb"
    ended = run(out, cwd=tmp_path, notebook=FOLDER / "smoke.ipynb", out_dir=tmp_path / "made", **parameters)
    assert ended.returncode != 0
    (error,) = errors(out)
    assert len(error.traceback) == 1
    assert line in error.traceback[0]
    assert not list(Path(tmp_path).glob("made/runs/*"))


def test_script_in_a_file_name_or_a_value_is_inert_in_the_report(tmp_path):
    hostile = tmp_path / "<script>alert(1)<img src=x onerror=alert(2)>.txt"
    hostile.write_text("a text of bytes " * 100)
    out = tmp_path / "out.ipynb"
    tiny = {**TINY, "vocab": 256, "steps": 12, "anomaly": False, "out_dir": tmp_path}
    assert run(out, "--engine", "nsa", cwd=FOLDER, data=hostile, **tiny).returncode != 0, "too short to be judged"
    html = out.with_suffix(".html").read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;img src=x onerror=alert(2)&gt;.txt" in html
    refused = tmp_path / "refused.ipynb"
    assert run(refused, "--engine", "nsa", cwd=FOLDER, **{**tiny, "tag": "<script>alert(3)</script>"}).returncode != 0
    html = refused.with_suffix(".html").read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(3)&lt;/script&gt;" in html
    assert "accepts up to 40 letters" in html
