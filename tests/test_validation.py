"""The whole checklist in one go, with something quick in papermill's place: order, end, what counts."""

import contextlib
import io
import json
import os
import signal
import sys
import threading

import nbformat
import pytest

from nsa_lib import validation
from nsa_lib.runs import papermill
from nsa_lib.subject.config import ConfigError
from nsa_lib.validation import STOPPED, VALIDATE_ORDER, check_parameters, papermill_command, validate
from tests.samples import code_cell, concluded, notebook

ORDER = ("preflight", "backward_scaling", "smoke", "backend_contrast", "readiness")


def ended_in(name, word):
    """Return an executed notebook that ends in a verdict."""
    changes = {"run_id": f"{name}-run", "notebook": name, "reasons": ["because"] * (word != "GO")}
    with contextlib.redirect_stdout(io.StringIO()):
        return notebook(code_cell(outputs=concluded(word, **changes)))


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """Let each notebook end in a verdict of its own; returns what was asked of each, in order.

    A verdict may be None, then no notebook is left, or a command to run instead of writing a notebook.
    """

    def plant(**verdicts):
        asked = []

        def command(notebook, output, in_files, on_line):
            asked.append((notebook, dict(in_files), dict(on_line), output))
            word = verdicts.get(notebook, "GO")
            if isinstance(word, list):
                return word
            if word is None:
                return [sys.executable, "-S", "-c", "import sys; sys.exit('first line\\nno kernel')"]
            made = tmp_path / f"{notebook}-made.ipynb"
            nbformat.write(ended_in(notebook, word), made)
            status = 0 if word == "GO" else 1
            code = f"import os, sys; os.rename({str(made)!r}, {str(output)!r}); sys.exit({status})"
            return [sys.executable, "-S", "-c", code]

        monkeypatch.setattr(validation, "papermill_command", command)
        monkeypatch.setattr(papermill, "POLL_S", 0.01)
        return asked

    return plant


# Parameters


def test_notebooks_run_in_the_order_of_the_checklist():
    assert VALIDATE_ORDER == ORDER


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"stepz": "3"}, "stepz: no such parameter of preflight, backward_scaling, smoke, backend_contrast, readiness"),
        ({"runs": "newest"}, "runs: a validation decides over the runs that it makes"),
        ({"profile": "fast"}, "profile='fast': accepts auto, checklist or laptop"),
        ({"steps": "ten"}, "steps='ten': accepts a whole number above 0"),
        ({"seq_lens": "[3, 2]"}, r"seq_lens='\[3, 2\]': accepts"),
        ({"tag": "a/b"}, "tag='a/b': accepts"),
    ],
)
def test_what_no_notebook_accepts_is_refused_before_anything_starts(planted, tmp_path, given, line):
    with pytest.raises(ConfigError, match=f"^{line}"):
        check_parameters(given)
    asked = planted()
    for in_files, on_line in ((given, {}), ({}, given)):
        with pytest.raises(ConfigError, match=f"^{line}"):
            validate(in_files, on_line, reports=tmp_path / "reports")
    assert (asked, (tmp_path / "reports").exists()) == ([], False)


def test_what_one_notebook_alone_declares_is_accepted():
    check_parameters({"profile": "laptop", "rounds": "3", "seq_lens": (64, 128), "anomaly": True, "tag": "007"})


def test_each_notebook_is_given_the_parameters_that_it_declares(tmp_path):
    output = tmp_path / "out.ipynb"
    in_files, on_line = {"seq_lens": [64, 128], "tag": "a"}, {"steps": "60", "tag": "007", "rounds": "2"}
    scaling = papermill_command("backward_scaling", output, in_files, on_line)
    assert scaling[:3] == [sys.executable, "-m", "nsa_lib.runs.papermill"]
    assert (scaling[4].endswith("notebooks/backward_scaling.ipynb"), scaling[5]) == (True, str(output))
    assert scaling[6:10] == ["--engine", "nsa", "--no-progress-bar", "-y"]
    assert json.loads(scaling[10]) == {"seq_lens": [64, 128], "tag": "a"}
    assert scaling[11:] == ["-r", "steps", "60", "-r", "tag", "007"]
    smoke = papermill_command("smoke", output, in_files, on_line)
    assert json.loads(smoke[10]) == {"tag": "a"}
    assert "rounds" in papermill_command("backend_contrast", output, in_files, on_line)
    readiness = papermill_command("readiness", output, {}, {"steps": "60", "runs": "a,b"})
    assert readiness[9:] == ["-r", "runs", "a,b"]


# Running


def test_readiness_decides_over_the_runs_made_here(planted, tmp_path, capsys):
    asked = planted()
    given = {"out_dir": str(tmp_path / "out")}
    assert validate({"profile": "laptop"}, given, reports=tmp_path / "reports") == 0
    assert [notebook for notebook, *_ in asked] == list(ORDER)
    runs = "preflight-run,backward_scaling-run,smoke-run,backend_contrast-run"
    assert [on_line for _, _, on_line, _ in asked] == [given] * 4 + [{**given, "runs": runs}]
    assert {json.dumps(in_files) for _, in_files, _, _ in asked} == {'{"profile": "laptop"}'}
    assert len({output.stem.split("-")[-1] for *_, output in asked}) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    for line, name in zip(lines[:5], ORDER, strict=True):
        assert line.startswith(f"✔ GO          {name}")
        assert "within every limit.  no report  (" in line
        assert line.endswith(" s)")
    assert lines[5:7] == ["", "✔ GO: 12 layers trained 100 steps at sequence 2,048 within every limit."]
    assert lines[-3] == f"for review: {tmp_path / 'out' / 'runs' / 'readiness-run' / 'review.zip'}"
    assert lines[-2] == f"report: {asked[-1][3].with_suffix('.html')}"
    assert lines[-1] == f"all runs: {tmp_path / 'out' / 'index.html'}"
    assert err.splitlines() == [f"{name} runs" for name in ORDER]


def test_a_notebook_that_is_not_go_stops_nothing_and_the_status_tells(planted, tmp_path, capsys):
    asked = planted(preflight="NO-GO", smoke="REVIEW", readiness="NO-GO")
    assert validate({}, {}, reports=tmp_path) == 1
    assert [notebook for notebook, *_ in asked] == list(ORDER)
    out = capsys.readouterr().out
    words = [line.split()[1] for line in out.splitlines()[:5]]
    assert words == ["NO-GO", "GO", "REVIEW", "GO", "NO-GO"]
    assert "\n✘ NO-GO: 12 layers" in out
    assert "  - because\n" in out


def test_a_notebook_that_left_nothing_is_told_and_no_older_run_stands_in_for_it(planted, tmp_path, capsys):
    asked = planted(smoke=None)
    validate({}, {}, reports=tmp_path)
    assert "smoke" not in asked[-1][2]["runs"]
    line = capsys.readouterr().out.splitlines()[2]
    assert line.startswith("○ INCOMPLETE  smoke             papermill left no notebook: no kernel  no report")


def test_without_any_run_readiness_is_asked_about_none(planted, tmp_path):
    asked = planted(**dict.fromkeys(ORDER))
    assert validate({}, {}, reports=tmp_path) == 1
    assert asked[-1][2] == {"runs": ""}


def test_the_report_that_a_notebook_left_is_named(planted, tmp_path, capsys, monkeypatch):
    asked = planted()
    run_notebook = validation._run_notebook

    def with_report(command, notebook, output, stop):
        output.with_suffix(".html").write_text("page")
        return run_notebook(command, notebook, output, stop)

    monkeypatch.setattr(validation, "_run_notebook", with_report)
    validate({}, {}, reports=tmp_path)
    out = capsys.readouterr().out
    assert "no report" not in out
    assert str(asked[0][3].with_suffix(".html")) in out.splitlines()[0]


@pytest.mark.parametrize(("word", "status"), [("GO", 0), ("REVIEW", 1), ("NO-GO", 1), ("INCOMPLETE", 1), (None, 1)])
def test_the_status_is_that_of_readiness(planted, tmp_path, word, status):
    planted(readiness=word)
    assert validate({}, {}, reports=tmp_path) == status


def test_an_accepted_review_is_status_0(planted, tmp_path, monkeypatch):
    planted(readiness="REVIEW")
    monkeypatch.setattr(papermill, "supervise", _supervised_with_status_0(papermill.supervise))
    assert validate({}, {"accept_review": "True"}, reports=tmp_path) == 0


def test_a_papermill_that_ends_well_makes_no_go_of_an_incomplete_verdict(planted, tmp_path, monkeypatch):
    planted(readiness="INCOMPLETE")
    monkeypatch.setattr(papermill, "supervise", _supervised_with_status_0(papermill.supervise))
    assert validate({}, {}, reports=tmp_path) == 1


def _supervised_with_status_0(supervise):
    return lambda *arguments, **named: (0, supervise(*arguments, **named)[1])


# Ctrl-C


SLOW = """
import signal, sys, time
try:
    open(sys.argv[1], "w").close()
    time.sleep(600)
except KeyboardInterrupt:
    open(sys.argv[2], "w").write("saved")
    sys.exit(1)
"""


def pressed_once_there(path):
    """Press Ctrl-C as soon as a file is there."""

    def press():
        while not path.exists():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    return thread


def test_ctrl_c_interrupts_the_notebook_that_runs_and_starts_no_other(planted, tmp_path, capsys):
    began, saved = tmp_path / "began", tmp_path / "saved"
    asked = planted(backward_scaling=[sys.executable, "-S", "-c", SLOW, str(began), str(saved)])
    before = signal.getsignal(signal.SIGINT)
    thread = pressed_once_there(began)
    assert validate({}, {}, reports=tmp_path) == STOPPED == 130
    thread.join()
    assert [notebook for notebook, *_ in asked] == ["preflight", "backward_scaling"]
    assert saved.read_text() == "saved"
    assert capsys.readouterr().out.splitlines()[-1] == "stopped; not started: smoke, backend_contrast, readiness"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_notebook_is_ended_when_its_supervision_fails(planted, tmp_path, monkeypatch):
    began, saved = tmp_path / "began", tmp_path / "saved"
    planted(preflight=[sys.executable, "-S", "-c", SLOW, str(began), str(saved)])
    started = []
    popen = papermill.subprocess.Popen
    monkeypatch.setattr(
        papermill.subprocess, "Popen", lambda *given, **how: started.append(popen(*given, **how)) or started[-1]
    )

    def broken(notebook):
        def tell():
            raise OSError("the terminal is gone")

        return tell

    monkeypatch.setattr(validation, "_ticker", broken)
    with pytest.raises(OSError, match="the terminal is gone"):
        validate({}, {}, reports=tmp_path)
    assert started[0].returncode == -signal.SIGTERM
