"""The engine, with a real kernel: a report however the run ended."""

import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import nbformat
import papermill
import pytest
from nbformat import v4
from papermill.engines import NBClientEngine

from nsa_lib.report import NsaHTMLExporter
from nsa_lib.report.engine import write_report
from nsa_lib.report.verdict import FINISHED, MIME, OUTCOME_KEY, read_verdict
from nsa_lib.runs.stop_button import SIGNALS
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
    assert [output.output_type for output in outputs] == ["display_data", "error"]
    assert set(outputs[0].data) == {MIME, "text/html", "text/plain"}
    assert len(outputs[1].traceback) == 1
    assert outputs[1].traceback[0].count("\n") == 0
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


TOLD = "from nsa_lib.runs.report_file import told_report; print('told', told_report())"


@pytest.mark.filterwarnings("ignore:The specified file .* does not end in one of:UserWarning")
@pytest.mark.parametrize(
    ("output", "report"),
    [
        ("exp.lr0.1", "exp.lr0.1.html"),
        ("exp.lr0.2", "exp.lr0.2.html"),
        ("a b/it's.ipynb", "a b/it's.html"),
        ("x-{lr}.ipynb", "x-0.5.html"),
    ],
)
def test_the_notebook_is_told_where_its_report_will_be(tmp_path, monkeypatch, output, report):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path, TOLD)
    cells = [v4.new_code_cell("lr = 1", metadata={"tags": ["parameters"]}), v4.new_code_cell(TOLD)]
    nbformat.write(notebook(*cells), tmp_path / "in.ipynb")
    options = {"engine_name": "nsa", "progress_bar": False, "cwd": "elsewhere", "parameters": {"lr": 0.5}}
    executed = papermill.execute_notebook("in.ipynb", output, **options)
    assert executed.cells[-1].outputs[0].text == f"told {tmp_path / report}\n"
    assert (tmp_path / report).exists()


def test_without_the_engine_or_a_path_nothing_is_told(tmp_path):
    source, output = save(tmp_path, TOLD)
    for told in ({"engine_name": None}, {"engine_name": "nsa", "output_path": None}):
        executed = papermill.execute_notebook(source, **{"output_path": output, "progress_bar": False, **told})
        assert executed.cells[-1].outputs[0].text == "told None\n"


def test_an_output_that_is_named_as_a_page_is_refused_before_anything_is_written(tmp_path):
    save(tmp_path, "1")
    command = [sys.executable, "-m", "papermill", "in.ipynb", "result.html", "--engine", "nsa"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "result.html: the executed notebook cannot be named as its report is" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.ipynb"]


def test_a_name_that_would_become_an_expression_is_refused_before_anything_is_written(tmp_path):
    source, output = save(tmp_path, "1")
    with pytest.raises(click.UsageError, match="l-sel: no name of a parameter; did you mean l_sel"):
        papermill.execute_notebook(source, output, engine_name="nsa", progress_bar=False, parameters={"l-sel": 32})
    assert [path.name for path in tmp_path.iterdir()] == ["in.ipynb"]


@pytest.mark.parametrize("options", [[], ["--allow-errors"]], ids=["go", "no-go"])
def test_nbconvert_judges_what_it_executed_itself(tmp_path, options):
    word = "NO-GO" if options else "GO"
    source, output = save(tmp_path, conclude_source(word))
    source.rename(output)
    command = [
        BIN / "jupyter",
        "nbconvert",
        "--log-level=ERROR",
        "--execute",
        "--to",
        "nsa_html",
        *options,
        "out.ipynb",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert headline(tmp_path)[0] == word


@pytest.mark.parametrize("number", SIGNALS)
def test_ctrl_c_is_the_stop_button_of_the_kernel(tmp_path, number):
    waits = "import time\ntry:\n    print('waits', flush=True)\n    time.sleep(60)\n"
    waits += "except KeyboardInterrupt:\n    print('stopped')"
    save(tmp_path, waits, conclude_source("INCOMPLETE"))
    command = [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "--engine", "nsa", "--log-output"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as ended:
        while "waits" not in ended.stderr.readline():
            assert ended.poll() is None
        ended.send_signal(number)
        ended.stderr.read()
    assert ended.returncode == 1
    saved = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    cell = next(cell for cell in saved.cells if cell.source == waits)
    assert "".join(output.text for output in cell.outputs) == "waits\nstopped\n"
    assert headline(tmp_path) == ("INCOMPLETE", SUMMARY["headline"])


def test_a_second_ctrl_c_ends_a_kernel_that_does_not_stop(tmp_path):
    deaf = "import signal, time\nsignal.signal(2, signal.SIG_IGN)\nprint('waits', flush=True)\ntime.sleep(60)"
    save(tmp_path, deaf, conclude_source("GO"))
    command = [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "--engine", "nsa", "--log-output"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as ended:
        while "waits" not in ended.stderr.readline():
            assert ended.poll() is None
        ended.send_signal(signal.SIGINT)
        time.sleep(1)  # two signals at once are one
        ended.send_signal(signal.SIGINT)
        ended.stderr.read()
    assert ended.returncode != 0
    assert headline(tmp_path)[0] == "INCOMPLETE"


@pytest.mark.parametrize("last", ["1", "import os; os.kill(os.getpid(), 9)"], ids=["ends", "dies"])
def test_who_executes_a_notebook_hears_signals_afterwards_as_before(tmp_path, last):
    heard = []
    with heard_by(heard.append):
        with suppress(RuntimeError):  # the kernel died
            execute(tmp_path, last)
        for number in SIGNALS:
            signal.raise_signal(number)
        assert heard == list(SIGNALS)
        execute(tmp_path, "1")  # it would meet a signal that was left for it at its start, and end at once
    assert headline(tmp_path)[1] == "no verdict was recorded"


@contextmanager
def heard_by(hear):
    """Let `hear` take the signals' numbers."""
    before = {number: signal.signal(number, lambda number, _: hear(number)) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("stop", "said"),
    [(KeyboardInterrupt(), "KeyboardInterrupt"), (TimeoutError("a cell took\ntoo long"), "TimeoutError: a cell took")],
)
def test_whatever_ends_a_run_is_reported_and_goes_on(tmp_path, monkeypatch, stop, said):
    (tmp_path / "out.html").write_text("the page of an earlier run: GO")
    unfinished = "the run did not finish: it is being made, or papermill was killed before its end"

    def execute_managed_notebook(nb_man, kernel_name, **kwargs):
        # What an autosave would leave if papermill itself were killed now, and what stands beside it.
        assert read_verdict(nb_man.nb).headline == unfinished
        assert headline(tmp_path) == ("INCOMPLETE", unfinished)
        raise stop

    monkeypatch.setattr(NBClientEngine, "execute_managed_notebook", execute_managed_notebook)
    with pytest.raises(type(stop)):
        execute(tmp_path, "1")
    assert headline(tmp_path) == ("INCOMPLETE", f"the run did not finish: {said}")


def test_a_page_that_cannot_be_written_is_a_line_and_the_notebook_ends_as_it_would(tmp_path, caplog):
    (tmp_path / "out.html").mkdir()  # as another user's file, or a full disk: no page can be put there
    caplog.set_level("INFO")
    execute(tmp_path, conclude_source("GO"))
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert executed.metadata[OUTCOME_KEY]["outcome"] == FINISHED
    (line,) = [said for said in caplog.messages if said.startswith("HTML report: ")]
    assert "without a say in the verdict: IsADirectoryError: " in line
    assert "\n" not in line


def test_an_output_without_a_path_gets_no_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (None, "-"):
        write_report(notebook(papermill={"output_path": path}))
    assert not list(tmp_path.iterdir())
