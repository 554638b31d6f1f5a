import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from nbconvert.exporters import HTMLExporter, get_exporter
from nbformat import v4
from papermill.engines import NBClientEngine

from nsa_lib import report
from nsa_lib.report import NsaHTMLExporter
from nsa_lib.report.engine import write_report
from nsa_lib.report.tables import (
    advice_table,
    cases_table,
    environment_table,
    format_value,
    gates_table,
    parameters_table,
)
from nsa_lib.report.verdict import MIME, OUTCOME_KEY, VerdictError, conclude, read_verdict
from tests.samples import (
    CASES,
    ENVIRONMENT,
    GATES,
    PARAMETERS,
    code_cell,
    concluded,
    error,
    export,
    notebook,
    sample_notebook,
    sample_run,
    shown,
)

BIN = Path(sys.executable).parent

PAYLOAD = "'\"></script><script>alert(1)</script><img src=http://example.invalid/x onerror=alert(2)>"


def verdict_of(*cells, **metadata):
    return read_verdict(notebook(*cells, **metadata))


def incomplete(reason, *cells, **metadata):
    verdict = verdict_of(*cells, **metadata)
    return verdict.word == "INCOMPLETE" and reason in verdict.headline


def record_of(**changes):
    record = {**concluded()[0].data[MIME], **changes}
    return v4.new_output("display_data", {MIME: {k: v for k, v in record.items() if v is not None}})


# What a notebook says


@pytest.mark.parametrize("word", ["GO", "REVIEW", "NO-GO", "INCOMPLETE"])
def test_a_complete_notebook_says_what_its_record_says(word):
    verdict = verdict_of(code_cell(), code_cell(count=2, outputs=concluded(word, reasons=["because"])))
    assert (verdict.word, verdict.reasons, verdict.profile) == (word, ("because",), "checklist")


def test_an_unfinished_run_is_incomplete_whatever_it_recorded():
    cells = code_cell(outputs=concluded("GO"))
    assert verdict_of(cells, **{OUTCOME_KEY: {"outcome": "finished"}}).word == "GO"
    assert incomplete("Kernel died", cells, **{OUTCOME_KEY: {"outcome": "DeadKernelError: Kernel died"}})


def test_an_error_before_or_after_the_verdict_is_incomplete():
    assert incomplete("stopped before a verdict: ValueError: bad", code_cell(outputs=[error()]))
    assert incomplete(
        "stopped after a verdict was recorded: ValueError", code_cell(outputs=[*concluded("GO"), error()])
    )
    last = code_cell(count=2, outputs=concluded("GO"))
    assert incomplete("ValueError", code_cell(outputs=[error()]), last)


def test_a_verdict_error_counts_as_one_only_beside_its_record():
    stray = code_cell(outputs=[error("VerdictError", "NO-GO")])
    assert incomplete("VerdictError", stray, code_cell(count=2, outputs=concluded("GO")))
    assert incomplete("says GO", code_cell(outputs=[*concluded("GO"), error("VerdictError", "NO-GO")]))


def test_a_cell_that_did_not_run_is_incomplete():
    assert incomplete("1 of 2 code cells", code_cell(count=None), code_cell(count=2, outputs=concluded("GO")))
    empty = code_cell(source="  \n", count=None)
    assert verdict_of(code_cell(outputs=concluded("GO")), empty).word == "GO"


def test_no_verdict_is_incomplete():
    assert incomplete("no verdict was recorded", code_cell())
    assert incomplete("no verdict was recorded")


def test_a_verdict_must_come_last_once_and_in_order():
    go = concluded("GO")
    assert incomplete("after the verdict", code_cell(outputs=go), code_cell(count=2))
    assert incomplete("2 verdicts", code_cell(outputs=go), code_cell(count=2, outputs=go))
    assert incomplete("2 verdicts", code_cell(outputs=[*go, *go]))
    rerun = (code_cell(count=1), code_cell(count=9), code_cell(count=3, outputs=go))
    assert incomplete("out of order", *rerun)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "newer"),
        ({"schema": True}, "no schema"),
        ({"schema": None}, "no schema"),
        ({"verdict": "PASS"}, "none of GO"),
        ({"verdict": ["GO"]}, "none of GO"),
        ({"headline": None}, "headline is not a text"),
        ({"profile": 1}, "profile is not a text"),
        ({"reasons": "all good"}, "reasons is not a list"),
        ({"custom": [1]}, "custom is not a list"),
    ],
)
def test_a_malformed_record_is_incomplete(changes, reason):
    assert incomplete(reason, code_cell(outputs=[record_of(**changes)]))


def test_a_record_that_is_no_mapping_is_incomplete():
    assert incomplete("not a mapping", code_cell(outputs=[v4.new_output("display_data", {MIME: "GO"})]))


# What conclude leaves


def test_only_go_passes_and_review_only_when_accepted(capsys):
    conclude(sample_run("GO"), command="nbconvert it")
    assert "HTML report: nbconvert it" in capsys.readouterr().out
    conclude(sample_run("REVIEW"), command="", accept_review=True)
    for word in ("REVIEW", "NO-GO", "INCOMPLETE"):
        with pytest.raises(VerdictError, match=word):
            conclude(sample_run(word), command="")
    with pytest.raises(VerdictError, match="NO-GO"):
        conclude(sample_run("NO-GO"), command="", accept_review=True)


def test_a_laptop_go_says_that_it_clears_no_gpu():
    (output,) = concluded("GO", profile="laptop", custom=["steps 60"])
    for text in (output.data["text/html"], output.data["text/plain"], export(notebook(code_cell(outputs=[output])))):
        assert "A laptop GO clears no GPU" in text
        assert "Custom run" in text
        assert "steps 60" in text
    assert "clears no GPU" not in concluded("GO")[0].data["text/plain"]


# Tables


def test_gates_are_sorted_by_what_decides():
    wanted = [("FAIL", True), ("NOT_RUN", True), ("WARN", True), ("PASS", True), ("FAIL", False), ("PASS", False)]
    gates = [{**GATES[0], "outcome": o, "required": r, "name": f"{o} {r}"} for o, r in reversed(wanted)]
    assert [row[1].text for row in gates_table(gates).rows] == [f"{o} {r}" for o, r in wanted]


def test_a_gate_row_shows_word_units_separators_and_signed_margin():
    passed, failed = GATES[1], {**GATES[1], "outcome": "FAIL", "measured": 76_210.0, "margin": -6_210.0}
    text = repr(gates_table([passed, failed]))
    assert re.search(r"✘ FAIL +peak reserved memory +76,210 MiB +70,000 MiB +-8\.9 %", text)
    assert re.search(r"✔ PASS +peak reserved memory +1,762 MiB +70,000 MiB +\+97\.5 %", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (float("nan"), "–"), (float("inf"), "inf"), (True, "True"), (0, "0"), (3e-4, "0.0003"),
        (2048, "2,048"), (1762.4, "1,762"), (-6210.5, "-6,210"), (0.12345, "0.1235"), ("bfloat16", "bfloat16"),
        ([1, 2], "[1, 2]"),
    ],
)  # fmt: skip
def test_values_are_written_for_reading(value, text):
    assert format_value(value) == text


def test_tables_show_origins_differences_and_nested_facts():
    assert re.search(r"lr +0\.0003 +given +0\.0001 +▲ differs", repr(parameters_table(PARAMETERS)))
    assert re.search(r"gpu\.name +NVIDIA H200", repr(environment_table(ENVIRONMENT)))
    failed = CASES.assign(status=["ok", "oom", "ok"], reason=["", "out of memory at step 3", ""])
    assert re.search(r"anomaly +✘ oom +10 +9\.8 s +out of memory at step 3", repr(cases_table(failed)))


def test_advice_is_listed_and_its_absence_said():
    assert repr(advice_table(["restart before step 900"])).endswith("\nrestart before step 900")
    assert repr(advice_table([])).endswith("\nnone")
    assert "<script" not in advice_table([PAYLOAD])._repr_html_()


def test_tables_of_nothing_are_tables():
    for table in (gates_table([]), parameters_table([]), cases_table(CASES[:0])):
        assert "<tbody></tbody>" in table._repr_html_()


# The file


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
    assert len(re.findall(r'role="status"', body)) == 1
    assert re.search(r'aria-hidden="true">✔</span>\s*GO', body)


def test_the_contents_lead_to_the_headings(page):
    links = re.findall(r'<li><a href="#([^"]+)">', page)
    assert len(links) == 6
    assert all(f'id="{link}"' in page for link in links)


def test_charts_are_described_and_the_image_for_other_viewers_is_left_out(page):
    assert 'aria-label="Memory: highest 1,762 MiB' in page
    assert "image/svg+xml" not in page


def test_plain_nbconvert_shows_the_image_instead():
    plain, _ = HTMLExporter().from_notebook_node(sample_notebook())
    assert len(re.findall(r'<img[^>]* src="data:image/svg\+xml;base64', plain)) == 1


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
    banner = page[page.index("<header") : page.index("</header>")]
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


# The engine, with a real kernel

SUMMARY = sample_run().summary


def conclude_source(verdict):
    """Return a last cell."""
    run = f"SimpleNamespace(summary={ {**SUMMARY, 'verdict': verdict}!r})"
    return f"from types import SimpleNamespace\nfrom nsa_lib import report\nreport.conclude({run}, command='')"


def save(folder, *sources):
    cells = [v4.new_code_cell(source) for source in sources]
    nbformat.write(notebook(*cells), folder / "in.ipynb")
    return folder / "in.ipynb", folder / "out.ipynb"


def execute(folder, *sources, **options):
    source, output = save(folder, *sources)
    papermill.execute_notebook(source, output, engine_name="nsa", progress_bar=False, **options)


def headline(folder):
    page = (folder / "out.html").read_text(encoding="utf-8")
    word = re.search(r"</span>\s*([A-Z-]+)</p>", page)[1]
    return word, re.search(r'nsa-headline">(.*?)</p>', page)[1]


def assert_nbconvert_gives_the_same(folder):
    exporter = NsaHTMLExporter()
    page, _ = exporter.from_filename(str(folder / "out.ipynb"))
    assert page.encode() == (folder / "out.html").read_bytes()


def test_a_run_that_went_well_has_its_report_beside_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save(tmp_path, "import os; print(os.getcwd())", conclude_source("GO"))
    papermill.execute_notebook("in.ipynb", "out.ipynb", engine_name="nsa", progress_bar=False, cwd=elsewhere)
    assert headline(tmp_path)[0] == "GO"
    first = (tmp_path / "out.html").read_bytes()
    assert str(elsewhere) in first.decode()
    run = [BIN / "jupyter", "nbconvert", "--log-level=ERROR", "--to", "nsa_html", "out.ipynb"]
    subprocess.run(run, cwd=tmp_path, check=True)
    assert (tmp_path / "out.html").read_bytes() == first


def test_a_no_go_stops_papermill_and_leaves_one_line(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="NO-GO"):
        execute(tmp_path, conclude_source("NO-GO"))
    assert headline(tmp_path)[0] == "NO-GO"
    saved = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    outputs = saved.cells[-1].outputs
    assert [output.output_type for output in outputs] == ["display_data", "stream", "error"]
    assert set(outputs[0].data) == {MIME, "text/html", "text/plain"}
    assert len(outputs[2].traceback) == 1
    assert outputs[2].traceback[0].count("\n") == 0
    assert_nbconvert_gives_the_same(tmp_path)


def test_an_exception_is_reported_and_goes_on_to_papermill(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="division"):
        execute(tmp_path, "1 / 0", "2")
    assert headline(tmp_path) == ("INCOMPLETE", "stopped before a verdict: ZeroDivisionError: division by zero")
    assert_nbconvert_gives_the_same(tmp_path)


def test_a_killed_kernel_is_never_a_pass(tmp_path):
    with pytest.raises(RuntimeError, match="Kernel died"):
        execute(tmp_path, conclude_source("GO") + "\nimport os; os.kill(os.getpid(), 9)")
    word, reason = headline(tmp_path)
    assert word == "INCOMPLETE"
    assert "DeadKernelError: Kernel died" in reason
    assert_nbconvert_gives_the_same(tmp_path)


@pytest.mark.parametrize(
    ("stop", "said"),
    [(KeyboardInterrupt(), "KeyboardInterrupt"), (TimeoutError("a cell took\ntoo long"), "TimeoutError: a cell took")],
)
def test_whatever_ends_a_run_is_reported_and_goes_on(tmp_path, monkeypatch, stop, said):
    def execute_managed_notebook(nb_man, kernel_name, **kwargs):
        # What an autosave would leave if papermill itself were killed now.
        assert read_verdict(nb_man.nb).headline == "the run did not finish: papermill ended before the run did"
        raise stop

    monkeypatch.setattr(NBClientEngine, "execute_managed_notebook", execute_managed_notebook)
    with pytest.raises(type(stop)):
        execute(tmp_path, "1")
    assert headline(tmp_path) == ("INCOMPLETE", f"the run did not finish: {said}")


def test_an_output_without_a_path_gets_no_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (None, "-"):
        write_report(notebook(papermill={"output_path": path}))
    assert not list(tmp_path.iterdir())
