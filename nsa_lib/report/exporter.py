"""The nbconvert exporter `nsa_html`: one executed notebook -> one HTML file that needs nothing else.

Plotly's JavaScript comes from the installed plotly and is packed into the file once, if there is a chart. A content
security policy with a nonce lets only the report's own scripts run: what a notebook shows cannot. The nonce is a hash
of the cells, so that the same notebook always gives the same bytes. Widgets and JavaScript outputs are left out.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape, unescape

from nbconvert.exporters import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from traitlets import default
from traitlets.config import Config

from nsa_lib.report.page import TEMPLATES, figure_html, packed_plotly
from nsa_lib.report.verdict import is_command, is_record, is_verdict_error, read_verdict, wants_verdict

PLOTLY_MIME = "application/vnd.plotly.v1+json"

SHOWN_MIMES = ["text/html", "text/markdown", "image/svg+xml", "text/latex", "image/png", "image/jpeg", "text/plain"]
"""nbconvert's order of preference without what needs a script of the notebook's own."""

PAPERMILL_MARKER = "papermill-error-cell-tag"
"""Tag of the cells that papermill adds around an error."""

CODE_STYLES = {"light": "default", "dark": "github-dark"}
"""Pygments styles."""


class NsaHTMLExporter(HTMLExporter):
    """Export an executed notebook as a self-contained report with the verdict on top."""

    export_from_notebook = "NSA report (HTML)"

    @default("template_name")
    def _template_name_default(self):
        return "nsa"

    @default("extra_template_basedirs")
    def _extra_template_basedirs_default(self):
        return [str(TEMPLATES)]

    @default("embed_images")
    def _embed_images_default(self):
        return True

    @property
    def default_config(self):
        """nbconvert's configuration, with the order of preference among outputs replaced."""
        config = super().default_config.copy()
        config.merge(Config({"NbConvertBase": {"display_data_priority": SHOWN_MIMES}}))
        return config

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The last of the preprocessors: what `nbconvert --execute` executes is judged, not what stood there before.
        self.register_preprocessor(_prepare, enabled=True)

    def from_notebook_node(self, nb: NotebookNode, resources: dict | None = None, **kwargs) -> tuple[str, dict]:
        """Return the HTML of `nb` and nbconvert's resources; one without a name is called by its own heading."""
        metadata = {**((resources or {}).get("metadata") or {})}
        metadata["name"] = metadata.get("name") or _heading(nb)
        html, resources = super().from_notebook_node(nb, {**(resources or {}), "metadata": metadata}, **kwargs)
        page = resources["nsa"]
        # Only now: nbconvert parses the page once more, which would take long with 2 MB of script in it.
        html = html.replace(f"<!--contents {page['nonce']}-->", _contents(html))
        return html.replace(f"<!--plotly {page['nonce']}-->", packed_plotly() if page["figures"] else ""), resources


def _heading(nb: NotebookNode) -> str:
    """Return the first heading of a notebook; without any the word that nbconvert takes."""
    lines = (line for cell in nb.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    return next((line.removeprefix("# ").strip() for line in lines if line.startswith("# ")), "Notebook")


def _prepare(nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
    """Read the verdict of a notebook, and make of its outputs what the report shows."""
    nb = _without_papermill_markers(nb)
    nonce, verdict = _nonce(nb), read_verdict(nb) if wants_verdict(nb) else None
    figures, evidence = _replace_outputs(nb)
    nb.cells = in_reading_order(nb.cells)
    css = {mode: HtmlFormatter(style=style).get_style_defs(".highlight") for mode, style in CODE_STYLES.items()}
    reasons = [_linked_reason(reason, nb, evidence) for reason in verdict.reasons] if verdict else []
    page = {"verdict": verdict, "reasons": reasons, "nonce": nonce, "code_css": css, "figures": figures}
    return nb, {**resources, "nsa": page}


def _without_papermill_markers(nb: NotebookNode) -> NotebookNode:
    """Return a copy without the cells that papermill adds after an error, that is, after the engine's report."""
    nb = copy.deepcopy(nb)
    nb.cells = [cell for cell in nb.cells if PAPERMILL_MARKER not in cell.metadata.get("tags", [])]
    return nb


def _nonce(nb: NotebookNode) -> str:
    """Return a nonce that no cell can contain: a hash of all that they hold but metadata, which papermill edits."""
    held = [[cell.source, cell.get("outputs"), cell.get("attachments")] for cell in nb.cells]
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


PLACES = ("report-first", "report-late", "report-last")
"""Tags of headings: the gates come first, then the evidence, the parameters late and the machine last."""


def in_reading_order(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Return cells with their sections in the order in which a report is read: a notebook is in that of the work."""
    sections: list[list[NotebookNode]] = [[]]
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            sections.append([])
        sections[-1].append(cell)
    head, *rest = sections
    return [*head, *(cell for section in sorted(rest, key=_place) for cell in section)]


def _place(section: list[NotebookNode]) -> int:
    found = set(section[0].metadata.get("tags", ())) & set(PLACES)
    return (0, 2, 3)[PLACES.index(found.pop())] if found else 1


def _linked_reason(reason: str, nb: NotebookNode, evidence: Mapping[str, int]) -> tuple[str, str, str, str]:
    """Return a reason as the gate it begins with, the address of its row, the rest, and the address of its chart."""
    gate, _, rest = reason.partition(" ")
    row = f'<tr id="gate-{escape(gate)}"'
    outputs = (output for cell in nb.cells if cell.cell_type == "code" for output in cell.outputs)
    in_a_table = any(row in "".join(output.get("data", {}).get("text/html", "")) for output in outputs)
    chart = f"#chart-{evidence[gate]}" if gate in evidence else ""
    return gate, f"#gate-{gate}" if in_a_table else "", rest, chart


def _replace_outputs(nb: NotebookNode) -> tuple[int, dict[str, int]]:
    """Turn Plotly outputs into figures; drop the verdict, which the banner shows, and how to make the report.

    Returns the number of figures, and for gates the number of the chart that shows what they judge.
    """
    figures, evidence = 0, {}
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        hidden = (is_record, is_verdict_error, is_command)
        cell.outputs = [output for output in cell.outputs if not any(is_hidden(output) for is_hidden in hidden)]
        for output in cell.outputs:
            if PLOTLY_MIME in output.get("data", {}):
                figures += 1
                twin, meta = (
                    output.data.get("image/svg+xml", ""),
                    output.data[PLOTLY_MIME].get("layout", {}).get("meta"),
                )
                gates = meta.get("gates", ()) if isinstance(meta, dict) else ()
                evidence |= dict.fromkeys(map(str, gates), figures)
                output.data = {"text/html": figure_html(output.data[PLOTLY_MIME], "".join(twin), figures)}
            elif "text/html" in output.get("data", {}):
                # What pandas puts over an index without a name: an empty heading is no heading.
                output.data["text/html"] = "".join(output.data["text/html"]).replace("<th></th>", "<td></td>")
    return figures, evidence


def _contents(html: str) -> str:
    """Return links to the second-level headings of a page."""
    headings = re.findall(r'<h2 id="([^"]*)">(.*?)<a class="anchor-link"', html, re.DOTALL)
    texts = [(anchor, escape(unescape(re.sub(r"<[^>]*>", "", text)).strip())) for anchor, text in headings]
    return "".join(f'<li><a href="#{anchor}">{text}</a></li>' for anchor, text in texts)
