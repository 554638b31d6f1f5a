import numpy as np
import plotly.graph_objects as go
import pytest

from nsa_lib.report.charts import chart
from nsa_lib.report.charts.chart import CONFIG, MOST_POINTS, SMOOTHED_FROM
from nsa_lib.report.charts.steps import (
    grad_norm,
    loss,
    memory_range,
    memory_trend,
    phase_peaks,
    step_time,
)
from tests.samples import sample_steps

FIGURES = [memory_trend, loss, grad_norm, step_time, phase_peaks]

MEASURED = ["loss", "grad_norm", "step_ms", "tokens_per_s", "alloc_mib", "peak_alloc_mib", "peak_reserved_mib",
            "peak_alloc_forward_mib", "peak_alloc_backward_mib", "peak_alloc_optimizer_mib"]  # fmt: skip


def names(figure):
    return [trace.name for trace in figure.data]


def axis(figure):
    low, high = figure.layout.yaxis.range
    return low, high


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize(
    "steps",
    [sample_steps(0), sample_steps(3).assign(**dict.fromkeys(MEASURED, np.nan))],
    ids=["empty", "only NaN"],
)
def test_a_chart_without_a_finite_value_says_so(draw, steps):
    figure = draw(steps)
    assert not figure.data
    assert figure.layout.title.subtitle.text == "no steps recorded"


@pytest.mark.parametrize("draw", FIGURES)
def test_one_step_is_drawn_and_seen(draw):
    figure = draw(sample_steps(1))
    assert figure.data
    assert all(isinstance(trace, go.Bar) or trace.mode == "markers" for trace in figure.data)


@pytest.mark.parametrize("draw", FIGURES)
def test_a_run_that_was_cut_short_keeps_what_it_measured(draw):
    steps = sample_steps(20)
    steps[MEASURED] = steps[MEASURED].where(steps["step"] < 15)
    figure = draw(steps)
    assert "nan" not in str(figure.layout.to_plotly_json()).lower()
    for trace in figure.data:
        values, expected = (trace.x, 3) if isinstance(trace, go.Bar) else (trace.y, 14)
        assert np.isfinite(np.asarray(values, dtype=float)).sum() == expected


@pytest.mark.parametrize("draw", FIGURES)
def test_axes_name_their_units_and_thousands_are_separated(draw):
    figure = draw(sample_steps())
    unit = {"Loss": "nats per token", "Step time": "ms", "Gradient norm": "norm"}.get(figure.layout.title.text, "MiB")
    across, values = figure.layout.xaxis, figure.layout.yaxis
    if isinstance(figure.data[0], go.Bar):  # rows, whose names say what they are
        values = across
    else:
        assert across.title.text == "step"
    assert values.title.text.startswith(unit)
    assert values.tickformat.startswith(",") or values.type == "log"


def test_memory_draws_what_was_measured():
    steps = sample_steps()
    figure = memory_trend(steps)
    assert names(figure) == ["allocated after the step", "peak allocated in the step", "reserved"]
    for trace, column in zip(figure.data, ["alloc_mib", "peak_alloc_mib", "peak_reserved_mib"], strict=True):
        np.testing.assert_array_equal(trace.y, steps[column])
        np.testing.assert_array_equal(trace.x, steps["step"])


def test_a_gradient_norm_that_blows_up_is_drawn_and_marked():
    steps = sample_steps(30)
    steps.loc[steps["step"] == 12, "grad_norm"] = 1e6
    steps.loc[steps["step"] >= 17, "grad_norm"] = np.inf
    figure = grad_norm(steps)
    assert figure.layout.yaxis.type == "log"
    assert "highest 1,000,000" in figure.layout.title.subtitle.text
    assert "not finite from step 17" in [note.text for note in figure.layout.annotations]
    assert grad_norm(steps.assign(grad_norm=0.0)).layout.yaxis.type is None


def test_a_long_run_is_drawn_by_its_median_with_the_raw_trace_behind():
    steps = sample_steps(20_000)
    steps.loc[12_345, "step_ms"] = 9_000.0
    raw, median = step_time(steps).data
    assert len(raw.x) <= MOST_POINTS
    assert (12_346, 9_000.0) in zip(raw.x, raw.y, strict=True)
    assert len(raw.customdata) == len(raw.x)
    assert raw.opacity < 0.5
    near = steps["step_ms"].iloc[12_000:12_700].median()
    assert abs(np.interp(12_346, median.x, median.y) - near) < 0.2
    assert len(step_time(sample_steps(SMOOTHED_FROM - 1)).data) == 1


def test_charts_say_which_gates_they_show():
    steps = sample_steps()
    assert "trend_reserved" in memory_trend(steps).layout.meta["gates"]
    assert "loss_falls" in loss(steps).layout.meta["gates"]


def test_simulated_memory_is_labelled():
    figure = memory_trend(sample_steps(), simulated=True)
    assert "reserved (simulated)" in names(figure)
    assert "reserved (simulated)" in figure.bundle()["image/svg+xml"]


def test_warmup_is_shaded_over_its_steps():
    (band,) = memory_trend(sample_steps()).layout.shapes
    assert (band.x0, band.x1) == (0.5, 10.5)
    later = sample_steps().query("phase == 'step'")
    assert not memory_trend(later).layout.shapes


def test_a_near_limit_is_a_line_and_a_far_one_a_note():
    near = memory_trend(sample_steps(), limit_mib=2_000)
    assert 2_000 in [shape.y0 for shape in near.layout.shapes]
    assert axis(near)[1] > 2_000
    far = memory_trend(sample_steps(), limit_mib=70_000)
    assert 70_000 not in [shape.y0 for shape in far.layout.shapes]
    assert axis(far)[1] < 2_000
    assert "2.52 % of the limit 70,000 MiB" in far.layout.title.subtitle.text


@pytest.mark.parametrize("base_mib", [34, 1_762, 20_000])
def test_a_ten_percent_rise_is_seen_and_noise_is_not(base_mib):
    flat = np.full(90, float(base_mib))
    risen = flat * np.linspace(1, 1.1, 90)
    low, high = memory_range(risen, None)
    assert (risen[-1] - risen[0]) / (high - low) > 0.3
    noisy = flat * (1 + 0.002 * (np.arange(90) % 2))
    low, high = memory_range(noisy, None)
    assert np.ptp(noisy) / (high - low) < 0.01
    assert low < noisy.min() < noisy.max() < high


def test_a_loss_that_is_not_finite_is_marked_at_its_first_step():
    steps = sample_steps(30)
    steps.loc[steps["step"] >= 17, "loss"] = np.inf
    figure = loss(steps)
    assert "not finite from step 17" in [note.text for note in figure.layout.annotations]
    assert not loss(sample_steps(30).query("phase == 'step'")).layout.annotations


def test_step_time_keeps_the_scale_of_the_judged_steps_and_names_a_slow_warmup():
    steps = sample_steps()
    steps.loc[0, "step_ms"] = 60_000.0
    figure = step_time(steps)
    assert axis(figure)[1] < 200
    assert "slowest warm-up step 60,000 ms" in figure.layout.title.subtitle.text
    median = steps.loc[steps["phase"] == "step", "step_ms"].median()
    assert median in [shape.y0 for shape in figure.layout.shapes]


def test_phase_peaks_show_median_and_highest_of_each_phase():
    steps = sample_steps()
    steps.loc[50, "peak_alloc_forward_mib"] = 9_999.0
    median, highest = phase_peaks(steps).data
    assert median.x[0] == steps["peak_alloc_forward_mib"].median()
    assert highest.x[0] == 9_999.0
    assert list(highest.y) == ["forward", "backward", "optimizer"]


@pytest.mark.parametrize("draw", FIGURES)
def test_no_chart_offers_to_send_itself_to_a_server(draw):
    config = draw(sample_steps()).bundle()["application/vnd.plotly.v1+json"]["config"]
    assert config["showSendToCloud"] is False
    assert config["displaylogo"] is False


def test_a_chart_shows_itself_as_one_output(monkeypatch):
    shown = []
    monkeypatch.setattr(chart, "display", lambda bundle, raw, metadata: shown.append((bundle, raw)))
    figure = memory_trend(sample_steps())
    figure._ipython_display_()
    assert shown == [(figure.bundle(), True)]
    assert set(shown[0][0]) == {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"}


def test_show_passes_the_same_settings(monkeypatch):
    shown = {}
    monkeypatch.setattr("plotly.io.show", lambda figure, **options: shown.update(options))
    loss(sample_steps()).show()
    assert shown["config"] == CONFIG
