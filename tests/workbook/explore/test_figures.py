"""The charts of an exploration."""

from dataclasses import replace

import numpy as np

from nsa_lib.report.charts.attention_map import gate_map, selection_map
from nsa_lib.workbook.explore.figures import peak_by_phase, slow_steps_chart
from nsa_lib.workbook.explore.measures import slow_steps
from tests.workbook.backward_scaling import made as scalings
from tests.workbook.smoke.made import with_steps


def test_the_peak_is_named_by_phase_case_and_step(run):
    raised = with_steps(run, peak_alloc_mib=lambda step, mib: mib + (step == 37))
    figure = peak_by_phase(raised)
    assert figure.layout.title.subtitle.text.endswith("case training, peak first reached in step 37")
    assert figure.layout.xaxis.title.text == "MiB"


def test_a_scaling_has_no_optimizer_phase_where_none_was_measured():
    run = scalings.healthy("laptop")
    steps = run.steps[run.steps["case_id"] == "s512"].assign(peak_alloc_optimizer_mib=np.nan)
    figure = peak_by_phase(replace(run, steps=steps))
    assert list(figure.data[0].y) == ["forward", "backward"]
    assert "case s512" in figure.layout.title.subtitle.text


def test_slow_steps_are_marked_where_they_are(run):
    evidence = with_steps(run, step_ms=lambda step, _: 300.0 if step in (50, 70) else 100.0)
    figure = slow_steps_chart(evidence, slow_steps(evidence))
    marked = next(trace for trace in figure.data if trace.name == "slow")
    assert (list(marked.x), list(marked.y)) == ([50, 70], [300, 300])
    assert "2 slow" in figure.layout.title.subtitle.text


def test_charts_of_a_run_without_a_step_or_a_case_say_so(run):
    empty = replace(run, steps=run.steps.iloc[:0], cases=run.cases.iloc[:0])
    drawn = [peak_by_phase(empty), slow_steps_chart(empty, slow_steps(empty)), gate_map(empty),
             selection_map(empty, layer=0)]  # fmt: skip
    for figure in drawn:
        assert not figure.data
        assert figure.layout.meta["description"]
