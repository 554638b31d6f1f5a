"""The steps of one case -> a Plotly chart, or an SVG for viewers that have no Plotly.

Every function takes the rows of one case, as in `steps.csv`, and draws what is there: a run that was cut short gives a
shorter chart, one without a finite value gives a chart that says so. Memory is in MiB. Nothing is judged here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display

CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
"""Plotly's settings of every chart: no logo, and no button that sends a figure to a server."""

BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#b0528c", "#7a828c"
"""Okabe and Ito's palette, told apart by colour-blind readers; purple darkened to stand out on white."""

MIN_SPAN = 0.25
"""Least height of a memory axis, as a share of its top. From 0, the 10 % rise that fails a run is hard to see beside a
tall empty area; fitted to the data, noise of 0.1 % looks like a cliff. At a quarter, a flat curve that rises by 10 %
climbs a third of the height, and 0.2 %, the tolerance of the trend gate, stays under 1 % of it."""

LIMIT_REACH = 1.35
"""A limit is drawn as a line up to this many times the highest value; above, it would flatten the curves."""

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
        "yaxis": {"title": {"standoff": 8}, "gridcolor": "rgba(128,128,128,0.22)", "zeroline": False, "nticks": 7},
    }
)


class Chart(go.Figure):
    """A Plotly figure that shows itself with CONFIG, and with `svg` where a viewer has no Plotly."""

    _svg: str | None = None

    def show(self, *args, **kwargs):
        """Show the chart as Plotly does, in a browser or a notebook, with CONFIG."""
        return super().show(*args, **{"config": CONFIG, **kwargs})

    def bundle(self) -> dict:
        """Return the notebook output: the figure, the SVG if there is one, and a line of text."""
        alternatives = {"image/svg+xml": self._svg} if self._svg else {}
        figure = {**json.loads(self.to_json()), "config": CONFIG}
        text = self.layout.meta["description"]
        return {"application/vnd.plotly.v1+json": figure, **alternatives, "text/plain": text}

    def _ipython_display_(self):
        display(self.bundle(), raw=True)


def memory_trend(steps: pd.DataFrame, *, limit_mib: float | None = None, simulated: bool = False) -> Chart:
    """Draw memory [MiB] over the steps: allocated after the step, its peak within the step, and reserved.

    The warm-up is shaded. `limit_mib` is a line where it fits the scale and a note where it does not. `simulated`
    labels reserved memory that comes from the allocator simulation.
    """
    series = _memory_series(simulated)
    values = _finite(steps, [column for column, *_ in series])
    if not values.size:
        return _nothing("Memory", "MiB")
    facts = f"highest {values.max():,.0f} MiB"
    if limit_mib is not None:
        facts += f", {100 * values.max() / limit_mib:,.3g} % of the limit {limit_mib:,.0f} MiB"
    figure = _chart("Memory", "MiB", facts)
    figure._svg = memory_trend_svg(steps, limit_mib=limit_mib, simulated=simulated)
    for column, name, colour, dash in series:
        figure.add_trace(_line(steps, column, name, colour, "%{y:,.1f} MiB", dash=dash))
    _shade_warmup(figure, steps)
    low, high = memory_range(values, limit_mib)
    figure.update_yaxes(range=[low, high], title_text="MiB" if low == 0 else f"MiB (axis starts at {low:,.0f})")
    if limit_mib is not None and limit_mib <= high:
        _mark(figure.add_hline, limit_mib, f"limit {limit_mib:,.0f} MiB", GREY, dash="solid")
    return figure


def loss(steps: pd.DataFrame) -> Chart:
    """Draw the loss [nats per token] over the steps; the first step whose loss is not finite is marked."""
    values = _finite(steps, ["loss"])
    if not values.size:
        return _nothing("Loss", "nats per token")
    figure = _chart("Loss", "nats per token", f"{values[0]:.3f} at first, {values[-1]:.3f} at last", legend=False)
    figure.add_trace(_line(steps, "loss", "loss", BLUE, "%{y:.4f}"))
    figure.update_yaxes(tickformat=",.4~r")
    _shade_warmup(figure, steps)
    broken = steps.loc[~np.isfinite(steps["loss"].astype(float)), "step"]
    if len(broken):
        _mark(figure.add_vline, broken.iloc[0], f"not finite from step {broken.iloc[0]:,}", VERMILION)
    return figure


def step_time(steps: pd.DataFrame) -> Chart:
    """Draw the time of each step [ms] with its median after warm-up; tokens per second are shown on hover.

    The scale is that of the steps after warm-up; a slower warm-up step is named in the title instead.
    """
    if not _finite(steps, ["step_ms"]).size:
        return _nothing("Step time", "ms")
    judged = steps[(steps["phase"] == "step") & np.isfinite(steps["step_ms"].astype(float))]
    shown = judged if len(judged) else steps
    median, rate = shown["step_ms"].median(), shown["tokens_per_s"].median()
    facts = f"median {median:,.1f} ms, {rate:,.0f} tokens/s"
    top, slowest = 1.25 * shown["step_ms"].max(), steps["step_ms"].max()
    if slowest > top:
        facts += f"; slowest warm-up step {slowest:,.0f} ms, above the scale"
    figure = _chart("Step time", "ms", facts, legend=False)
    hover = "%{y:,.1f} ms, %{customdata:,.0f} tokens/s"
    figure.add_trace(_line(steps, "step_ms", "step", BLUE, hover, customdata=steps["tokens_per_s"]))
    figure.update_yaxes(range=[0, top])
    _mark(figure.add_hline, median, "median", VERMILION)
    _shade_warmup(figure, steps)
    return figure


def phase_peaks(steps: pd.DataFrame) -> Chart:
    """Draw the peak allocated memory [MiB] of forward, backward and optimizer: the steps' median and their highest."""
    phases = ("forward", "backward", "optimizer")
    columns = [f"peak_alloc_{phase}_mib" for phase in phases]
    if not _finite(steps, columns).size:
        return _nothing("Peak allocated by phase", "MiB")
    highest = steps[columns].max()
    figure = _chart(
        "Peak allocated by phase", "MiB", f"highest in {phases[highest.argmax()]}, {highest.max():,.0f} MiB"
    )
    for name, peaks, colour in (("median", steps[columns].median(), BLUE), ("highest", highest, VERMILION)):
        texts = [f"{peak:,.0f}" for peak in peaks]
        bar = go.Bar(x=phases, y=peaks, name=name, text=texts, hovertemplate="%{y:,.1f} MiB", marker={"color": colour})
        figure.add_trace(bar.update(textposition="outside", cliponaxis=False))
    figure.update_xaxes(title_text="phase of the step", tickformat="")
    figure.update_layout(bargap=0.5)
    return figure


def memory_range(values: np.ndarray, limit_mib: float | None) -> tuple[float, float]:
    """Return the ends of a memory axis [MiB] that holds `values`, and the limit if it is near."""
    high = float(np.max(values))
    if limit_mib is not None and limit_mib <= LIMIT_REACH * high:
        high = max(high, limit_mib)
    span = max(high - float(np.min(values)), MIN_SPAN * high, 1e-3)
    return max(0.0, high - 1.08 * span), high + 0.08 * span


def memory_trend_svg(steps: pd.DataFrame, *, limit_mib: float | None = None, simulated: bool = False) -> str:
    """Return the memory trend as an SVG image of at most 8 kB, for viewers that run no JavaScript."""
    series = _memory_series(simulated)
    values = _finite(steps, [column for column, *_ in series])
    if not values.size:
        return _svg("Memory: no steps recorded", '<text x="330" y="120" text-anchor="middle">no steps recorded</text>')
    low, high = memory_range(values, limit_mib)
    first, last = float(steps["step"].min()), float(steps["step"].max())

    def x(step):
        return 72 + 560 * (step - first) / max(last - first, 1)

    def y(mib):
        return 196 - 152 * (mib - low) / (high - low)

    parts = [_svg_rule(y(tick), f"{tick:,.0f}", opacity=0.2) for tick in np.linspace(low, high, 5)]
    ends = [(first, "start"), (last, "end")] if last > first else [(first, "middle")]
    parts += [f'<text x="{x(step):.0f}" y="214" text-anchor="{side}">{step:,.0f}</text>' for step, side in ends]
    parts.append(
        '<text x="352" y="232" text-anchor="middle">step</text><text x="66" y="32" text-anchor="end">MiB</text>'
    )
    for (column, name, colour, dash), left in zip(series, (72, 262, 462)):
        points = [(x(step), y(mib)) for step, mib in _thinned(steps, column)]
        parts.append(_svg_line(points, colour, dash) + _svg_line([(left, 12), (left + 22, 12)], colour, dash))
        parts.append(f'<text x="{left + 28}" y="16">{escape(name)}</text>')
    if limit_mib is not None and limit_mib <= high:
        parts.append(_svg_rule(y(limit_mib), "limit", opacity=1))
    elif limit_mib is not None:
        parts.append(f'<text x="632" y="36" text-anchor="end">limit {limit_mib:,.0f} is above the scale</text>')
    return _svg(f"Memory in MiB, steps {first:,.0f} to {last:,.0f}, highest {values.max():,.0f} MiB", "".join(parts))


def _memory_series(simulated: bool) -> list[tuple[str, str, str, str]]:
    return [
        ("alloc_mib", "allocated after the step", BLUE, "dot"),
        ("peak_alloc_mib", "peak allocated in the step", VERMILION, "solid"),
        ("peak_reserved_mib", "reserved (simulated)" if simulated else "reserved", GREEN, "dash"),
    ]


def _finite(steps: pd.DataFrame, columns: list[str]) -> np.ndarray:
    values = steps[columns].to_numpy(dtype=float).ravel()
    return values[np.isfinite(values)]


def _chart(title: str, unit: str, facts: str, legend: bool = True) -> Chart:
    """Return an empty chart; `facts` stand under its title and, with it, are read to who cannot see the chart."""
    heading = {"text": title, "subtitle": {"text": facts}}
    figure = Chart(layout={"template": TEMPLATE, "title": heading, "meta": {"description": f"{title}: {facts}"}})
    if not legend:
        figure.update_layout(showlegend=False, margin={"t": 72}, height=360)
    figure.update_xaxes(title_text="step", tickformat=",d")
    figure.update_yaxes(title_text=unit, tickformat=",~r")
    return figure


def _nothing(title: str, unit: str) -> Chart:
    figure = _chart(title, unit, "no steps recorded", legend=False)
    figure.update_xaxes(range=[0, 1], showticklabels=False)
    figure.update_yaxes(range=[0, 1], showticklabels=False)
    return figure


def _line(steps: pd.DataFrame, column: str, name: str, colour: str, hover: str, **options) -> go.Scatter:
    finite = steps[column].where(np.isfinite(steps[column].astype(float)))
    # A line needs two points; a run that ended after one step still shows it.
    mode = "lines" if finite.count() > 1 else "markers"
    line = {"color": colour, "width": 2, "dash": options.pop("dash", "solid")}
    return go.Scatter(x=steps["step"], y=finite, name=name, mode=mode, line=line, hovertemplate=hover, **options)


def _shade_warmup(figure: Chart, steps: pd.DataFrame) -> None:
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


def _mark(add_line: Callable, at: float, text: str, colour: str, dash: str = "dash") -> None:
    """Draw a labelled line across a chart with its `add_hline` or `add_vline`."""
    label = {"text": text, "font": {"color": colour}}
    add_line(at, line={"color": colour, "dash": dash, "width": 1.5}, annotation=label, annotation_position="top right")


def _thinned(steps: pd.DataFrame, column: str, points: int = 100) -> list[tuple[float, float]]:
    """Return at most `points` (step, MiB), the highest of each bucket so that no spike is lost."""
    finite = steps[np.isfinite(steps[column].astype(float))]
    buckets = np.arange(len(finite)) * points // max(len(finite), points)
    highest = finite.groupby(buckets)[column].idxmax()
    return list(finite.loc[highest, ["step", column]].itertuples(index=False, name=None))


def _svg(title: str, body: str) -> str:
    # The grey is for viewers that show the SVG as an image, where the page's colour does not reach.
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 240" role="img" width="640" height="240" '
        f'color="{GREY}" fill="currentColor" font-family="system-ui, sans-serif" font-size="12">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def _svg_rule(y: float, label: str, opacity: float) -> str:
    rule = f'<path d="M72 {y:.1f}H632" stroke="currentColor" stroke-opacity="{opacity}"/>'
    return f'{rule}<text x="66" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


def _svg_line(points: list[tuple[float, float]], colour: str, dash: str) -> str:
    dashes = {"solid": "", "dash": "6 3", "dot": "2 3"}[dash]
    path = " ".join(f"{x:.0f},{y:.1f}" for x, y in points)
    # A round cap keeps a single point visible.
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linecap="round" '
        f'stroke-dasharray="{dashes}"/>'
    )
