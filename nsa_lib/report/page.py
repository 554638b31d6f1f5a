"""Pages over several runs, and how a chart is kept in any page: as data, drawn by the page's own script.

Needs no nbconvert, which takes seconds to load: a notebook writes such a page at its end.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape, unescape
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from nsa_lib.report.charts.chart import CONFIG, Chart
from nsa_lib.report.charts.static import static_twin
from nsa_lib.report.table import Table

TEMPLATES = Path(str(files("nsa_lib.report") / "template"))


@dataclass(frozen=True)
class Section:
    """A section of a page: a heading and what stands under it, in this order."""

    heading: str
    prose: Sequence[str] = ()
    """Paragraphs."""
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = field(default=())


def page(title: str, sections: Sequence[Section]) -> str:
    """Return one self-contained HTML page: it loads nothing, runs no script but its own, and every text is escaped."""
    shown, charts = [], 0
    for section in sections:
        figures = []
        for chart in section.charts:
            charts += 1
            figures.append(Markup(figure_html(json.loads(chart.to_json()), static_twin(chart), charts)))
        tables = [Markup(table._repr_html_()) for table in section.tables]
        shown.append({"heading": section.heading, "prose": section.prose, "tables": tables, "charts": figures})
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES / "nsa"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    content = {"title": title, "sections": shown, "plotly": Markup(packed_plotly() if charts else "")}
    # A hash of all that is shown: what stands in a run cannot contain it.
    nonce = hashlib.sha256(json.dumps([title, shown]).encode()).hexdigest()
    return environment.get_template("page.html.j2").render(page={**content, "nonce": nonce})


def figure_html(figure: dict, twin: str, number: int) -> str:
    """Return a chart as data, drawn by the report's own script, with title and facts as its caption.

    Its static twin, if there is one, stands there until the script has drawn it, and on paper. It is an image, so that
    nothing in it can run. Of a chart of ours that has nothing to draw, the caption says why.
    """
    layout = figure.get("layout", {})
    meta = layout.get("meta")
    description = meta.get("description", "") if isinstance(meta, dict) else ""
    caption, layout = _captioned(layout)
    if caption and not figure.get("data"):
        return f'<figure class="nsa-nothing" id="chart-{number}">{caption}</figure>'
    description = escape(description or f"Chart {number}")
    spec = json.dumps({"data": figure.get("data", []), "layout": layout, "config": CONFIG}, sort_keys=True)
    spec = spec.replace("<", "\\u003c")
    if twin:
        data = base64.b64encode(twin.encode()).decode()
        still = f'<img class="nsa-twin" src="data:image/svg+xml;base64,{data}" alt="{description}">'
    else:
        still = '<p class="nsa-twin">This chart needs JavaScript and a browser of 2023 or later.</p>'
    return (
        f'<figure class="nsa-figure" id="chart-{number}">{still}{caption}'
        f'<div class="nsa-chart" role="group" aria-label="{description}"></div>'
        f'<script type="application/json">{spec}</script></figure>'
    )


TITLE_PX = 44
"""Height that title and facts take in a chart."""


def _captioned(layout: dict) -> tuple[str, dict]:
    """Return title and facts as a caption, which breaks on a narrow page, and the layout without them.

    A chart that is not laid out by our template keeps its title.
    """
    shared, title = layout.get("template", {}).get("layout", {}), layout.get("title", {})
    if "height" not in shared or "subtitle" not in title:
        return "", layout
    margin = {**shared["margin"], **layout.get("margin", {})}
    height = layout.get("height", shared["height"])
    slim = {**layout, "margin": {**margin, "t": margin["t"] - TITLE_PX}, "height": height - TITLE_PX}
    del slim["title"]
    name, facts = (escape(unescape(text)) for text in (title["text"], title["subtitle"]["text"]))
    return f"<figcaption><strong>{name}</strong>{facts}</figcaption>", slim


@cache
def packed_plotly() -> str:
    """Return Plotly's JavaScript, gzipped so that a report stays under 3 MB; the report's script unpacks it."""
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    return f'<script type="text/plain" id="nsa-plotly">{packed}</script>'
