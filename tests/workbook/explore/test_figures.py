"""The charts of an exploration."""

from dataclasses import replace

import numpy as np
import pytest

from nsa_lib.report.charts.attention_map import gate_map, selection_map
from nsa_lib.report.charts.steps import step_time
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.explore.figures import peak_by_phase, slow_steps_chart, zoom
from nsa_lib.workbook.explore.measures import slow_steps
from tests.samples import sample_steps
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
             selection_map(empty, layer=1)]  # fmt: skip
    for figure in drawn:
        assert not figure.data
        assert figure.layout.meta["description"]


# Zooming


@pytest.fixture
def long_run(run):
    """A run of 20,000 steps, whose charts leave steps out."""
    return replace(run, steps=sample_steps(20_000).assign(rank=0))


def test_a_chart_of_many_steps_says_how_many_share_a_point_and_zooming_draws_each(long_run):
    assert "lowest and highest of every 41 steps" in step_time(long_run.steps).to_json()
    figure = zoom(long_run, "step_ms", steps=(7_001, 7_400))
    (line,) = figure.data
    assert list(line.x) == list(range(7_001, 7_401))
    assert list(line.y) == list(long_run.steps["step_ms"].iloc[7_000:7_400])
    assert "400 of 20,000 steps" in figure.layout.title.subtitle.text
    assert "lowest and highest" not in figure.layout.title.subtitle.text


def test_zooming_over_many_steps_says_so_too(long_run):
    assert "lowest and highest of every 21 steps" in zoom(long_run, "loss", steps=(1, 10_000)).to_json()


def test_steps_that_are_not_there_are_said(run):
    assert zoom(run, "loss", steps=(500, 600)).layout.title.subtitle.text == "the case has 1 to 100"


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"column": "los"}, "loss"), ({"column": "loss", "case_id": "trainin"}, "accepts training, hot, anomaly")],
)
def test_a_column_or_case_that_is_not_there_is_refused(run, asked, said):
    with pytest.raises(ConfigError, match=said):
        zoom(run, **asked, steps=(1, 10))
