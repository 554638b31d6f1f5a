"""The static twin of a chart: an SVG for viewers that run no JavaScript, for Markdown, and for paper.

It is drawn from the Plotly figure itself, so that both show the same. It knows what our charts are made of: lines,
points, bars and heat maps (`static_traces`) on linear, logarithmic, named and date axes, with marks. matplotlib is
loaded when the first twin is drawn: a notebook that draws none need not wait for it.
"""

from __future__ import annotations

import io
import logging
import re
from dataclasses import dataclass
from html import unescape
from textwrap import fill

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nsa_lib.report.charts import static_traces

WIDTH_PX = 860

HEIGHT_SHARE = 0.8
"""Of a chart's height: nobody points into a twin, and three of them fit a sheet of paper."""

LEGEND_PX, LEGEND_MARK_PX, LETTER_PX = 780, 64, 7
"""Width of a legend, of an entry's line with the space around it, and of a letter of its name."""

TITLE_PX, LINE_PX = 13, 15
"""Of the letters of title and facts, and of a line of them."""

PX_PER_INCH = 72
"""matplotlib's SVG has a unit of a 72nd of an inch."""

INK = "#6b737c"
"""Read on white and on black."""

SETTINGS = {
    "svg.fonttype": "none", "svg.hashsalt": "nsa", "text.parse_math": False, "font.size": 12, "text.color": INK,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.spines.left": False, "legend.frameon": False,
    "grid.color": "#808080", "grid.alpha": 0.22, "axes.axisbelow": True, "axes.unicode_minus": False,
}  # fmt: skip
"""The same figure gives the same bytes, text stays text, and a dollar is no formula."""


@dataclass(frozen=True)
class Axis:
    """An axis of a Plotly figure, with the names that stand on it, if names do."""

    side: str
    """`x` or `y`."""
    asked: go.layout.XAxis | go.layout.YAxis
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, side: str, asked: go.layout.XAxis | go.layout.YAxis, traces: list) -> Axis:
        """Return the axis that some traces are drawn on."""
        values = [value for trace in traces if trace[side] is not None for value in trace[side]]
        names = dict.fromkeys([*(asked.categoryarray or ()), *values])
        named = asked.type != "date" and names and all(isinstance(name, str) for name in names)
        return cls(side, asked, tuple(names) if named else ())

    def places(self, values, count: int) -> np.ndarray:
        """Return where values stand: dates and names as numbers, and `count` places for values that are not given."""
        if values is None:
            return np.arange(count)
        if self.names:
            return np.array([self.names.index(value) for value in values], dtype=float)
        if self.asked.type == "date":
            from matplotlib.dates import date2num

            return date2num(pd.to_datetime(list(values), utc=True).to_numpy())
        return np.asarray(values, dtype=float)


def static_twin(chart: go.Figure) -> str:
    """Return a chart as an SVG of WIDTH_PX pixels, with its title and facts in it."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where HOME cannot be written it warns of its cache
    import matplotlib as mpl
    from matplotlib.figure import Figure

    layout = chart.layout
    title = _title(layout)
    height = HEIGHT_SHARE * (layout.height or layout.template.layout.height or 400)
    height = max(height, LINE_PX * (title.count("\n") + 2))
    numbers = sorted(name.removeprefix("xaxis") for name in layout if re.fullmatch(r"xaxis\d*", name)) or [""]
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH_PX / PX_PER_INCH, height / PX_PER_INCH), layout="constrained")
        if chart.data:
            panels = figure.subplots(1, len(numbers), squeeze=False, sharey=_share_y(layout, numbers))[0]
            for panel, number in zip(panels, numbers, strict=True):
                _draw_panel(panel, chart, number)
        if layout.coloraxis.colorscale:
            label = _plain(layout.coloraxis.colorbar.title.text)
            bar = figure.colorbar(panels[0].images[0], ax=list(panels), label=label)
            bar.outline.set_visible(False)
            if (ticks := layout.coloraxis.colorbar.tickvals) is not None:
                texts = layout.coloraxis.colorbar.ticktext
                bar.set_ticks(list(ticks), labels=None if texts is None else list(texts))
        figure.suptitle(title, x=0.012, ha="left", fontsize=TITLE_PX)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _slim(file.getvalue())


def _share_y(layout: go.Layout, numbers: list[str]) -> bool:
    """Tell whether panels beside each other are of one scale: those of two units are not."""
    return any(layout[f"yaxis{number}"].matches for number in numbers[1:])


def _title(layout: go.Layout) -> str:
    """Return title and facts as one text: two texts could lie over each other."""
    return f"{_plain(layout.title.text)}\n{fill(_plain(layout.title.subtitle.text), 120)}"


def _draw_panel(panel, chart: go.Figure, number: str) -> None:
    """Draw the traces and marks of one pair of axes, Plotly's `xaxis<number>` and `yaxis<number>`."""
    layout = chart.layout
    traces = [trace for trace in chart.data if (trace.xaxis or "x").removeprefix("x") == number]
    x, y = (Axis.of(side, layout[f"{side}axis{number}"], traces) for side in "xy")
    for axis in (x, y):
        _set_axis(panel, axis)
    static_traces.draw_bars(panel, [trace for trace in traces if trace.type == "bar"], x, y, layout.barmode)
    for trace in traces:
        if trace.type == "scatter":
            static_traces.draw_scatter(panel, trace, x, y)
        elif trace.type == "heatmap":
            static_traces.draw_heat_map(panel, trace, layout.coloraxis)
    if y.asked.scaleanchor:
        panel.set_aspect("equal")
    _draw_marks(panel, layout, number)
    for axis in (x, y):
        _set_range(panel, axis)
    labels = panel.get_legend_handles_labels()[1]
    if labels and layout.showlegend is not False and (layout.showlegend or len(labels) > 1):
        columns = max(1, min(len(labels), LEGEND_PX // (LEGEND_MARK_PX + LETTER_PX * max(map(len, labels)))))
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, handlelength=2.4)


def _set_axis(panel, axis: Axis) -> None:
    """Set scale, title and ticks of an axis."""
    from matplotlib import dates, ticker

    own, asked = getattr(panel, f"{axis.side}axis"), axis.asked
    own.set_label_text(_plain(asked.title.text))
    percent = "%" in (asked.tickformat or "")
    if asked.type == "log":
        (panel.set_xscale if axis.side == "x" else panel.set_yscale)("log")
        own.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        own.set_minor_locator(ticker.NullLocator())
    if asked.type == "date":
        own.set_major_locator(dates.AutoDateLocator())
        own.set_major_formatter(dates.ConciseDateFormatter(own.get_major_locator()))
    elif percent:
        own.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    else:
        own.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.6g}"))
    if axis.names:
        own.set_ticks(range(len(axis.names)), [static_traces.short(name) for name in axis.names])
    elif asked.tickvals is not None:
        own.set_ticks(list(asked.tickvals), list(asked.ticktext or asked.tickvals))
    elif isinstance(asked.dtick, int | float):
        own.set_major_locator(ticker.MultipleLocator(asked.dtick))
    elif asked.type not in ("log", "date"):
        own.set_major_locator(ticker.MaxNLocator(7, steps=(1, 2, 5, 10), integer=asked.tickformat in (",d", "d")))
    if asked.showticklabels is False:
        own.set_ticks([])
    if asked.visible is False:
        own.set_visible(False)
        panel.spines[:].set_visible(False)
    if asked.tickangle:
        for label in own.get_ticklabels():
            label.set(rotation=-asked.tickangle, ha="right", rotation_mode="anchor")
    own.grid((axis.side == "y" and asked.showgrid is not False) or bool(asked.showgrid))
    own.set_tick_params(length=4 if axis.side == "x" else 0)


def _set_range(panel, axis: Axis) -> None:
    """Set the ends of an axis, after its traces are drawn: those that are not asked for fit them."""
    asked, limit = axis.asked, panel.set_xlim if axis.side == "x" else panel.set_ylim
    low, high = panel.get_xlim() if axis.side == "x" else panel.get_ylim()
    if asked.range is not None:
        low, high = (10**end for end in asked.range) if asked.type == "log" else asked.range
    elif asked.rangemode == "tozero":
        low, high = min(low, 0), max(high, 0)
    elif asked.autorange == "reversed":
        low, high = high, low
    limit(low, high)


def _draw_marks(panel, layout: go.Layout, number: str) -> None:
    """Draw lines and bands across a panel, and its notes; one that belongs to no axis is a panel's title."""
    for shape in layout.shapes:
        if (shape.xref or "x").split()[0] not in (f"x{number}", "paper"):
            continue
        if shape.type == "rect":
            panel.axvspan(shape.x0, shape.x1, color="#808080", alpha=0.14, lw=0)
        else:
            across = panel.axhline if shape.y0 == shape.y1 else panel.axvline
            style = static_traces.DASHES.get(shape.line.dash, "solid")
            across(shape.y0 if shape.y0 == shape.y1 else shape.x0, color=shape.line.color, ls=style, lw=1.5)
    domain = layout[f"xaxis{number}"].domain or (0, 1)
    for note in layout.annotations:
        if note.xref == "paper":
            if domain[0] <= note.x <= domain[1]:
                panel.set_title(_plain(note.text), fontsize=13)
            continue
        sides = [(note.xref, panel.transAxes if "domain" in note.xref else panel.transData)]
        sides.append((note.yref, panel.transAxes if "domain" in note.yref else panel.transData))
        said = panel.annotate(
            _plain(note.text), (note.x, note.y), xycoords=tuple(transform for _, transform in sides),
            ha=note.xanchor or "center", va={"middle": "center"}.get(note.yanchor, note.yanchor or "bottom"),
            color=note.font.color or INK,
        )  # fmt: skip
        said.set_in_layout(False)  # it stands in the panel, which need not make room for it


def _plain(text: str | None) -> str:
    """Return a text of Plotly without its markup."""
    return unescape(re.sub(r"<br\s*/?>", " ", text or ""))


def _slim(svg: str) -> str:
    """Return an SVG without its preamble, and with coordinates of a tenth of a pixel, which halves it."""
    drawn = svg[svg.index("<svg") :]
    rounded = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), drawn)
    return re.sub(r"\s*<metadata>.*?</metadata>", "", rounded, flags=re.DOTALL)
