"""The charts of the production smoke."""

from __future__ import annotations

from nsa_lib.report.charts.chart import Chart
from nsa_lib.report.charts.prediction import prediction_figure
from nsa_lib.report.charts.steps import grad_norm, loss, memory_trend, phase_peaks, step_time
from nsa_lib.runs.recorded import Recorded


def smoke_figures(run: Recorded) -> dict[str, Chart]:
    """Return the charts of a smoke's training: memory, phases, prediction, loss, grad_norm, step_time."""
    rows = run.of("training")
    simulated = run.parameter("device") == "cpu"
    memory = memory_trend(rows, limit_mib=run.parameter("reserved_limit_mib"), simulated=simulated)
    return {
        "memory": memory.of_gates("peak_reserved", "memory_order", "trend_peak_alloc", "trend_reserved"),
        "phases": phase_peaks(rows),
        "prediction": prediction_figure(run, "training"),
        "loss": loss(rows).of_gates("loss_falls", "finite", "steps", "train_step"),
        "grad_norm": grad_norm(rows).of_gates("gradients"),
        "step_time": step_time(rows),
    }
