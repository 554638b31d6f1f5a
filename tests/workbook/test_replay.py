"""The report of a run from its folder alone: the verdict and the charts that its notebook would have shown."""

import json
import re
import sys

import pytest

from nsa_lib.contract.lines import WIDTH
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook import replay
from nsa_lib.workbook.decide import decide
from nsa_lib.workbook.questions import counted
from nsa_lib.workbook.replay import write_report
from nsa_lib.workbook.run import open_run
from tests.made_runs import Templates, day, edit, set_parameter

EMPTY_FRAME = "Columns: ["

WITH_STEPS = ("smoke", "backward_scaling")
"""Of which the made runs have steps with all the figures of a frame that their notebook shows."""

FAILED = ("not shown, and without a say in the verdict", "Traceback", "Error")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of each judged notebook, that of the contrast in the name of a run without a report."""
    out_dir = tmp_path_factory.mktemp("out_dir")
    templates = Templates(tmp_path_factory.mktemp("templates"))
    for notebook in counted():
        templates.put(out_dir, notebook)
    return out_dir


def text_of(page):
    html = page.read_text()
    assert html.count("<h1") == 1
    return re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)


@pytest.fixture
def executed(monkeypatch):
    """The notebooks that are executed for a report."""
    notebooks, replayed = [], replay.replayed
    monkeypatch.setattr(replay, "replayed", lambda *given: notebooks.append(replayed(*given)) or notebooks[-1])
    return notebooks


@pytest.mark.parametrize("notebook", counted())
def test_a_run_of_each_notebook_has_a_report_from_its_folder_alone(runs, notebook, executed, capfd):
    folder = runs / "runs" / f"{notebook}-1"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    page = write_report(folder)
    text = text_of(page)
    assert page == folder / "report.html"
    assert capfd.readouterr() == ("", ""), "no warning of the kernel"
    assert re.search(r'nsa-word">.*?GO</p>', text)
    assert f"Run: {notebook}-1" in text
    assert "judged again. Nothing was run for this page" in text
    assert [sign for sign in FAILED if sign in text] == []
    assert "recorded_calls" not in text, "what replaces the calls is taken out"
    assert "python -m nsa_lib report" not in text, "a finished page does not tell how to make it"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path != page} == before
    assert not (runs / "index.html").exists()
    lines = shown_by(executed[0]).splitlines()
    assert len(lines) > 50
    wide = [line for line in lines if len(line) > WIDTH]
    kept_whole = (f"{sys.executable} -m nsa_lib report {folder}", EMPTY_FRAME)
    assert [line for line in wide if not line.startswith(kept_whole)] == [], "it fits a terminal"
    assert any(line.startswith(EMPTY_FRAME) for line in lines) == (notebook not in WITH_STEPS)


def shown_by(notebook):
    """Return the text that a terminal shows of what a notebook shows."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join("".join(text) for text in texts)


def test_a_readiness_run_links_to_the_reports_from_where_its_own_lies(runs):
    for notebook in counted():
        (runs / "runs" / f"{notebook}-1" / "report.html").write_text("a page")
    run = decide({"out_dir": str(runs)})
    text = text_of(write_report(run.folder))
    links = set(re.findall(r'href="(file:[^"]+)"', text))
    assert links == {(runs / "runs" / f"{notebook}-1" / "report.html").as_uri() for notebook in counted()}


def test_a_run_that_was_killed_shows_what_it_recorded_and_the_parameters_that_were_given(runs, tmp_path):
    folder = Templates(tmp_path / "templates").put(tmp_path, "smoke", created=day(3))
    set_parameter(folder, "lr", 0.5)
    (folder / "cases" / "training" / "result.json").unlink()
    (folder / "summary.json").unlink()
    text = text_of(write_report(folder))
    assert re.search(r'nsa-word">.*?INCOMPLETE</p>', text)
    assert "no result was written" in text
    assert re.search(r"lr</span>.*?0.5", text, re.DOTALL)
    assert text.count('class="nsa-figure"') >= 4


def test_what_is_no_judged_run_is_refused_in_one_line(runs, tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        write_report(tmp_path)
    folder = Templates(tmp_path / "templates").put(tmp_path, "smoke")
    edit(folder / "run.json", notebook="capacity")
    with pytest.raises(ConfigError, match="a run of capacity, which this library does not judge"):
        write_report(folder)
    assert json.loads((folder / "run.json").read_text())["notebook"] == "capacity"
    assert open_run(runs / "runs" / "smoke-1").verdict == "GO"
