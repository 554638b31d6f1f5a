"""The HTML report of a notebook."""

import json
import re
import subprocess
import sys

import pytest
from nbconvert.exporters import HTMLExporter, MarkdownExporter, get_exporter
from nbformat import v4

from nsa_lib import report
from nsa_lib.report import NsaHTMLExporter
from nsa_lib.report.exporter import PLACES
from nsa_lib.report.facts import environment_table
from nsa_lib.report.tables import (
    cases_table,
    parameters_table,
)
from nsa_lib.workbook.questions import QUESTIONS
from tests.samples import (
    CASES,
    GATES,
    PARAMETERS,
    PAYLOAD,
    code_cell,
    concluded,
    error,
    export,
    notebook,
    sample_notebook,
    shown,
)
from tests.test_notebooks import FOLDER


@pytest.fixture(scope="module")
def page():
    return export(sample_notebook())


def test_a_report_is_small_and_holds_plotly_once(page):
    assert len(page.encode()) < 3_000_000
    assert page.count('id="nsa-plotly"') == 1
    assert page.count('class="nsa-chart"') == 4
    bare = export(notebook(code_cell(outputs=concluded())))
    assert 'id="nsa-plotly"' not in bare
    assert len(bare.encode()) < 60_000


def test_a_report_names_no_place_to_load_from(page):
    external = re.compile(
        r"""(?:src|href|srcset|action|poster)\s*=\s*["']?\s*(?:https?:)?//|@import|url\(\s*["']?http"""
    )
    markup = re.sub(r'<script type="text/plain".*?</script>', "", page, flags=re.DOTALL)
    assert not external.search(markup)
    assert external.search('<script src="https://example.invalid/x.js">')
    assert "import(" not in markup


def test_the_banner_comes_first_and_only_once(page):
    body = page[page.index("<body") :]
    assert body.index("nsa-banner") < body.index("<h1") < body.index("<table")
    assert len(re.findall(r'class="nsa-banner', body)) == 1
    assert re.search(r'aria-hidden="true">✔</span>\s*GO', body)


def test_the_contents_lead_to_the_headings(page):
    links = re.findall(r'<li><a href="#([^"]+)">', page)
    assert len(links) == 6
    assert all(f'id="{link}"' in page for link in links)


def test_a_reason_leads_to_its_gate_and_to_the_chart_that_shows_it():
    gates = [{**GATES[1], "name": "peak_reserved", "outcome": "FAIL"}]
    made = sample_notebook("NO-GO", gates=gates, reasons=["peak_reserved failed at 9 MiB", "other failed"])
    figure = made.cells[6].outputs[0].data["application/vnd.plotly.v1+json"]
    figure["layout"]["meta"]["gates"] = ["peak_reserved"]
    page = export(made)
    banner = page[page.index("<section") : page.index("</section>")]
    assert '<a href="#gate-peak_reserved">peak_reserved</a> failed at 9 MiB (<a href="#chart-1">chart</a>)' in banner
    assert "<li>other failed</li>" in banner
    assert all(page.count(f'id="{name}"') == 1 for name in ("gate-peak_reserved", "chart-1"))


def test_a_page_shows_the_gates_first_and_the_machine_last():
    texts = ["# Title", "## Asked", "## Evidence", "## Machine", "## Gates"]
    cells = [v4.new_markdown_cell(text) for text in texts]
    for cell, tag in zip(cells[1:], ("report-late", None, "report-last", "report-first"), strict=True):
        cell.metadata["tags"] = [tag] if tag else []
    page = export(notebook(*cells, code_cell(outputs=concluded())))
    places = [page.index(f'<h2 id="{name}"') for name in ("Gates", "Evidence", "Asked", "Machine")]
    assert places == sorted(places)


def test_every_notebook_with_a_verdict_says_where_its_sections_stand():
    for path in FOLDER.glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        tags = [tag for cell in cells for tag in cell["metadata"].get("tags", ()) if tag.startswith("report-")]
        assert set(tags) <= set(PLACES)
        assert ("report-first" in tags) == (QUESTIONS[path.stem].judging is not None)


def test_charts_are_described_and_each_has_its_twin(page):
    assert 'aria-label="Memory: highest 1,762 MiB' in page
    assert 'alt="Memory: highest 1,762 MiB' in page
    assert page.count('class="nsa-twin"') == page.count('src="data:image/svg+xml;base64,') == 4


def test_plain_nbconvert_and_markdown_show_the_twins():
    plain, _ = HTMLExporter().from_notebook_node(sample_notebook())
    assert len(re.findall(r'<img[^>]* src="data:image/svg\+xml;base64', plain)) == 4
    text, resources = MarkdownExporter().from_notebook_node(sample_notebook())
    assert len(re.findall(r"!\[svg\]\((\S+\.svg)\)", text)) == 4
    assert sum(name.endswith(".svg") for name in resources["outputs"]) == 4


def test_only_scripts_with_the_nonce_may_run(page):
    (nonce,) = set(re.findall(r"'nonce-(\w+)'", page))
    executable = [tag for tag in re.findall(r"<script[^>]*>", page) if "type=" not in tag]
    assert executable == [f'<script nonce="{nonce}">']
    assert nonce not in export(sample_notebook("REVIEW"))


def test_what_a_run_says_cannot_become_markup():
    gates = [{**GATES[0], "name": PAYLOAD, "detail": PAYLOAD, "unit": PAYLOAD}]
    nb = sample_notebook("NO-GO", gates=gates, headline=PAYLOAD, reasons=[PAYLOAD], custom=[PAYLOAD], run_id=PAYLOAD)
    parameter = {**PARAMETERS[0], "name": PAYLOAD, "value": PAYLOAD, "origin": PAYLOAD, "checklist": PAYLOAD}
    for table in (
        parameters_table([parameter]),
        environment_table({PAYLOAD: {"nested": PAYLOAD}}),
        cases_table(CASES.assign(reason=PAYLOAD, status=PAYLOAD, case_id=PAYLOAD, stderr_tail=PAYLOAD)),
    ):
        nb.cells[2].outputs.append(shown(text_html=table._repr_html_()))
    figure = nb.cells[6].outputs[0].data["application/vnd.plotly.v1+json"]
    figure["layout"]["title"]["text"] = figure["layout"]["meta"]["description"] = PAYLOAD
    page = export(nb)
    assert "<script>alert(1)" not in page
    assert "<img src=http" not in page
    assert page.count("&lt;script&gt;alert(1)") > 10
    assert page.count("</script>") == len(re.findall("<script", page))
    assert "<script>alert" not in concluded("GO", headline=PAYLOAD)[0].data["text/html"]


def test_what_a_failed_case_wrote_last_is_folded_below_its_reason():
    html = cases_table(CASES.assign(stderr_tail=["", "line 1\nline 2 <b>", ""]))._repr_html_()
    assert html.count("<details>") == 1
    assert "<pre>line 1\nline 2 &lt;b&gt;</pre>" in html
    assert "<details>" not in cases_table(CASES)._repr_html_()


def test_an_error_in_the_run_is_named_in_the_banner():
    page = export(notebook(code_cell(outputs=[error("RuntimeError", f"CUDA broke {PAYLOAD}\nsecond line")])))
    banner = page[page.index("<section") : page.index("</section>")]
    assert "INCOMPLETE" in banner
    assert "RuntimeError: CUDA broke" in banner
    assert "&lt;/script&gt;" in banner
    assert "second line" not in banner


def test_widgets_and_javascript_outputs_are_left_out():
    state = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    output = v4.new_output(
        "display_data",
        {"application/javascript": "alert(1)", "application/vnd.jupyter.widget-view+json": {}, "text/plain": "told"},
    )
    page = export(notebook(code_cell(outputs=[output]), widgets=state))
    assert "told" in page
    assert "alert(1)" not in page
    assert "unpkg" not in page


def test_the_exporter_is_found_by_name_by_class_and_by_jupyterlab():
    assert get_exporter("nsa_html") is get_exporter("nsa_lib.report.NsaHTMLExporter") is NsaHTMLExporter
    assert NsaHTMLExporter.export_from_notebook == "NSA report (HTML)"


def test_reading_the_report_package_loads_neither_nbconvert_nor_papermill():
    code = """import sys, nsa_lib.report
assert not {"nbconvert", "papermill", "torch"} & set(sys.modules)
assert nsa_lib.report.NsaEngine is sys.modules["papermill.engines"].papermill_engines.get_engine("nsa")"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_else_is_in_the_package():
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = report.missing


# The report of a notebook that gives no verdict


def test_a_notebook_that_gives_no_verdict_has_no_banner():
    html = export(notebook(code_cell(), nsa={"verdict": False}), name="explore")
    assert 'class="nsa-banner' not in html
    assert "INCOMPLETE" not in html
    assert "<title>explore</title>" in html


@pytest.mark.parametrize("resources", [None, {}, {"metadata": {}}, {"metadata": {"name": ""}}])
def test_a_notebook_without_a_name_is_called_by_its_heading(resources):
    made = notebook(
        v4.new_markdown_cell("Read first.\n# Explore <a> run\n## Memory"), code_cell(), nsa={"verdict": False}
    )
    html, _ = NsaHTMLExporter().from_notebook_node(made, resources)
    assert "<title>Explore &lt;a&gt; run</title>" in html
    del made.cells[0]
    assert "<title>Notebook</title>" in NsaHTMLExporter().from_notebook_node(made, resources)[0]


@pytest.mark.parametrize("said", [None, {}, {"verdict": True}, {"verdict": None}, {"verdict": 0}, [], "verdict"])
def test_any_other_notebook_keeps_its_banner(said):
    html = export(notebook(code_cell(), **({} if said is None else {"nsa": said})))
    assert 'class="nsa-banner' in html
    assert "<title>INCOMPLETE: " in html


def test_a_notebook_that_recorded_a_verdict_shows_it_whatever_it_says_of_itself():
    made = sample_notebook("NO-GO")
    made.metadata["nsa"] = {"verdict": False}
    assert "<title>NO-GO: " in export(made)
    assert "<title>INCOMPLETE: " in export(
        notebook(code_cell(outputs=concluded()), code_cell(count=2), nsa={"verdict": False})
    )


def test_the_smoke_does_not_say_that_it_gives_no_verdict():
    for path in FOLDER.glob("*.ipynb"):
        said = json.loads(path.read_text())["metadata"].get("nsa")
        assert said == (None if QUESTIONS[path.stem].judging else {"verdict": False})


def test_of_many_reasons_a_reader_sees_eight_and_opens_the_others():
    reasons = [f"gate_{place} did not run: {PAYLOAD}" for place in range(31)]
    html = export(sample_notebook("INCOMPLETE", reasons=reasons))
    banner = html[html.index('class="nsa-why"') : html.index("</section>")]
    shown, folded = banner.split("<details><summary>23 more</summary>")
    assert (shown.count("<li>"), folded.count("<li>")) == (8, 23)
    assert "<script" not in banner
    eight = export(sample_notebook("INCOMPLETE", reasons=reasons[:8]))
    assert "more</summary>" not in eight[eight.index('class="nsa-why"') : eight.index("</section>")]
