"""Predicted beside measured: what is shown, and which term a difference is blamed on. Gates never see it."""

from dataclasses import replace

import pytest

from nsa_lib.judgement.prediction import predicted_cases, prediction_advice, prediction_rows
from nsa_lib.report.charts.prediction import prediction_figure
from nsa_lib.report.tables import prediction_table
from nsa_lib.workbook.smoke.gates import smoke_gates
from tests.made import with_case
from tests.workbook.smoke.made import healthy, with_steps

TERMS = {"parameters": 200.0, "optimizer": 400.0, "gradients": 0.0, "activations": 100.0, "loss": 200.0,
         "temporaries": 50.0, "tables": 0.0, "workspace": 50.0}  # fmt: skip

FOUND = {
    "schema": 1, "peak_alloc_mib": 1000.0, "peak_reserved_mib": 1050.0, "peak_alloc_forward_mib": 900.0,
    "peak_alloc_backward_mib": 1000.0, "peak_alloc_optimizer_mib": 950.0, "alloc_mib": 900.0, "state_mib": 800.0,
    "terms": dict.fromkeys(("forward", "backward", "optimizer"), TERMS), "settings": {},
}  # fmt: skip


def run(found=FOUND, *, state_mib=800.0, case=None, **steps):
    """Return a smoke at 1,000 MiB with a prediction, and with figures of the training's steps changed."""
    made = with_case(healthy(base_mib=1000.0), "training", prediction=found, state_mib=state_mib)
    made = with_case(made, "training", **(case or {}))
    return with_steps(made, **{name: lambda step, value, to=to: to for name, to in steps.items()})


def test_the_rows_hold_each_phase_and_reserved_memory():
    rows = prediction_rows(run(peak_alloc_backward_mib=1100.0), ["training"])
    assert list(rows["phase"]) == ["forward", "backward", "optimizer", "reserved"]
    assert rows.loc[1, ["predicted_mib", "measured_mib"]].tolist() == [1000.0, 1100.0]
    assert rows["difference_percent"].tolist() == pytest.approx([0, 10, 0, 0])
    assert list(rows.loc[0, "terms"]) == ["optimizer", "parameters", "loss", "activations", "temporaries", "workspace"]


@pytest.mark.parametrize(
    ("changes", "blamed"),
    [
        ({"peak_alloc_forward_mib": 1200.0}, "forward alone (predicted: loss 200 MiB, activations 100 MiB"),
        ({"state_mib": 1000.0, "alloc_mib": 1100.0, "peak_alloc_backward_mib": 1200.0}, "optimizer state"),
        ({"alloc_mib": 1100.0, "peak_alloc_backward_mib": 1200.0}, "a leak"),
        ({"peak_reserved_mib": 5000.0}, "the allocator's"),
    ],
)
def test_a_difference_beyond_ten_percent_is_advice_that_names_the_term(changes, blamed):
    (said,) = prediction_advice(run(**changes), ["training", "dense"])
    assert said.startswith("training: ")
    assert blamed in said


def test_small_figures_keep_their_digits():
    found = {**FOUND, "peak_alloc_forward_mib": 1.84}
    (said,) = prediction_advice(run(found, peak_alloc_forward_mib=2.25), ["training"])
    assert "2.2 MiB" in said
    assert "1.8 MiB predicted" in said


def test_a_difference_of_ten_percent_is_none():
    assert prediction_advice(run(peak_alloc_backward_mib=1099.0, peak_reserved_mib=950.0), ["training"]) == []


def test_a_case_that_ran_out_of_memory_is_told_what_it_needs():
    (said,) = prediction_advice(run(case={"status": "oom", "device_total_mib": 900.0}), ["training"])
    assert "1,000 MiB allocated" in said
    assert "the device has 900 MiB" in said
    assert "optimizer 400, parameters 200, loss 200" in said


@pytest.mark.parametrize("found", [{"schema": 1, "reason": "planted"}, None])
def test_without_a_prediction_the_reason_is_shown(found):
    made = run() if found is None else run(found)
    made = with_case(made, "training", prediction=float("nan")) if found is None else made
    reason = "planted" if found else "none was made"
    assert prediction_rows(made, ["training"])["reason"].tolist() == [reason]
    assert prediction_advice(made, ["training"]) == []
    assert reason in prediction_table(prediction_rows(made, predicted_cases(made)))._repr_html_()
    assert f"no prediction: {reason}" in prediction_figure(made, "training").layout.title.subtitle.text


def test_the_table_has_a_row_a_case_and_marks_what_is_off():
    table = prediction_table(prediction_rows(run(peak_alloc_backward_mib=1200.0), ["training"]))
    assert table.header == ("case", "forward", "backward", "optimizer", "reserved")
    assert [cell.text for cell in table.rows[0]][2] == "1,000 → 1,200 (+20.0 %)"
    assert [cell.colour for cell in table.rows[0]] == ["", "", "warn", "", ""]


def test_the_chart_stacks_the_terms_and_marks_what_was_measured():
    figure = prediction_figure(run(), "training")
    assert [trace.name for trace in figure.data][-1] == "measured"
    assert sum(trace.y[0] for trace in figure.data[:-1]) == sum(TERMS.values())
    assert "no steps recorded" in prediction_figure(run(), "s512").layout.title.subtitle.text


def test_no_gate_reads_a_prediction():
    made = run()
    without = with_case(made, "training", prediction=float("nan"))
    absurd = run({**FOUND, "peak_reserved_mib": 1e9, "peak_alloc_mib": 0.1})
    assert smoke_gates(made) == smoke_gates(without) == smoke_gates(absurd)
    cut = replace(made, steps=made.steps[made.steps["case_id"] != "training"])
    reserved = next(gate for gate in smoke_gates(cut) if gate.name == "peak_reserved")
    assert reserved.outcome == "NOT_RUN"
