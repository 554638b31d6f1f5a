"""The charts of the production smoke."""

from __future__ import annotations

from nsa_lib.report.charts.chart import Chart
from nsa_lib.report.charts.prediction import prediction_figure
from nsa_lib.report.charts.selection_health import selection_chart
from nsa_lib.report.charts.steps import grad_norm, loss, memory_trend, phase_peaks, step_time
from nsa_lib.runs.recorded import Recorded


def smoke_figures(run: Recorded) -> dict[str, Chart]:
    """Return the charts of a smoke's training: memory, phases, prediction, loss, grad_norm,
    selection, step_time."""
    rows = run.of("training")
    simulated = run.parameter("device") == "cpu"
    return {
        "memory": memory_trend(rows, limit_mib=run.parameter("reserved_limit_mib"), simulated=simulated),
        "phases": phase_peaks(rows),
        "prediction": prediction_figure(run, "training"),
        "loss": loss(rows),
        "grad_norm": grad_norm(rows),
        "selection": selection_chart(run),
        "step_time": step_time(rows),
    }
