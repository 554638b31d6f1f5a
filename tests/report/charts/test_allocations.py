"""The chart of what is allocated over one step, and the links to what shows more of it."""

import re
from dataclasses import replace

import pandas as pd
import pytest

from nsa_lib.report.charts.allocations import LEFT, allocation_chart, snapshot_table
from nsa_lib.report.charts.static import static_twin
from nsa_lib.runs.recorded import cases_frame
from nsa_lib.workbook.questions import QUESTIONS
from tests.made import resolved, with_case
from tests.workbook.smoke.made import healthy


def curve(*peaks):
    """Return a curve of three phases with the given peaks."""
    names = ("forward", "backward", "optimizer")
    return {
        name: {"events": 40, "at": [0, 10, 40], "mib": [20.0, peak, 21.0]}
        for name, peak in zip(names, peaks, strict=True)
    }


@pytest.fixture
def run(tmp_path):
    """A run that left a snapshot."""
    made = healthy("laptop")
    measured = {"step": 3, "phases": curve(25, 34, 22)}
    row = {"case_id": "snapshot", "status": "ok", "reason": "", "allocations": measured}
    row = cases_frame([{**row, "prediction": {"allocations": curve(25, 33, 22)}}])
    kept = replace(made, cases=pd.concat([made.cases.astype(object), row.astype(object)], ignore_index=True))
    folder = tmp_path / "runs" / "smoke-1"
    (folder / "cases" / "snapshot").mkdir(parents=True)
    for name in LEFT:
        (folder / "cases" / "snapshot" / name).write_text("")
    return replace(kept, folder=folder)


def test_predicted_stands_beside_measured_and_every_phase_has_its_place(run):
    figure = allocation_chart(run)
    measured, predicted = figure.data
    assert (measured.name, predicted.name) == ("measured", "predicted")
    assert list(measured.x) == [0, 0.25, 1, 1, 1.25, 2, 2, 2.25, 3]
    assert max(measured.y) == 34
    assert "measured peak 34.0 MiB, predicted peak 33.0 MiB" in figure.layout.title.subtitle.text
    assert figure.layout.yaxis.title.text == "MiB"
    svg = static_twin(figure)
    assert all(phase in svg for phase in ("forward", "backward", "optimizer"))


def test_without_a_prediction_or_a_recorded_step_it_says_so(run):
    unpredicted = with_case(run, "snapshot", prediction={"reason": "no"})
    assert [line.name for line in allocation_chart(unpredicted).data] == ["measured"]
    assert "no prediction" in allocation_chart(unpredicted).layout.title.subtitle.text
    broken = with_case(run, "snapshot", allocations=None, status="oom")
    assert "did not come to the step" in allocation_chart(broken).layout.title.subtitle.text


def test_files_that_are_there_are_linked_from_where_the_report_lies(run):
    in_folder = replace(run, info={**run.info, "report": str(run.folder / "report.html")})
    html = snapshot_table(in_folder)._repr_html_()
    assert re.findall(r'href="([^"]+)"', html) == [f"cases/snapshot/{name}" for name in LEFT]
    beside = replace(run, info={**run.info, "report": "/elsewhere/out.html"})
    for name in LEFT:
        assert (run.folder / "cases" / "snapshot" / name).as_uri() in snapshot_table(beside)._repr_html_()
    (run.folder / "cases" / "snapshot" / "trace.json.gz").unlink()
    assert "trace.json.gz" not in snapshot_table(beside)._repr_html_()


def test_a_run_that_was_not_asked_for_it_has_no_chart_and_one_line():
    plain = healthy("laptop")
    assert allocation_chart(plain) is None
    assert snapshot_table(plain)._repr_html_().startswith('<p class="nsa-note">No snapshot')


@pytest.mark.parametrize("profile", ["laptop", "checklist"])
def test_it_is_a_case_of_its_own_that_leaves_the_others_and_the_profile_as_they_are(profile):
    cases = QUESTIONS["smoke"].request.cases
    plain, asked = (resolved("smoke", {"memory_snapshot": wanted}, profile=profile) for wanted in (False, True))
    added = [case for case in cases(asked, ("masked",)) if case not in cases(plain, ("masked",))]
    assert [case.work for case in added] == ["snapshot"]
    assert len(cases(asked, ("masked",))) == len(cases(plain, ("masked",))) + 1
    assert QUESTIONS["smoke"].request.differences(asked, profile=profile) == []


def test_no_gate_reads_it(run):
    without = healthy("laptop")
    failed = with_case(run, "snapshot", status="oom", reason="planted")
    judging = QUESTIONS["smoke"].judging
    assert judging.gates(failed) == judging.gates(without)
