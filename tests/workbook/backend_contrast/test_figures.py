"""The charts of a backend contrast."""

from dataclasses import replace

import pytest

from nsa_lib.contract.agenda import DENSE
from nsa_lib.runs.recorded import Recorded
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS
from nsa_lib.workbook.backend_contrast import measures
from nsa_lib.workbook.backend_contrast.figures import contrast_figures, contrast_table, operators_table
from nsa_lib.workbook.backend_contrast.gates import contrast_advice, contrast_gates, contrast_headline, recommended
from tests.made import add_backend
from tests.workbook.backend_contrast.made import MM_CALLS, MODEL_MS, PARTIAL, PEAK_MIB, empty, healthy, names


def test_fused_stands_in_every_frame_table_and_chart():
    run = healthy(backends=BACKEND_NAMES)
    assert recommended(run) == "fused"
    assert list(measures.contrast_rows(run)["backend"]) == [*BACKEND_NAMES, DENSE]
    assert list(measures.top_rows(run).columns) == ["by", *BACKEND_NAMES, DENSE]
    assert measures.first_faster(run)["fused"] == 512
    figures = contrast_figures(run)
    assert names(figures["sweep"]) == [*BACKEND_NAMES, DENSE]
    assert "selected branch, fused" in figures["speed"].data[0].y


BRANCHES_OF_A_BACKEND = ("selected branch", "all branches")


def test_the_charts_of_a_whole_run_name_every_contestant():
    figures = contrast_figures(healthy())
    assert names(figures["speed"]) == names(figures["model_speed"]) == ["forward", "backward"]
    assert names(figures["sweep"]) == [*PLAIN_BACKENDS, DENSE]
    assert names(figures["memory"]) == ["peak allocated", "peak reserved"]
    assert list(figures["memory"].data[0].y) == [*PLAIN_BACKENDS, DENSE]
    selected, whole = ([f"{branches}, {name}" for name in PLAIN_BACKENDS] for branches in BRANCHES_OF_A_BACKEND)
    alone = ["compressed branch", "sliding branch"]
    assert list(figures["speed"].data[0].y) == [*selected, *alone, *whole, "dense attention"]
    assert list(figures["model_speed"].data[0].y) == [*PLAIN_BACKENDS, "dense attention"]
    assert figures["sweep"].layout.yaxis.title.text == "ms"
    units = [figures[name].layout.xaxis.title.text for name in ("speed", "model_speed", "memory")]
    assert units == ["ms, logarithmic", "ms, logarithmic", "MiB"]
    assert "packed from S=2,048" in figures["sweep"].layout.title.subtitle.text
    assert "by our backends: within 4.0 % of each other" in figures["memory"].layout.title.subtitle.text


@pytest.mark.parametrize("name", ["speed", "model_speed", "memory"])
def test_every_row_of_a_chart_has_its_name_and_room_for_its_figures(name):
    figure = contrast_figures(healthy())[name]
    rows = list(figure.data[0].y)
    assert list(figure.layout.yaxis.tickvals) == list(figure.layout.yaxis.categoryarray) == rows
    assert list(figure.layout.yaxis.range) == [len(rows) - 0.5, -0.5]  # the first on top
    assert figure.layout.height >= 40 * len(rows)
    if name != "memory":  # figures stand on either side of the line that whiskers lie on
        assert [trace.textposition for trace in figure.data] == ["top center", "bottom center"]


def test_points_show_medians_and_whiskers_reach_the_quartiles():
    forward, backward = contrast_figures(healthy("laptop"))["model_speed"].data
    assert list(forward.x) == [75, 50, 25, 12.5]
    assert list(backward.error_x.array) == list(backward.error_x.arrayminus) == [0.375] * 4


def test_the_run_is_measured_once_for_gates_advice_and_charts(monkeypatch):
    run, seen = replace(healthy()), []
    of = Recorded.of
    monkeypatch.setattr(Recorded, "of", lambda run, case_id: seen.append(case_id) or of(run, case_id))
    contrast_gates(run), contrast_headline(run), contrast_advice(run), contrast_figures(run)
    assert seen.count("timing") == seen.count(f"model_{DENSE}") - 1 == 1  # a gate counts the steps of each model
    assert measures.timing_rows(replace(run, steps=run.steps[:0])).empty


def test_a_run_cut_short_draws_what_is_there():
    figures = contrast_figures(PARTIAL["one_backend"](healthy()))
    assert names(figures["sweep"]) == ["packed"]
    assert figures["sweep"].layout.title.subtitle.text == "forward and backward; dense was not timed"
    assert list(figures["memory"].data[0].y) == ["packed"]
    assert figures["memory"].layout.title.subtitle.text == "a process each"


def test_an_empty_run_draws_empty_charts_that_say_so():
    figures = contrast_figures(empty(healthy()))
    assert all(not figure.data for figure in figures.values())
    assert {f.layout.title.subtitle.text for f in figures.values()} == {"nothing timed", "no steps recorded"}


@pytest.fixture
def with_a_fifth(monkeypatch):
    """Return a contrast of the backends that there are and one more."""
    add_backend(monkeypatch, "fifth")
    for figures, figure in ((MODEL_MS, 30.0), (PEAK_MIB, 980.0), (MM_CALLS, 70)):
        monkeypatch.setitem(figures, "fifth", figure)
    return healthy.__wrapped__(backends=(*BACKEND_NAMES, "fifth"))


def test_a_fifth_backend_stands_in_every_chart_and_table(with_a_fifth):
    everyone, figures = [*BACKEND_NAMES, "fifth"], contrast_figures(with_a_fifth)
    assert names(figures["sweep"]) == [*everyone, DENSE]
    looks = [(line.line.color, line.line.dash) for line in figures["sweep"].data]
    assert len(set(looks)) == len(looks)
    assert "selected branch, fifth" in figures["speed"].data[0].y
    for name in ("model_speed", "memory"):
        assert list(figures[name].data[0].y)[: len(everyone)] == everyone
    assert "fifth" in repr(contrast_table(measures.contrast_rows(with_a_fifth)))
    assert list(operators_table(measures.top_rows(with_a_fifth)).header) == ["by", *everyone, DENSE]


def test_a_fifth_backend_has_its_gates_and_may_be_recommended(with_a_fifth):
    assert {f"{kind}_fifth" for kind in ("ran", "route", "error", "operator_growth")} <= {
        gate.name for gate in contrast_gates(with_a_fifth)
    }
    assert recommended(with_a_fifth) == "fifth"
