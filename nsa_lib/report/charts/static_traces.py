"""The traces of a static twin: lines, points, bars and heat maps of a Plotly figure, drawn by matplotlib."""

from __future__ import annotations

from html import unescape

import numpy as np
import plotly.graph_objects as go

DASHES = {
    "dash": (0, (6, 3)), "dot": (0, (1.5, 2.5)), "longdash": (0, (10, 3)), "dashdot": (0, (6, 3, 1.5, 3)),
    "longdashdot": (0, (10, 3, 1.5, 3)),
}  # fmt: skip
"""matplotlib's patterns, as long as Plotly's."""

MARKERS = {"diamond": "D", "square": "s", "triangle-up": "^", "x": "x", "star": "*"}

OFFSETS = {"top": 7, "bottom": -7, "middle": 0}
"""Distance of a text from its point, in pixels."""

LONGEST_NAME = 60

BAR_SHARE = 0.8
"""Part of its row that a group of bars fills."""


def draw_scatter(panel, trace: go.Scatter, x, y) -> None:
    """Draw a line, its points, their whiskers and their texts."""
    count = len(trace.x if trace.x is not None else trace.y)
    across, up = x.places(trace.x, count), y.places(trace.y, count)
    mode, colour = trace.mode or "lines", trace.line.color or trace.marker.color
    marked = {"marker": MARKERS.get(trace.marker.symbol, "o"), "ms": 0.75 * (trace.marker.size or 8)}
    if trace.marker.line.width:
        marked |= {"mec": trace.marker.line.color, "mew": trace.marker.line.width, "mfc": trace.marker.color}
    panel.plot(
        across, up, color=colour, alpha=trace.opacity, label=_label(trace), lw=trace.line.width or 2,
        ls=DASHES.get(trace.line.dash, "solid") if "lines" in mode else "none", solid_capstyle="round",
        **(marked if "markers" in mode else {}),
    )  # fmt: skip
    for name, given in (("xerr", trace.error_x), ("yerr", trace.error_y)):
        if given.array is not None:
            below = given.array if given.arrayminus is None else given.arrayminus
            whiskers = {name: np.abs([below, given.array]).astype(float)}
            panel.errorbar(across, up, fmt="none", ecolor=given.color or colour, elinewidth=1.5, capsize=3, **whiskers)
    if "text" in mode:
        offset = OFFSETS[(trace.textposition or "middle center").split()[0]]
        for place, text in zip(zip(across, up, strict=True), trace.text, strict=True):
            side = "bottom" if offset > 0 else "top"
            panel.annotate(text, place, (0, offset), textcoords="offset points", ha="center", va=side, color=colour)


def draw_bars(panel, bars: list[go.Bar], x, y, barmode: str | None) -> None:
    """Draw bars beside each other or, stacked, on each other, with the texts at their ends."""
    begin: dict[float, float] = {}
    thick = BAR_SHARE if barmode == "stack" else BAR_SHARE / max(len(bars), 1)
    for number, bar in enumerate(bars):
        flat = bar.orientation == "h"
        names, lengths = (bar.y, bar.x) if flat else (bar.x, bar.y)
        rows = (y if flat else x).places(names, len(lengths))
        lengths = np.asarray(lengths, dtype=float)
        starts = np.zeros(len(rows))
        if barmode == "stack":
            starts = np.array([begin.get(row, 0.0) for row in rows])
            begin |= dict(zip(rows, starts + np.nan_to_num(lengths), strict=True))
        else:
            rows = rows + thick * (number - (len(bars) - 1) / 2)
        style = {"color": bar.marker.color, "label": _label(bar)}
        if flat:
            panel.barh(rows, lengths, thick, left=starts, **style)
        else:
            panel.bar(rows, lengths, thick, bottom=starts, **style)
        for row, length, text in zip(
            rows, lengths, bar.text if bar.text is not None else [""] * len(rows), strict=True
        ):
            if text and np.isfinite(length):
                panel.annotate(text, (length, row), (4, 0), textcoords="offset points", va="center", fontsize=11)


def draw_heat_map(panel, trace: go.Heatmap, coloraxis: go.layout.Coloraxis) -> None:
    """Draw a heat map as an image in the colours of its axis, with the values in its cells if they are asked for."""
    from matplotlib.colors import LinearSegmentedColormap

    values = np.array(trace.z, dtype=float)
    colours = LinearSegmentedColormap.from_list("asked", [tuple(stop) for stop in coloraxis.colorscale])
    style = {"cmap": colours, "vmin": coloraxis.cmin, "vmax": coloraxis.cmax}
    panel.imshow(values, **style, aspect="auto", origin="lower", interpolation="nearest")
    if trace.texttemplate:
        for (row, column), value in np.ndenumerate(values):
            ink = "black" if value > 0.6 else "white"
            panel.annotate(f"{value:.2f}", (column, row), ha="center", va="center", color=ink, fontsize=10)


def _label(trace: go.Scatter | go.Bar) -> str:
    """Return what a legend calls a trace; matplotlib leaves out what begins with an underscore."""
    return "_" if trace.showlegend is False or not trace.name else short(unescape(trace.name))


def short(name: str) -> str:
    """Return a name that leaves room for the chart."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
