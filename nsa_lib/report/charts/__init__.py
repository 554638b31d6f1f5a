"""Frames -> Plotly charts: those that several notebooks draw; `chart` holds what all of them share."""

from nsa_lib.report.charts.attention_map import NOT_KEPT, gate_map, selection_map
from nsa_lib.report.charts.chart import CONFIG, Chart, nothing
from nsa_lib.report.charts.overlay import no_figures, over_runs, overlay
from nsa_lib.report.charts.prediction import prediction_figure
from nsa_lib.report.charts.selection_health import selection_chart, selection_table
from nsa_lib.report.charts.steps import grad_norm, loss, memory_range, memory_trend, phase_peaks, step_time

__all__ = [
    "CONFIG",
    "NOT_KEPT",
    "Chart",
    "gate_map",
    "grad_norm",
    "loss",
    "memory_range",
    "memory_trend",
    "no_figures",
    "nothing",
    "over_runs",
    "overlay",
    "phase_peaks",
    "prediction_figure",
    "selection_chart",
    "selection_map",
    "selection_table",
    "step_time",
]
