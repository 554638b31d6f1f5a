"""The charts of a smoke: the steps of one case -> a Plotly chart, or an SVG for viewers that have no Plotly.

Every function takes the rows of one case, as in `steps.csv`, and draws what is there: a run that was cut short gives a
shorter chart, one without a finite value gives a chart that says so. Memory is in MiB. Nothing is judged here.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from nsa_lib.contract.figures import short
from nsa_lib.report.charts.chart import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILION,
    Chart,
    empty_chart,
    finite,
    log_ticks,
    mark,
    memory_rows,
    nothing,
    step_axis,
    trace,
)

MIN_SPAN = 0.25
"""Least height of a memory axis, as a share of its top. From 0, the 10 % rise that fails a run is hard to see beside a
tall empty area; fitted to the data, noise of 0.1 % looks like a cliff. At a quarter, a flat curve that rises by 10 %
climbs a third of the height, and 0.2 %, the tolerance of the trend gate, stays under 1 % of it."""

LIMIT_REACH = 1.35
"""A limit is drawn as a line up to this many times the highest value; above, it would flatten the curves."""


def memory_trend(steps: pd.DataFrame, *, limit_mib: float | None = None, simulated: bool = False) -> Chart:
    """Draw memory [MiB] over the steps: allocated after the step, its peak within the step, and reserved.

    The warm-up is shaded. `limit_mib` is a line where it fits the scale and a note where it does not. `simulated`
    labels reserved memory that comes from the allocator simulation.
    """
    series = _memory_series(simulated)
    values = finite(steps, [column for column, *_ in series])
    if not values.size:
        return nothing("Memory", "MiB")
    facts = f"highest {values.max():,.0f} MiB"
    if limit_mib is not None:
        facts += f", {short(100 * values.max() / limit_mib, 3)} % of the limit {limit_mib:,.0f} MiB"
    figure = empty_chart("Memory", "MiB", facts)
    for column, name, colour, dash in series:
        figure.add_traces(trace(steps, column, name, colour, "%{y:,.1f} MiB", dash=dash))
    step_axis(figure, steps)
    low, high = memory_range(values, limit_mib)
    figure.update_yaxes(range=[low, high], title_text="MiB" if low == 0 else f"MiB (axis starts at {short(low, 2)})")
    if limit_mib is not None and limit_mib <= high:
        mark(figure.add_hline, limit_mib, f"limit {limit_mib:,.0f} MiB", GREY, dash="solid")
    return figure.of_gates("peak_reserved", "memory_order", "trend_peak_alloc", "trend_reserved")


def loss(steps: pd.DataFrame) -> Chart:
    """Draw the loss [nats per token] over the steps; the first step whose loss is not finite is marked."""
    values = finite(steps, ["loss"])
    if not values.size:
        return nothing("Loss", "nats per token")
    figure = empty_chart("Loss", "nats per token", f"{values[0]:.3f} at first, {values[-1]:.3f} at last", legend=False)
    figure.add_traces(trace(steps, "loss", "loss", BLUE, "%{y:.4f}"))
    figure.update_yaxes(tickformat=",.4~r")
    step_axis(figure, steps)
    _mark_not_finite(figure, steps, "loss")
    return figure.of_gates("loss_falls", "finite", "steps")


def grad_norm(steps: pd.DataFrame) -> Chart:
    """Draw the norm of all gradients over the steps, on a logarithmic axis: a blow-up is one of orders of magnitude."""
    values = finite(steps, ["grad_norm"])
    if not values.size:
        return nothing("Gradient norm", "norm")
    settled = finite(steps[steps["phase"] == "step"], ["grad_norm"])
    median = np.median(settled if settled.size else values)
    facts = f"median {short(median, 3)}, highest {short(values.max(), 3)}"
    figure = empty_chart("Gradient norm", "norm", facts, legend=False)
    figure.add_traces(trace(steps, "grad_norm", "gradient norm", PURPLE, "%{y:,.4g}"))
    if values.min() > 0:
        figure.update_yaxes(type="log", title_text="norm, logarithmic", dtick=log_ticks(values))
        figure.update_yaxes(nticks=None, tickformat="~g")
    step_axis(figure, steps)
    _mark_not_finite(figure, steps, "grad_norm")
    return figure.of_gates("gradients")


def _mark_not_finite(figure: Chart, steps: pd.DataFrame, column: str) -> None:
    broken = steps.loc[~np.isfinite(steps[column].astype(float)), "step"]
    if len(broken):
        mark(figure.add_vline, broken.iloc[0], f"not finite from step {broken.iloc[0]:,}", VERMILION)


def step_time(steps: pd.DataFrame) -> Chart:
    """Draw the time of each step [ms] with its median after warm-up; tokens per second are shown on hover.

    The scale is that of the steps after warm-up; a slower warm-up step is named in the title instead.
    """
    if not finite(steps, ["step_ms"]).size:
        return nothing("Step time", "ms")
    judged = steps[(steps["phase"] == "step") & np.isfinite(steps["step_ms"].astype(float))]
    shown = judged if len(judged) else steps
    median, rate = shown["step_ms"].median(), shown["tokens_per_s"].median()
    facts = f"median {median:,.1f} ms, {rate:,.0f} tokens/s"
    top, slowest = 1.25 * shown["step_ms"].max(), steps["step_ms"].max()
    if slowest > top:
        facts += f"; slowest warm-up step {slowest:,.0f} ms, above the scale"
    figure = empty_chart("Step time", "ms", facts, legend=False)
    hover = "%{y:,.1f} ms, %{customdata:,.0f} tokens/s"
    figure.add_traces(trace(steps, "step_ms", "step", BLUE, hover, customdata=steps["tokens_per_s"]))
    figure.update_yaxes(range=[0, top])
    mark(figure.add_hline, median, "median", VERMILION)
    step_axis(figure, steps)
    return figure


def phase_peaks(steps: pd.DataFrame) -> Chart:
    """Draw the peak allocated memory [MiB] of forward, backward and optimizer: the steps' median and their highest."""
    phases = [p for p in ("forward", "backward", "optimizer") if finite(steps, [f"peak_alloc_{p}_mib"]).size]
    columns = [f"peak_alloc_{phase}_mib" for phase in phases]
    if not phases:
        return nothing("Peak allocated by phase", "MiB")
    highest = steps[columns].max()
    facts = f"highest in {phases[highest.argmax()]}, {highest.max():,.0f} MiB"
    bars = {"median of the steps": steps[columns].median(), "highest": highest}
    return memory_rows("Peak allocated by phase", facts, phases, bars)


def memory_range(values: np.ndarray, limit_mib: float | None) -> tuple[float, float]:
    """Return the ends of a memory axis [MiB] that holds `values`, and the limit if it is near."""
    high = float(np.max(values))
    if limit_mib is not None and limit_mib <= LIMIT_REACH * high:
        high = max(high, limit_mib)
    span = max(high - float(np.min(values)), MIN_SPAN * high, 1e-3)
    return max(0.0, high - 1.08 * span), high + 0.08 * span


def _memory_series(simulated: bool) -> list[tuple[str, str, str, str]]:
    return [
        ("alloc_mib", "allocated after the step", BLUE, "dot"),
        ("peak_alloc_mib", "peak allocated in the step", VERMILION, "solid"),
        ("peak_reserved_mib", "reserved (simulated)" if simulated else "reserved", GREEN, "dash"),
    ]
