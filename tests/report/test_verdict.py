"""The verdict of a notebook: what conclude leaves, and what is read again."""

import copy

import pytest
from IPython.core.formatters import DisplayFormatter
from nbformat import v4

from nsa_lib.report.charts import chart
from nsa_lib.report.table import Cell, Table
from nsa_lib.report.verdict import MIME, OUTCOME_KEY, VerdictError, conclude, read_verdict
from tests.samples import (
    code_cell,
    concluded,
    error,
    export,
    notebook,
    sample_run,
)


def verdict_of(*cells, **metadata):
    return read_verdict(notebook(*cells, **metadata))


def incomplete(reason, *cells, **metadata):
    verdict = verdict_of(*cells, **metadata)
    return verdict.word == "INCOMPLETE" and reason in verdict.headline


def record_of(**changes):
    record = {**concluded()[0].data[MIME], **changes}
    return v4.new_output("display_data", {MIME: {k: v for k, v in record.items() if v is not None}})


# What a notebook says


@pytest.mark.parametrize("word", ["GO", "REVIEW", "NO-GO", "INCOMPLETE"])
def test_a_complete_notebook_says_what_its_record_says(word):
    verdict = verdict_of(code_cell(), code_cell(count=2, outputs=concluded(word, reasons=["because"])))
    assert (verdict.word, verdict.reasons, verdict.profile) == (word, ("because",), "checklist")


def test_an_unfinished_run_is_incomplete_whatever_it_recorded():
    cells = code_cell(outputs=concluded("GO"))
    assert verdict_of(cells, **{OUTCOME_KEY: {"outcome": "finished"}}).word == "GO"
    assert incomplete("Kernel died", cells, **{OUTCOME_KEY: {"outcome": "DeadKernelError: Kernel died"}})


def test_an_error_before_or_after_the_verdict_is_incomplete():
    assert incomplete("stopped before a verdict: ValueError: bad", code_cell(outputs=[error()]))
    assert incomplete(
        "stopped after a verdict was recorded: ValueError", code_cell(outputs=[*concluded("GO"), error()])
    )
    last = code_cell(count=2, outputs=concluded("GO"))
    assert incomplete("ValueError", code_cell(outputs=[error()]), last)


def test_a_verdict_error_counts_as_one_only_beside_its_record():
    stray = code_cell(outputs=[error("VerdictError", "NO-GO")])
    assert incomplete("VerdictError", stray, code_cell(count=2, outputs=concluded("GO")))
    assert incomplete("says GO", code_cell(outputs=[*concluded("GO"), error("VerdictError", "NO-GO")]))


def test_a_cell_that_did_not_run_is_incomplete():
    assert incomplete("1 of 2 code cells", code_cell(count=None), code_cell(count=2, outputs=concluded("GO")))
    empty = code_cell(source="  \n", count=None)
    assert verdict_of(code_cell(outputs=concluded("GO")), empty).word == "GO"


def test_no_verdict_is_incomplete():
    assert incomplete("no verdict was recorded", code_cell())
    assert incomplete("no verdict was recorded")


def test_a_verdict_must_come_last_once_and_in_order():
    go = concluded("GO")
    assert incomplete("after the verdict", code_cell(outputs=go), code_cell(count=2))
    assert incomplete("2 verdicts", code_cell(outputs=go), code_cell(count=2, outputs=go))
    assert incomplete("2 verdicts", code_cell(outputs=[*go, *go]))
    rerun = (code_cell(count=1), code_cell(count=9), code_cell(count=3, outputs=go))
    assert incomplete("out of order", *rerun)


def of_session(session, output):
    """Return a copy of an output as another kernel shows it; None takes its mark away."""
    output = copy.deepcopy(output)
    output.metadata = {"nsa": {"session": session}} if session else {}
    return output


@pytest.mark.parametrize(
    ("shown", "recorded", "word"),
    [
        ("a", "a", "GO"),
        (None, "a", "GO"),
        (None, None, "GO"),
        ("b", "a", "INCOMPLETE"),
        ("b", None, "INCOMPLETE"),
    ],
)
def test_counts_that_rise_prove_no_session_the_marks_of_outputs_do(shown, recorded, word):
    table = of_session(shown, v4.new_output("display_data", {"text/html": "<table>"}))
    (record,) = concluded("GO")
    verdict = verdict_of(code_cell(outputs=[table]), code_cell(count=2, outputs=[of_session(recorded, record)]))
    assert verdict.word == word
    assert (word == "GO") == ("of several sessions" not in verdict.headline)


def test_tables_and_charts_carry_the_mark_of_the_session_that_concludes(monkeypatch):
    shown = []
    monkeypatch.setattr(chart, "display", lambda bundle, **how: shown.append(how["metadata"]))
    chart.nothing("memory", "MiB")._ipython_display_()
    data, metadata = DisplayFormatter().format(Table("gates", ("name",), [(Cell("steps"),)]))
    assert {"text/html", "text/plain"} <= {*data}
    (record,) = concluded("GO")
    assert shown == [metadata] == [record.metadata]
    assert metadata["nsa"]["session"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "newer"),
        ({"schema": True}, "no schema"),
        ({"schema": None}, "no schema"),
        ({"verdict": "PASS"}, "none of GO"),
        ({"verdict": ["GO"]}, "none of GO"),
        ({"headline": None}, "headline is not a text"),
        ({"profile": 1}, "profile is not a text"),
        ({"reasons": "all good"}, "reasons is not a list"),
        ({"custom": [1]}, "custom is not a list"),
    ],
)
def test_a_malformed_record_is_incomplete(changes, reason):
    assert incomplete(reason, code_cell(outputs=[record_of(**changes)]))


def test_a_record_that_is_no_mapping_is_incomplete():
    assert incomplete("not a mapping", code_cell(outputs=[v4.new_output("display_data", {MIME: "GO"})]))


# What conclude leaves


def test_only_go_passes_and_review_only_when_accepted(capsys):
    conclude(sample_run("GO"), command="make it")
    assert r"HTML report, from any terminal:\nmake it" in capsys.readouterr().out
    conclude(sample_run("REVIEW"), command="", accept_review=True)
    for word in ("REVIEW", "NO-GO", "INCOMPLETE"):
        with pytest.raises(VerdictError, match=word):
            conclude(sample_run(word), command="")
    with pytest.raises(VerdictError, match="NO-GO"):
        conclude(sample_run("NO-GO"), command="", accept_review=True)


def test_a_laptop_go_says_that_it_clears_no_gpu():
    (output,) = concluded("GO", profile="laptop", custom=["steps 60"])
    for text in (output.data["text/html"], output.data["text/plain"], export(notebook(code_cell(outputs=[output])))):
        assert "A laptop GO clears no GPU" in text
        assert "Custom run" in text
        assert "steps 60" in text
    assert "clears no GPU" not in concluded("GO")[0].data["text/plain"]
