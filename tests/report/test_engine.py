"""The engine, with a real kernel: a report however the run ended."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat import v4
from papermill.engines import NBClientEngine

from nsa_lib.report import NsaHTMLExporter
from nsa_lib.report.engine import write_report
from nsa_lib.report.verdict import MIME, read_verdict
from tests.samples import (
    notebook,
    sample_run,
)

BIN = Path(sys.executable).parent


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
