"""What is new since the last run of a configuration."""

import pytest

from nsa_lib.workbook.run import open_run
from nsa_lib.workbook.since import since_last
from tests.made_runs import Templates, day, set_fact, set_parameter, untaught_smoke


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    return Templates(tmp_path_factory.mktemp("templates"))


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


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: set_parameter(folder, "seq_len", 7),
        lambda folder: set_fact(folder, "cpu", "another"),
        lambda folder: (folder / "run.json").write_text("{"),
        lambda folder: (folder / "cases" / "training" / "heartbeat.jsonl").write_text("[]\n"),
    ],
    ids=["another length", "another machine", "unreadable", "broken inside"],
)
def test_a_run_of_another_configuration_or_one_that_is_broken_is_passed_over(tmp_path, templates, last, change):
    change(last)
    assert "first one" in told(templates.put(tmp_path, "smoke", "smoke-2", created=day(2)))[0]
