"""The charts of a backward scaling: time and memory against the length, allocator settings, and the predicted peak.

Logarithmic axes, so that a power law is a straight line and its slope the exponent. Nothing is judged here.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from nsa_lib.contract.figures import signed_percent
from nsa_lib.judgement.identity import counterpart
from nsa_lib.report.charts.chart import (
    BLUE,
    GREEN,
    GREY,
    PEAKS,
    PURPLE,
    VERMILION,
    Chart,
    empty_chart,
    log_log_chart,
    log_ticks,
    memory_rows,
    nothing,
    points,
)
from nsa_lib.report.charts.prediction import prediction_figure
from nsa_lib.report.table import Table
from nsa_lib.report.tables import frame_table
from nsa_lib.runs.recorded import Recorded
from nsa_lib.workbook.backward_scaling.measures import (
    allocator_rows,
    exponent_rows,
    layer_rows,
    length_rows,
    predicted_peak_mib,
)
from nsa_lib.workbook.profiles import SIZES_OF


def scaling_figures(run: Recorded) -> dict[str, Chart]:
    """Return the charts of a scaling: time, memory, allocator, layers, prediction (of the largest length)."""
    lengths, exponents = length_rows(run), exponent_rows(run)
    return {
        "time": time_against_length(lengths, exponents),
        "memory": memory_against_length(lengths, exponents),
        "allocator": allocator_bars(allocator_rows(run)),
        "layers": peak_against_layers(layer_rows(run)),
        "prediction": prediction_figure(run, f"s{run.parameter('seq_lens')[-1]}"),
    }


def time_against_length(lengths: pd.DataFrame, exponents: pd.DataFrame) -> Chart:
    """Draw the time [ms] of forward, backward and both against the length."""
    if lengths.empty:
        return nothing("Time against length", "ms")
    figure = log_log_chart("Time against length", "ms", _slope("both", exponents, "time"), lengths["seq_len"])
    for column, name, colour, dash in (
        ("forward_ms", "forward", BLUE, "dot"),
        ("backward_ms", "backward", VERMILION, "dash"),
        ("total_ms", "both", GREEN, "solid"),
    ):
        figure.add_trace(points(lengths["seq_len"], lengths[column], name, colour, dash, "ms"))
    figure.update_yaxes(dtick=log_ticks(lengths[["forward_ms", "backward_ms", "total_ms"]].to_numpy().ravel()))
    return figure


def memory_against_length(lengths: pd.DataFrame, exponents: pd.DataFrame) -> Chart:
    """Draw the peak memory [MiB] against the length: reserved, allocated, beyond parameters and gradients."""
    if lengths.empty:
        return nothing("Memory against length", "MiB")
    facts = _slope("beyond parameters and gradients", exponents, "memory")
    figure = log_log_chart("Memory against length", "MiB", facts, lengths["seq_len"])
    for column, name, colour, dash in (
        ("peak_reserved_mib", "peak reserved", GREEN, "dash"),
        ("peak_alloc_mib", "peak allocated", VERMILION, "solid"),
        ("beyond_mib", "peak allocated - parameters - gradients", PURPLE, "solid"),
        ("state_mib", "parameters and gradients", GREY, "dot"),
    ):
        values = lengths[column].where(lengths[column] > 0)
        figure.add_trace(points(lengths["seq_len"], values, name, colour, dash, "MiB"))
    return figure


def allocator_bars(settings: pd.DataFrame) -> Chart:
    """Draw allocated and reserved memory [MiB] under each allocator setting, for both kinds of work."""
    if settings.empty or settings["peak_reserved_mib"].isna().all():
        return nothing("Allocator settings", "MiB")
    highest = settings.loc[settings["ratio"].idxmax()]
    facts = f"reserved is at most {highest['ratio']:.2f}x the allocated: {_setting(highest)}"
    labels = [_setting(row) for _, row in settings.iterrows()]
    bars = {name: settings[column] for name, column in PEAKS.items()}
    return memory_rows("Peak memory under each allocator setting", facts, labels, bars)


def _setting(row: pd.Series) -> str:
    return f"{row['work']}, {row['setting']}"


def peak_against_layers(measured: pd.DataFrame, layers: int | None = None, peak_mib: float | None = None) -> Chart:
    """Draw the peak allocated memory [MiB] of train steps against the layers, and where each phase's line leads.

    Args:
        measured: rows of `layers` and `peak_alloc_mib`.
        layers: of the model whose peak is predicted, if any.
        peak_mib: what that model was measured at, if it was.
    """
    if measured.empty:
        return nothing("Peak against layers", "MiB")
    deepest = layers or int(measured["layers"].max())
    predicted = predicted_peak_mib(measured, deepest)
    facts = f"predicted for {deepest} layers: {predicted:,.0f} MiB" if predicted else "one point gives no line"
    if predicted and peak_mib:
        facts += f"; measured {peak_mib:,.0f} MiB, {signed_percent(100 * (predicted / peak_mib - 1))} off"
    figure = empty_chart("Peak against layers", "MiB", facts)
    if predicted:
        reach = list(range(deepest + 1))
        line = [predicted_peak_mib(measured, layers) for layers in reach]
        style = {"color": GREY, "dash": "dash", "width": 1.5}
        figure.add_trace(go.Scatter(x=reach, y=line, name="highest phase, extrapolated", mode="lines", line=style))
    figure.add_trace(points(measured["layers"], measured["peak_alloc_mib"], "train steps", BLUE, "solid", "MiB"))
    if peak_mib:
        smoke = points([deepest], [peak_mib], "the smoke", VERMILION, "solid", "MiB")
        figure.add_trace(smoke.update(marker={"symbol": "diamond", "size": 11}))
    figure.update_xaxes(title_text="layers", rangemode="tozero", dtick=-(-deepest // 12))
    figure.update_yaxes(rangemode="tozero")
    return figure


def _slope(what: str, exponents: pd.DataFrame, quantity: str) -> str:
    found = exponents[exponents["quantity"] == quantity]
    if found.empty:
        return f"{what}: no exponent, too few lengths"
    row = found.iloc[-1]
    said = f"{what}: exponent {row['exponent']:.2f} ({row['low']:.2f} to {row['high']:.2f}, 95 %)"
    return f"{said}, S {row['first']:,} to {row['last']:,}"


def lengths_table(lengths: pd.DataFrame) -> Table:
    """Tabulate the lengths of a backward scaling (`measures.length_rows`)."""
    columns = {
        "seq_len": "S, tokens", "forward_ms": "forward, ms", "backward_ms": "backward, ms", "total_ms": "both, ms",
        "spread_percent": "spread, %", "tokens_per_s": "tokens/s",
        "peak_alloc_forward_mib": "peak allocated forward, MiB",
        "peak_alloc_backward_mib": "peak allocated backward, MiB",
        "peak_reserved_forward_mib": "peak reserved forward, MiB",
        "peak_reserved_backward_mib": "peak reserved backward, MiB",
    }  # fmt: skip
    caption = "Medians of the counted iterations; spread is the interquartile range of both over its median"
    return frame_table(caption, lengths.round({"spread_percent": 1}), columns)


def exponents_table(exponents: pd.DataFrame) -> Table:
    """Tabulate fitted exponents with their intervals (`measures.exponent_rows`)."""
    columns = {
        "quantity": "quantity", "first": "from S", "last": "to S", "exponent": "exponent", "low": "95 % from",
        "high": "95 % to",
    }  # fmt: skip
    caption = (
        "Exponents b of y ~ S^b; memory is the peak allocated without parameters and gradients, which repeats exactly "
        "and so has an interval over several lengths alone"
    )
    return frame_table(caption, exponents.round(3), columns)


def allocator_table(settings: pd.DataFrame) -> Table:
    """Tabulate what each allocator setting costs (`measures.allocator_rows`)."""
    columns = {
        "work": "work", "setting": "setting", "alloc_conf": "alloc_conf", "status": "status",
        "peak_alloc_mib": "peak allocated, MiB", "peak_reserved_mib": "peak reserved, MiB",
        "ratio": "reserved over allocated",
    }  # fmt: skip
    return frame_table("Allocator settings", settings, columns)


def peak_prediction(run: Recorded, *, beside: str) -> Chart:
    """Draw the peak that a scaling's train steps predict for the profile's layers.

    Args:
        run: the scaling.
        beside: the notebook whose newest run of the same configuration has the measured peak.
    """
    other = counterpart(run, beside)
    measured = None if other is None else other.of("training")["peak_alloc_mib"].max()
    layers = int(SIZES_OF[run.info["profile"]]["layers"])
    return peak_against_layers(layer_rows(run), layers, measured)
