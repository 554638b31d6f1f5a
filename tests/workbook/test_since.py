"""What is new since the last run of a configuration."""

import shutil

import pytest

from nsa_lib.workbook.decide import decide
from nsa_lib.workbook.questions import counted
from nsa_lib.workbook.run import open_run
from nsa_lib.workbook.since import since_last
from tests.made_runs import day, edit, set_fact, set_parameter, untaught_smoke


@pytest.fixture
def last(tmp_path, templates):
    """A GO smoke of the first day."""
    return templates.put(tmp_path, "smoke", "smoke-1")


def told(folder):
    table = since_last(open_run(folder))
    return table.caption, {row[0].text: (row[1].text, row[2].text) for row in table.rows}


def test_gates_and_figures_that_changed_are_told(tmp_path, templates, last):
    caption, rows = told(templates.put(tmp_path, "smoke", "smoke-2", make=untaught_smoke, created=day(2)))
    assert caption.startswith("New since")
    assert caption.endswith("smoke-1")
    assert rows["verdict"] == ("✔ GO", "✘ NO-GO")
    assert rows["gate loss_falls"] == ("PASS", "FAIL")
    assert rows["loss of the last step"][1] == "6 nats per token (+164.4 %)"
    assert set(rows) == {"verdict", "gate loss_falls", "loss of the last step"}


def test_the_same_again_is_nothing_new_and_new_code_is_told(tmp_path, templates, last):
    again = templates.put(tmp_path, "smoke", "smoke-2", created=day(2))
    assert told(again) == ("Nothing new since the last run of this configuration, smoke-1", {})
    set_fact(again, "source_sha256", "b" * 64)
    assert told(again)[1] == {"source_sha256": ("a" * 12, "b" * 12)}


def test_a_first_run_says_so(last):
    assert told(last) == ("New since the last run of this configuration: it is the first one", {})


def test_the_last_run_is_not_judged_again(tmp_path, templates, last):
    shutil.rmtree(last / "cases")
    again = templates.put(tmp_path, "smoke", "smoke-2", created=day(2))
    assert told(again) == ("Nothing new since the last run of this configuration, smoke-1", {})


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: set_parameter(folder, "seq_len", 7),
        lambda folder: set_fact(folder, "cpu", "another"),
        lambda folder: (folder / "run.json").write_text("{"),
        lambda folder: edit(folder / "run.json", parameters=[{}]),
        lambda folder: edit(folder / "run.json", created=day(3)),
    ],
    ids=["another length", "another machine", "unreadable", "no parameters", "a later one"],
)
def test_a_run_of_another_configuration_is_not_spoken_of(tmp_path, templates, last, change):
    change(last)
    again = templates.put(tmp_path, "smoke", "smoke-2", created=day(2))
    assert told(again) == ("New since the last run of this configuration: it is the first one", {})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda path: path.unlink(), "which was not judged"),
        (lambda path: path.write_text(path.read_text()[:500]), "of another library, or torn"),
        (lambda path: path.write_text("[]"), "of another library, or torn"),
        (lambda path: edit(path, schema=99), "of another library, or torn"),
        (lambda path: edit(path, key_figures=None), "of another library, or torn"),
        (lambda path: edit(path, gates=[1]), "of another library, or torn"),
        (lambda path: edit(path, verdict="FINE"), "of another library, or torn"),
    ],
    ids=["none", "torn", "no mapping", "newer", "older", "no gates", "no verdict"],
)
def test_a_run_without_a_summary_that_can_be_read_is_passed_over_in_one_line(tmp_path, templates, last, change, why):
    broken = templates.put(tmp_path, "smoke", "smoke-2", created=day(2))
    change(broken / "summary.json")
    caption, rows = told(templates.put(tmp_path, "smoke", "smoke-3", created=day(3)))
    assert caption.startswith("Nothing new since the last run of this configuration, smoke-1; passed over: smoke-2, ")
    assert caption.endswith(why)
    assert rows == {}


def test_readiness_tells_what_is_new_since_the_last_one(tmp_path, templates):
    for notebook in counted():
        templates.put(tmp_path, notebook, f"{notebook}-1")
    first = decide({"out_dir": str(tmp_path)})
    templates.put(tmp_path, "smoke", "smoke-2", make=untaught_smoke, created=day(2))
    second = decide({"out_dir": str(tmp_path)})
    assert told(first.folder)[1] == {}
    caption, rows = told(second.folder)
    assert caption.endswith(first.info["run_id"])
    assert rows["verdict"][1] == "✘ NO-GO"
    assert ("PASS", "FAIL") in rows.values()
