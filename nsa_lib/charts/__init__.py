"""Frames -> Plotly charts, one file a notebook; `chart` holds what they share."""

from nsa_lib.charts.chart import CONFIG, Chart
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
    "phase_peaks",
    "smoke_figures",
    "step_time",
]
