"""What every chart shares: look, axes, lines, marks, and how a chart shows itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import cycle

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display

from nsa_lib.contract.lines import folded
from nsa_lib.contract.thinning import stretches, thinned
from nsa_lib.report.charts.static import static_twin
from nsa_lib.report.session import session_mark

CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
"""Plotly's settings of every chart: no logo, and no button that sends a figure to a server."""

BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#b0528c", "#7a828c"
ORANGE, SKY = "#e69f00", "#56b4e9"
"""Okabe and Ito's palette, told apart by colour-blind readers; purple darkened to stand out on white."""

LINE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)

LINE_DASHES = ("solid", "dash", "dot", "longdash", "longdashdot")
"""One fewer than the colours: thirty lines pass before a colour comes again with the same dash."""

GRID = "rgba(128,128,128,0.22)"

TEMPLATE = go.layout.Template(
    layout={
        # A grey that is read on white and on black: JupyterLab does not repaint a chart for its theme.
        "font": {"family": "system-ui, Segoe UI, Roboto, Helvetica, Arial, sans-serif", "size": 13, "color": GREY},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "title": {
            "x": 0,
            "xref": "paper",
            "y": 0.98,
            "yanchor": "top",
            "font": {"size": 16, "weight": 600},
            "subtitle": {"font": {"size": 13}},
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 72, "r": 24, "t": 100, "b": 52},
        "height": 400,
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": GREY, "font": {"color": "#1f2328"}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE, "remove": ["lasso2d", "select2d"]},
        "xaxis": {
            "showgrid": False,
            "showline": True,
            "linecolor": GREY,
            "ticks": "outside",
            "tickcolor": GREY,
            "title": {"standoff": 8},
        },
        "yaxis": {"title": {"standoff": 8}, "gridcolor": GRID, "zeroline": False, "nticks": 7},
    }
)


class Chart(go.Figure):
    """A Plotly figure that shows itself with CONFIG, and as its static twin where a viewer has no Plotly."""

    def show(self, *args, **kwargs):
        """Show the chart as Plotly does, in a browser or a notebook, with CONFIG."""
        return super().show(*args, **{"config": CONFIG, **kwargs})

    def of_gates(self, *names: str) -> Chart:
        """Note that the chart shows what some gates judge: a report leads from them to it."""
        return self.update_layout(meta={**self.layout.meta, "gates": list(names)})

    def bundle(self) -> dict:
        """Return the notebook output: the figure, its static twin, and a line of text."""
        figure = {**json.loads(self.to_json()), "config": CONFIG}
        text = folded(self.layout.meta["description"])
        return {"application/vnd.plotly.v1+json": figure, "image/svg+xml": static_twin(self), "text/plain": text}

    def _ipython_display_(self):
        display(self.bundle(), raw=True, metadata=session_mark())


def looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a dash for each name, however many there are; a name given twice counts once."""
    return dict(zip(dict.fromkeys(names), zip(cycle(LINE_COLOURS), cycle(LINE_DASHES), strict=False), strict=False))


def finite(steps: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Return the finite values of some columns."""
    values = steps[columns].to_numpy(dtype=float).ravel()
    return values[np.isfinite(values)]


def empty_chart(title: str, unit: str, facts: str, legend: bool = True) -> Chart:
    """Return an empty chart. `facts` is the subtitle; title and subtitle are what a screen reader says."""
    heading = {"text": title, "subtitle": {"text": facts}}
    meta = {"description": f"{title}: {facts}"}
    figure = Chart(layout={"template": TEMPLATE, "title": heading, "meta": meta})
    if not legend:
        figure.update_layout(showlegend=False, margin={"t": 72}, height=360)
    figure.update_xaxes(title_text="step", tickformat=",d")
    figure.update_yaxes(title_text=unit, tickformat=",~r")
    return figure


def add_facts(figure: Chart, facts: str) -> Chart:
    """Add facts to a chart's subtitle, and to what a screen reader says."""
    said = f"{figure.layout.title.subtitle.text}; {escape(facts)}"
    figure.layout.title.subtitle.text = said
    return figure.update_layout(meta={**figure.layout.meta, "description": f"{figure.layout.title.text}: {said}"})


NOTHING_PX = 80
"""Height of a chart that is title and facts alone."""


def nothing(title: str, unit: str, facts: str = "no steps recorded") -> Chart:
    """Return a chart that says that there is nothing to draw."""
    figure = empty_chart(title, unit, facts, legend=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure.update_layout(height=NOTHING_PX, margin={"b": 0})


ROW_PX = 44
"""Height of a row in a chart with a row for each name."""


def rows_chart(title: str, unit: str, facts: str, names: Sequence[str]) -> Chart:
    """Return an empty chart with a row for each name, the first on top; values go to the right.

    Names stay readable and figures apart however many rows there are, also on a narrow page.
    """
    figure, rows = empty_chart(title, "", facts), list(dict.fromkeys(names))
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=rows, range=[len(rows) - 0.5, -0.5])
    figure.update_yaxes(tickvals=rows, ticklabelstandoff=6, automargin=True, showgrid=False, tickformat="")
    figure.update_xaxes(title_text=unit, tickformat=",~r", nticks=7, showgrid=True, gridcolor=GRID)
    height = TEMPLATE.layout.margin.t + TEMPLATE.layout.margin.b + ROW_PX * len(rows)
    return figure.update_layout(height=height, hovermode="closest")


def memory_rows(title: str, facts: str, names: Sequence[str], bars: Mapping[str, pd.Series]) -> Chart:
    """Draw memory [MiB] as two bars in a row for each name, each with its figure at its end.

    Args:
        title: of the chart.
        facts: under it.
        names: of the rows.
        bars: what each bar shows, and its value in each row.
    """
    figure = rows_chart(title, "MiB", facts, names)
    for (name, values), colour in zip(bars.items(), (BLUE, VERMILION), strict=True):
        texts = [f"{mib:,.0f}" if mib >= 1000 else f"{mib:,.4g}" for mib in values]
        bar = go.Bar(x=values, y=list(names), name=name, text=texts, marker={"color": colour}, orientation="h")
        figure.add_trace(bar.update(textposition="outside", hovertemplate="%{y}: %{x:,.1f} MiB"))
    # Room at the end of the longest bar for its figure.
    figure.update_xaxes(range=[0, 1.25 * max(values.max() for values in bars.values())])
    return figure


PEAKS = {"peak allocated": "peak_alloc_mib", "peak reserved": "peak_reserved_mib"}
"""Bars of a chart of peaks, and the columns that they show."""


LENGTH_AXIS = "sequence length S in tokens"


def log_ticks(values: Sequence[float]) -> str:
    """Return Plotly's word for the ticks of a logarithmic axis: 1, 2, 5 of a decade, or all digits of a short one."""
    return "D2" if max(values) > 5 * min(values) else "D1"


def log_log_chart(title: str, unit: str, facts: str, lengths: Sequence[int]) -> Chart:
    """Return an empty chart against the length, both axes logarithmic, with a tick at each length."""
    figure = empty_chart(title, unit, facts)
    ticks = {"tickvals": list(lengths), "ticktext": [f"{length:,}" for length in lengths]}
    figure.update_xaxes(type="log", title_text=LENGTH_AXIS, **ticks)
    figure.update_yaxes(type="log", dtick="D2", nticks=None)
    return figure


def points(x: Sequence, y: Sequence, name: str, colour: str, dash: str, unit: str) -> go.Scatter:
    """Return marked points with a line through them."""
    style = {"color": colour, "dash": dash, "width": 2}
    hover = f"%{{y:,.1f}} {unit}"
    return go.Scatter(
        x=x, y=y, name=name, mode="lines+markers", line=style, marker={"size": 7, "color": colour}, hovertemplate=hover
    )


MOST_POINTS = 1500
"""Points of a line: more than a chart has pixels across. A longer trace is thinned."""

SMOOTHED_FROM = 200
"""Steps from which on a trace is drawn faint behind its median: noise of as many steps is a band."""

MEDIANS = 300
"""Points of a median line."""


def line(steps: pd.DataFrame, column: str, name: str, colour: str, hover: str, **options) -> go.Scatter:
    """Return a line through a column's finite values, thinned if there are very many."""
    values = steps[column].to_numpy(dtype=float)
    values = np.where(np.isfinite(values), values, np.nan)
    shown = thinned(values, MOST_POINTS)
    if "customdata" in options:
        options["customdata"] = np.asarray(options["customdata"])[shown]
    # A line needs two points; a run that ended after one step still shows it.
    mode = "lines" if np.count_nonzero(np.isfinite(values)) > 1 else "markers"
    style = {"color": colour, "width": 2, "dash": options.pop("dash", "solid")}
    x = steps["step"].to_numpy()[shown]
    return go.Scatter(x=x, y=values[shown], name=name, mode=mode, line=style, hovertemplate=hover, **options)


def trace(steps: pd.DataFrame, column: str, name: str, colour: str, hover: str, **options) -> list[go.Scatter]:
    """Return a line through a column; of a long run the median around each step, and the line faint behind it."""
    raw = line(steps, column, name, colour, hover, **options)
    if len(steps) < SMOOTHED_FROM:
        return [raw]
    values = steps[column].astype(float).where(np.isfinite(steps[column].astype(float)))
    half = max(4, len(steps) // 200)
    centres = np.unique(np.linspace(0, len(steps) - 1, MEDIANS).astype(int))
    medians = [values.iloc[max(0, at - half) : at + half + 1].median() for at in centres]
    smooth = go.Scatter(x=steps["step"].to_numpy()[centres], y=medians, name=name, mode="lines", hoverinfo="skip")
    smooth.update(line={"color": colour, "width": 2, "dash": options.get("dash", "solid")}, legendgroup=name)
    return [raw.update(opacity=0.4, line={"width": 1, "dash": "solid"}, showlegend=False, legendgroup=name), smooth]


FEW_STEPS = 8
"""Steps up to which each has its tick: Plotly would put ticks between them and write each twice."""


def step_axis(figure: Chart, steps: pd.DataFrame) -> None:
    """Give a chart of steps its ticks, shade those of the warm-up, and say if not every step is drawn."""
    if len(steps) > MOST_POINTS:
        each = -(-len(steps) // stretches(MOST_POINTS))
        add_facts(figure, f"lowest and highest of every {each:,} steps; zoom in explore.ipynb draws each")
    if len(steps) and steps["step"].max() - steps["step"].min() < FEW_STEPS:
        figure.update_xaxes(dtick=1)
    warmup = steps.loc[steps["phase"] == "warmup", "step"]
    if len(warmup):
        label = {"text": "warm-up", "font": {"size": 12}}
        figure.add_vrect(
            x0=warmup.min() - 0.5,
            x1=warmup.max() + 0.5,
            fillcolor="rgba(128,128,128,0.14)",
            line_width=0,
            layer="below",
            annotation=label,
            annotation_position="bottom left",
        )


def mark(add_line: Callable, at: float, text: str, colour: str, dash: str = "dash") -> None:
    """Draw a labelled line across a chart with its `add_hline` or `add_vline`."""
    label = {"text": text, "font": {"color": colour}}
    add_line(at, line={"color": colour, "dash": dash, "width": 1.5}, annotation=label, annotation_position="top right")
