"""The static twin of every chart: valid, small, the same each time, and it shows what the chart shows."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import plotly.graph_objects as go
import pytest

from nsa_lib.report.charts.chart import Chart, empty_chart, nothing
from nsa_lib.report.charts.overlay import over_runs
from nsa_lib.report.charts.static import static_twin
from nsa_lib.report.charts.steps import grad_norm, loss, memory_trend, phase_peaks, step_time
from tests.made import with_case
from tests.made_runs import MADE, smoke
from tests.samples import PAYLOAD, sample_steps

MAP = {"branch_gates": [[[0.2, 0.5, 0.9]] * 4] * 3, "branches": ["cmp", "slc", "win"], "l_sel": 64,
       "selected": [[[1.0, 0, 0], [1, 1, 0], [0.5, 1, 1]]] * 3, "branch_mass": [[0.2, 0.3, 0.5]] * 3}  # fmt: skip


def texts(svg):
    root = ElementTree.fromstring(svg)
    return [(element.text or "").strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def paths(svg, colour):
    return len(re.findall(f"stroke: {colour}", svg))


@pytest.fixture(scope="module")
def charts():
    """Every chart of every notebook that a made-up run has, by notebook and name."""
    runs = {name: make() for name, make in MADE.items()}
    runs["preflight"] = with_case(runs["preflight"], "learning", attention_map=MAP)
    return {(name, chart): figure for name, run in runs.items() for chart, figure in run.figures.items()}


def test_every_chart_has_a_twin_that_is_valid_small_and_says_its_title_facts_and_units(charts):
    for figure in charts.values():
        svg = static_twin(figure)
        assert len(svg) < 60_000
        said = " ".join(texts(svg))
        assert figure.layout.title.text in said
        assert figure.layout.title.subtitle.text.split()[0] in said
        for axis in (figure.layout.xaxis, figure.layout.yaxis):
            assert axis.visible is False or (axis.title.text or "") in said
        assert "<script" not in svg
        assert svg == static_twin(figure)


@pytest.mark.parametrize("count", [0, 1, 100, 20_000])
@pytest.mark.parametrize("draw", [memory_trend, loss, grad_norm, step_time, phase_peaks])
def test_a_twin_of_any_number_of_steps_is_small(draw, count):
    svg = static_twin(draw(sample_steps(count)))
    assert len(svg) < 60_000
    assert "nan" not in " ".join(texts(svg))


def test_lines_marks_and_bars_are_there():
    svg = static_twin(memory_trend(sample_steps(), limit_mib=2_000))
    assert all(paths(svg, colour) for colour in ("#d55e00", "#0072b2", "#009e73"))
    assert "limit 2,000 MiB" in texts(svg)
    bars = texts(static_twin(phase_peaks(sample_steps())))
    assert {"forward", "backward", "optimizer", "median of the steps", "highest"} <= set(bars)


def test_a_spike_is_as_high_as_its_value():
    """In a chart with an axis from 0 to 100, a spike to 80 reaches up four fifths of the panel."""
    figure = empty_chart("A", "MiB", "facts", legend=False)
    figure.add_trace(go.Scatter(x=[0, 1, 2], y=[20, 80, 20], line={"color": "#123456"}))
    figure.update_yaxes(range=[0, 100])
    svg = static_twin(figure)
    (drawn,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: #123456', svg)
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", drawn)]
    ticks = {}
    for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        moved = re.search(r"translate\(\S+ (\S+)\)", element.get("transform", ""))
        ticks[element.text.strip()] = float(moved[1] if moved else element.get("y", "nan"))
    assert heights[0] - heights[1] == pytest.approx(ticks["20"] - ticks["80"], abs=0.5)


def test_dates_names_and_hostile_words_are_drawn_as_text():
    runs = [{"created": f"2025-03-0{day}T10:00:00+00:00", "notebook": "smoke", "profile": "laptop", "machine": "M",
             "run_id": str(day), "loss": 1.0 * day} for day in (1, 2)]  # fmt: skip
    assert any("Mar" in text for text in texts(static_twin(over_runs(runs, "loss", "Loss", "nats"))))
    hostile = static_twin(empty_chart(f"$x^2$ {PAYLOAD}", "MiB", PAYLOAD))
    assert "<script" not in hostile
    assert any("$x^2$" in text for text in texts(hostile))


def test_a_chart_carries_its_twin_wherever_it_is_shown():
    figure = loss(sample_steps())
    assert figure.bundle()["image/svg+xml"] == static_twin(figure)
    assert isinstance(figure, Chart)
    run = replace(smoke(), steps=smoke().steps.iloc[:0])
    assert "no steps recorded" in " ".join(texts(static_twin(run.figures["memory"])))


def test_a_chart_of_nothing_has_room_for_all_that_it_says():
    """matplotlib warns of what does not fit, and a warning is an error here."""
    svg = static_twin(nothing("Predicted memory", "MiB", "no prediction: " + "it says at length why not; " * 20))
    height = float(re.search(r'viewBox="0 0 \d+ (\d+)', svg)[1])
    lines = [float(y) for y in re.findall(r'translate\(\S+ (\S+)\)">', svg)]
    assert len(lines) > 4
    assert max(lines) < height


def test_panels_of_two_units_have_each_a_scale_of_their_own_and_those_of_one_share_it():
    def ticks(shared):
        figure = empty_chart("Pace and memory", "", "two panels", legend=False)
        figure.set_subplots(1, 2, shared_yaxes=shared)
        for column, values in enumerate(([100, 150], [1.7e6, 1.8e6]), start=1):
            figure.add_trace(go.Scatter(x=[0, 1], y=values, mode="markers"), row=1, col=column)
        return texts(static_twin(figure))

    assert "150" in ticks(False)
    assert "150" not in ticks(True)
