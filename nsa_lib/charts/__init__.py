"""Frames -> Plotly charts, one file a notebook; `chart` holds what they share."""

from nsa_lib.charts.capacity import capacity_curves, setting_curves, terms_chart
from nsa_lib.charts.chart import CONFIG, Chart, nothing
from nsa_lib.charts.contrast import contrast_figures
from nsa_lib.charts.explore import NOT_KEPT, gate_map, peak_by_phase, selection_map, slow_steps_chart
from nsa_lib.charts.overlay import no_figures, over_runs, overlay
from nsa_lib.charts.prediction import prediction_figure
from nsa_lib.charts.preflight import preflight_figures
from nsa_lib.charts.scaling import peak_against_layers, scaling_figures
from nsa_lib.charts.smoke import (
    loss,
    memory_range,
    memory_trend,
    memory_trend_svg,
    phase_peaks,
    smoke_figures,
    step_time,
)

__all__ = [
    "CONFIG",
    "NOT_KEPT",
    "Chart",
    "capacity_curves",
    "contrast_figures",
    "gate_map",
    "loss",
    "memory_range",
    "memory_trend",
    "memory_trend_svg",
    "no_figures",
    "nothing",
    "over_runs",
    "overlay",
    "peak_against_layers",
    "peak_by_phase",
    "phase_peaks",
    "prediction_figure",
    "preflight_figures",
    "scaling_figures",
    "selection_map",
    "setting_curves",
    "slow_steps_chart",
    "smoke_figures",
    "step_time",
    "terms_chart",
]
