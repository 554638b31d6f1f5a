"""Charts of what the attention looks at: which blocks queries select, and how open the branch gates are."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from nsa_lib.report.charts.chart import TEMPLATE, Chart, empty_chart, nothing
from nsa_lib.runs.recorded import Recorded
from nsa_lib.subject.config import ConfigError

NOT_KEPT = (
    "this run kept no attention map; the training of a smoke that ends well does, of a user's attention if it has "
    "select(x) and branch_gates(x)"
)

SHARES = {"colorscale": "Cividis", "cmin": 0, "cmax": 1}
"""Colours from 0 to 1 that colour-blind readers tell apart, the same in every chart."""

LEGEND_PX = 64
"""Height of the legend of colours below a heat map."""

CELLS_WITH_TEXT = 6
"""Cells beside each other in a panel that still have room for their value."""

BRANCH_WORDS = {"cmp": "compressed", "slc": "selected", "win": "sliding"}


def selection_map(run: Recorded, layer: int, case_id: str = "training") -> Chart:
    """Draw which blocks the queries of each block select in a layer, counted from 1, as the share of those queries.

    Raises ConfigError for a layer that the model does not have.
    """
    kept = run.fact(case_id, "attention_map")
    if not kept or not kept["selected"]:
        return _no_map("Blocks that queries select", "query block")
    layers, l_sel = len(kept["selected"]), kept["l_sel"]
    if not 1 <= layer <= layers:
        raise ConfigError(f"layer={layer}: accepts 1 to {layers}")
    shares = np.array(kept["selected"][layer - 1])
    shares[np.triu_indices_from(shares, k=1)] = np.nan  # the future, which no query may select
    facts = f"layer {layer} of {layers}; block 0, a query's own and the one before it are always read"
    figure = empty_chart("Blocks that queries select", f"query block ({l_sel} tokens)", facts, legend=False)
    figure.add_trace(
        go.Heatmap(
            z=shares,
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate="%{z:.1%} of the queries of block %{y} read block %{x}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text=f"key block ({l_sel} tokens)", range=[-0.5, len(shares) - 0.5], constrain="domain")
    # Query 0 on top, as a mask is drawn; blocks are squares.
    figure.update_yaxes(range=[len(shares) - 0.5, -0.5], showgrid=False, scaleanchor="x", constrain="domain")
    return _with_shares(figure, "share of queries", height=560)


def gate_map(run: Recorded, case_id: str = "training") -> Chart:
    """Draw the mean branch gate of each layer and head, a panel for each branch."""
    kept = run.fact(case_id, "attention_map")
    if not kept or not kept["branch_gates"]:
        return _no_map("Branch gates", "layer")
    gates, branches = np.array(kept["branch_gates"]), kept["branches"]
    means = ", ".join(f"{BRANCH_WORDS.get(b, b)} {gates[..., i].mean():.3f}" for i, b in enumerate(branches))
    figure = empty_chart("Branch gates", "layer", f"mean over all layers and heads: {means}", legend=False)
    figure.set_subplots(1, len(branches), shared_yaxes=True, subplot_titles=[BRANCH_WORDS.get(b, b) for b in branches])
    figure.update_annotations(font_size=12)
    text = "%{z:.2f}" if gates.shape[1] <= CELLS_WITH_TEXT else ""
    for column, _ in enumerate(branches, start=1):
        panel = go.Heatmap(
            y=np.arange(1, len(gates) + 1),
            z=gates[..., column - 1],
            coloraxis="coloraxis",
            texttemplate=text,
            hovertemplate="layer %{y}, head %{x}: %{z:.4f}<extra></extra>",
        )
        figure.add_trace(panel, row=1, col=column)
    # Panels stand beside each other, also on a narrow page: few heads are named.
    figure.update_xaxes(title_text="head", tickformat="d", dtick=_tick(gates.shape[1], 4), tickangle=0)
    figure.update_yaxes(autorange="reversed", showgrid=False, tick0=1, dtick=_tick(gates.shape[0], 12))
    figure.update_yaxes(title_text="layer", col=1)
    figure.update_layout(margin={"t": 112})  # the panels' titles stand below the facts
    return _with_shares(figure, "mean gate", height=240 + 26 * max(4, gates.shape[0]))


def _tick(count: int, most: int) -> int:
    """Return the step between ticks of which there are at most `most`."""
    return -(-count // most)


def _no_map(title: str, unit: str) -> Chart:
    return nothing(title, unit, NOT_KEPT).update_xaxes(title_text="")


def _with_shares(figure: Chart, title: str, height: int) -> Chart:
    """Give a heat map its colours from 0 to 1, and below it, where a narrow page has room, a legend of them."""
    bar = {"title": {"text": title, "side": "right", "font": {"size": 12}}, "outlinewidth": 0, "thickness": 12}
    bar |= {
        "tickvals": [0, 0.5, 1],
        "orientation": "h",
        "x": 0,
        "xanchor": "left",
        "len": 0.5,
        "yref": "container",
        "y": 0,
        "yanchor": "bottom",
    }
    figure.update_layout(coloraxis={**SHARES, "colorbar": bar}, hovermode="closest", height=height + LEGEND_PX)
    return figure.update_layout(margin={"b": TEMPLATE.layout.margin.b + LEGEND_PX})
