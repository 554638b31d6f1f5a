"""Frames -> Plotly charts, one file a notebook; `chart` holds what they share."""

from nsa_lib.charts.chart import CONFIG, Chart
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
    "Chart",
    "loss",
    "memory_range",
    "memory_trend",
    "memory_trend_svg",
    "peak_against_layers",
    "phase_peaks",
    "scaling_figures",
    "smoke_figures",
    "step_time",
]
