"""The charts and tables of several GPUs. Nothing is judged here."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from nsa_lib.contract.figures import short, signed_percent
from nsa_lib.report.charts.chart import GREEN, GREY, LINE_COLOURS, Chart, empty_chart, looks, nothing, rows_chart
from nsa_lib.report.table import Cell, Table
from nsa_lib.report.tables import beside_cell, format_mib, frame_table
from nsa_lib.runs.recorded import Recorded
from nsa_lib.workbook.several_gpus.cases import IN_TURN, ONE
from nsa_lib.workbook.several_gpus.measures import by_step, link_rows, memory_rows, ranks_of, stragglers

PARTS = {"state_mib": "state", "between_mib": "buckets and tables", "within_mib": "within a step"}
"""What the peak of a GPU consists of."""


def several_figures(run: Recorded) -> dict[str, Chart]:
    """Return the charts of a run on several GPUs: loss, memory, own_time, link."""
    return {
        "loss": loss_lines(run),
        "memory": memory_bars(memory_rows(run)),
        "own_time": own_time(run),
        "link": link_lines(link_rows(run), run.info["environment"].get("nvlink_gb_per_s")),
    }


def loss_lines(run: Recorded) -> Chart:
    """Draw the loss of one GPU, and the mean over the ranks of each strategy, which must lie on it."""
    lines = {name: run.of(name).set_index("step")["loss"].astype(float) for name in (ONE, IN_TURN)}
    for strategy in run.parameter("strategies"):
        ranks = by_step(run, strategy, "loss")
        if ranks is not None:
            lines[strategy] = ranks.astype(float).mean(axis=1)
    lines = {name: line for name, line in lines.items() if len(line)}
    if not lines:
        return nothing("Loss", "nats")
    last = "; ".join(f"{name} {line.iloc[-1]:.4f}" for name, line in lines.items())
    figure = empty_chart("Loss, one GPU and the mean over ranks", "nats", f"last step: {last}")
    return _draw(figure, lines)


def memory_bars(rows: pd.DataFrame) -> Chart:
    """Draw what the peak of a GPU consists of [MiB], alone and with each strategy, with and without checkpointing."""
    known = rows.dropna(subset=["peak_alloc_mib", *PARTS])
    if known.empty:
        return nothing("Memory of a GPU", "MiB", "no memory was measured")
    names = [_memory_name(row) for row in known.to_dict("records")]
    least = known.loc[known["peak_alloc_mib"].idxmin()]
    facts = f"least: {_memory_name(least)}, {least['peak_alloc_mib']:,.1f} MiB; the whole batch is the same in each row"
    figure = rows_chart("Peak allocated memory of a GPU", "MiB", facts, names)
    for (column, what), colour in zip(PARTS.items(), LINE_COLOURS, strict=False):
        bar = go.Bar(x=known[column], y=names, name=what, marker={"color": colour}, orientation="h")
        figure.add_trace(bar.update(hovertemplate="%{y}: %{x:,.1f} MiB"))
    predicted = known.dropna(subset=["predicted_mib"])
    marks = [_memory_name(row) for row in predicted.to_dict("records")]
    mark = {"color": GREY, "symbol": "line-ns-open", "size": 18, "line": {"width": 3}}
    figure.add_trace(go.Scatter(x=predicted["predicted_mib"], y=marks, name="predicted", mode="markers", marker=mark))
    return figure.update_layout(barmode="stack")


def _memory_name(row: Mapping) -> str:
    return f"{row['strategy']}, {'' if row['grad_checkpointing'] else 'not '}checkpointed"


def own_time(run: Recorded) -> Chart:
    """Draw the time [ms] that each rank spends in its own layers, a step: a straggler lies above the others."""
    lines = {}
    for strategy in run.parameter("strategies"):
        ranks = by_step(run, strategy, "own_ms") if len(ranks_of(run, strategy)) else None
        if ranks is not None:
            lines |= {f"{strategy}, rank {rank}": ranks[rank].astype(float) for rank in ranks}
    if not lines:
        return nothing("Own time of each rank", "ms")
    rows = stragglers(run)
    facts = "one rank alone" if rows.empty else f"slowest over the others: {signed_percent(100 * rows['slower'].max())}"
    figure = empty_chart("Time of each rank in its own layers", "ms", facts)
    return _draw(figure, lines).update_yaxes(rangemode="tozero")


def _draw(figure: Chart, lines: Mapping[str, pd.Series]) -> Chart:
    """Draw lines over the steps, each with a look of its own."""
    for (name, line), (colour, dash) in zip(lines.items(), looks(lines).values(), strict=True):
        figure.add_trace(go.Scatter(x=line.index, y=line, name=name, line={"color": colour, "dash": dash}))
    return figure.update_xaxes(title_text="step")


def link_lines(rows: pd.DataFrame, rate_gb_per_s: float | None) -> Chart:
    """Draw the bus bandwidth [GB/s] of each collective against the size, and the rate of the link where it is known."""
    if rows.empty:
        return nothing("Bandwidth of the collectives", "GB/s", "no collective was measured")
    fastest = rows.loc[rows["bus_gb_per_s"].idxmax()]
    facts = f"highest: {fastest['bus_gb_per_s']:,.2f} GB/s, {fastest['collective']} of {fastest['size_mib']:g} MiB"
    figure = empty_chart("Bandwidth of the collectives", "GB/s", facts)
    for (name, own), (colour, dash) in zip(
        rows.groupby("collective", sort=False), looks(rows["collective"]).values(), strict=True
    ):
        style = {"color": colour, "dash": dash}
        figure.add_trace(go.Scatter(x=own["size_mib"], y=own["bus_gb_per_s"], name=str(name), line=style))
    if rate_gb_per_s:
        figure.add_hline(rate_gb_per_s, line={"color": GREEN, "dash": "dash"}, annotation_text="NVLink, as nvidia-smi")
    sizes = sorted(set(rows["size_mib"]))
    ticks = {"tickvals": sizes, "ticktext": [short(size, 2) for size in sizes]}
    return figure.update_xaxes(title_text="size, MiB", type="log", **ticks)


def ranks_table(rows: pd.DataFrame) -> Table:
    """Tabulate what each rank of each training did (`measures.rank_rows`)."""
    columns = {
        "case_id": "case", "rank": "rank", "steps": "steps", "loss": "last loss, nats", "step_ms": "step, ms",
        "own_ms": "in its layers, ms", "peak_alloc_mib": "peak allocated, MiB",
        "peak_reserved_mib": "peak reserved, MiB",
    }  # fmt: skip
    return frame_table("Ranks; times are medians after the warm-up", rows, columns)


def memory_table(rows: pd.DataFrame) -> Table:
    """Tabulate what a GPU needs (`measures.memory_rows`), a row a strategy with and without checkpointing [MiB]."""
    heads = (
        "strategy", "checkpointed", "state, MiB", "activations, MiB", "buffers, MiB", "peak per GPU, MiB",
        "saved, MiB",
    )  # fmt: skip
    caption = (
        "What each GPU needs; state and peak: predicted → measured (difference). Saved: what one GPU alone needs "
        "more. State: parameters, gradients, "
        "optimizer; DDP's buckets hold the gradients. Activations and FSDP2's buffers, what it gathers and reduces, "
        "are those of the predicted peak: no meter tells them apart"
    )
    return Table(caption, heads, [_memory_cells(row) for row in rows.to_dict("records")])


def _memory_cells(row: Mapping) -> list[Cell]:
    return [
        Cell(row["strategy"]),
        Cell("yes" if row["grad_checkpointing"] else "no"),
        beside_cell(row["predicted_state_mib"], row["state_mib"]),
        Cell(format_mib(row["activations_mib"]), numeric=True),
        Cell(format_mib(row["communication_mib"]), numeric=True),
        beside_cell(row["predicted_mib"], row["peak_alloc_mib"], row["difference_percent"]),
        Cell("–" if row["strategy"] == ONE else format_mib(row["headroom_mib"]), numeric=True),
    ]


def link_table(rows: pd.DataFrame) -> Table:
    """Tabulate the collectives (`measures.link_rows`)."""
    columns = {"collective": "collective", "size_mib": "size, MiB", "step_ms": "time, ms", "bus_gb_per_s": "GB/s"}
    return frame_table(
        "Collectives: medians of the slowest rank; bus bandwidth as NCCL's tests define it", rows, columns
    )
