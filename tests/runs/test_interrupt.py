"""Runs that are stopped or killed from outside, through papermill and in a kernel as JupyterLab drives it.

Nothing is left running, what was recorded can be opened, and the next run starts afresh.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

from nsa_lib.report.verdict import MIME, read_verdict
from nsa_lib.runs.processes import descendants
from nsa_lib.workbook.replay import write_report
from nsa_lib.workbook.run import open_run
from tests.runs.test_runner import gone, processes
from tests.test_notebooks import FOLDER, TINY

ENDLESS = 100_000

STEPS = 5
"""Steps that the training records before something happens to it."""

PATIENCE_S = 600
"""Far above a slow day: each wait is for an event, and ends with it."""

PLOTLY = "application/vnd.plotly.v1+json"


def worker_of(out_dir, starter=None):
    """Wait until a run's training has done some steps; return its worker and the kernel that watches it.

    It never will once `starter`, the process that started the run, has ended.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and (starter is None or starter.poll() is None):
        for path in out_dir.glob("runs/*/cases/training/heartbeat.jsonl"):
            beats = path.read_bytes().count(b"\n")  # two of them stand for build and warm-up
            for worker in processes(str(path.with_name("case.json"))) if beats >= STEPS + 2 else ():
                command = Path(f"/proc/{worker}/cmdline").read_text().rstrip("\0").split("\0")
                return worker, int(command[-1])
        time.sleep(0.05)
    raise AssertionError(f"no training in {out_dir}")


def when_at_work(out_dir, act, starter=None):
    """Act on the worker and the kernel of a run as soon as it is in the middle of its training."""
    thread = threading.Thread(target=lambda: act(*worker_of(out_dir, starter)))
    thread.start()
    return thread


def end(started):
    """End runs, {folder: the process that started it}, with all that is left of them: a test that fails leaves none."""
    for folder, process in started.items():
        left = {process.pid, *processes(str(folder / "out.ipynb"))}
        for pid in left.union(*map(descendants, left)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


WAYS = {"papermill": signal.SIGKILL, "ctrl-c": signal.SIGINT, "kernel": None}
"""The signal that papermill gets; None for a kernel that is killed. SIGTERM leaves what SIGKILL leaves."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Start a run for each way to kill one, kill each in the middle of its training, and return what that left."""
    left = {}

    def kill(way, papermill, worker, kernel):
        os.kill(kernel, signal.SIGKILL) if WAYS[way] is None else papermill.send_signal(WAYS[way])
        left[way] = folders[way], papermill.wait(timeout=PATIENCE_S), gone(worker), gone(kernel)

    folders = {way: tmp_path_factory.mktemp(way) for way in WAYS}
    started = {folder: start_papermill(folder) for folder in folders.values()}
    acting = [when_at_work(f, partial(kill, way, started[f]), started[f]) for way, f in folders.items()]
    for thread in acting:
        thread.join()
    end(started)
    return left


def start_papermill(folder):
    command = [sys.executable, "-m", "papermill", str(FOLDER / "smoke.ipynb"), str(folder / "out.ipynb")]
    for name, value in {**TINY, "steps": ENDLESS, "out_dir": folder}.items():
        command += ["-p", name, str(value)]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_leaves_no_process_and_is_incomplete(killed, way):
    folder, status, worker_gone, kernel_gone = killed[way]
    assert status != 0
    assert worker_gone
    assert kernel_gone
    assert read_verdict(nbformat.read(folder / "out.ipynb", as_version=4)).word == "INCOMPLETE"
    opened = open_run("newest", out_dir=folder)
    assert opened.verdict == "INCOMPLETE"
    assert set(opened.cases["status"]) == {"interrupted"}
    assert len(opened.steps) == len(opened.figures["memory"].data[0].x) >= STEPS
    # Ctrl-C reaches the kernel, which still has the time to record the run; the others end it at once.
    assert (opened.folder / "summary.json").exists() == (way == "ctrl-c")


def test_ctrl_c_without_the_engine_leaves_what_the_stop_button_leaves_and_the_page_is_made_of_it(killed):
    folder, *_ = killed["ctrl-c"]
    run = open_run("newest", out_dir=folder)
    assert list(run.cases["reason"]) == ["stopped by the user", "not started", "not started"]
    written = json.loads((run.folder / "summary.json").read_text())
    assert (written["verdict"], written["run_id"]) == ("INCOMPLETE", run.folder.name)
    page = write_report(run.folder).read_text()
    assert page.index("INCOMPLETE") < page.index(run.folder.name)
    assert page.count('class="nsa-chart"') >= 4


def stopped(lab, tmp_path, signalled):
    """Run a notebook whose kernel is signalled at work; return what it showed and its run, which must be stopped."""
    lab.set_parameters(out_dir=str(tmp_path), steps=ENDLESS)
    acting = when_at_work(tmp_path, lambda _, kernel: signalled(kernel))
    shown, reply = lab.run_all()
    acting.join()
    assert (reply["ename"], reply["evalue"].split(":")[0]) == ("VerdictError", "INCOMPLETE")
    run = open_run("newest", out_dir=tmp_path)
    assert list(run.cases["reason"]) == ["stopped by the user", "not started", "not started"]
    return shown, run


def test_a_kernel_that_is_terminated_hears_the_stop_button(lab, tmp_path):
    stopped(lab, tmp_path, lambda kernel: os.kill(kernel, signal.SIGTERM))


SUPERVISED = """
import sys
from nsa_lib.runs import papermill
from nsa_lib.runs.stop_button import StopButton
with StopButton() as stop:
    sys.exit(papermill.supervise(papermill.command(*sys.argv[1:]), stop)[0])
"""


@pytest.fixture(scope="module")
def supervised(tmp_path_factory):
    """What `python -m nsa_lib run` leaves that gets a signal in the middle of its training."""
    left = {}

    def kill(number, parent, worker, kernel):
        parent.send_signal(number)
        left[number] = folders[number], parent.wait(timeout=PATIENCE_S), gone(worker), gone(kernel)

    folders = {number: tmp_path_factory.mktemp(number.name) for number in (signal.SIGTERM, signal.SIGKILL)}
    acting, started = [], {}
    for number, folder in folders.items():
        command = [sys.executable, "-c", SUPERVISED, FOLDER / "smoke.ipynb", folder / "out.ipynb", "--engine", "nsa"]
        for name, value in {**TINY, "steps": ENDLESS, "out_dir": folder}.items():
            command += ["-p", name, str(value)]
        with (folder / "log").open("wb") as log:
            parent = started[folder] = subprocess.Popen(command, stdout=log, stderr=log)
        acting.append(when_at_work(folder, partial(kill, number, parent), parent))
    for thread in acting:
        thread.join()
    end(started)
    return left


def test_a_run_that_is_terminated_leaves_what_the_stop_button_leaves(supervised):
    folder, status, *gone_all = supervised[signal.SIGTERM]
    assert (status, gone_all) == (1, [True, True])
    executed = nbformat.read(folder / "out.ipynb", as_version=4)
    found, run = read_verdict(executed), open_run("newest", out_dir=folder)
    assert (found.word, found.run_id) == ("INCOMPLETE", run.folder.name)
    charts = [
        output for cell in executed.cells for output in cell.get("outputs", ()) if PLOTLY in output.get("data", {})
    ]
    assert len(charts) >= 4
    assert list(run.cases["reason"]) == ["stopped by the user", "not started", "not started"]
    assert run.folder.name in (folder / "out.html").read_text()


def test_a_run_that_is_killed_takes_its_children_along(supervised):
    folder, status, *gone_all = supervised[signal.SIGKILL]
    assert (status, gone_all) == (-signal.SIGKILL, [True, True])
    assert processes(str(folder / "out.ipynb")) == []
    assert open_run("newest", out_dir=folder).verdict == "INCOMPLETE"


class Lab:
    """A kernel and the notebook's cells, run as JupyterLab does."""

    def __init__(self, name="smoke"):
        self.manager, self.client = start_new_kernel(startup_timeout=PATIENCE_S, cwd=str(FOLDER))
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        self.kept = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
        self.cells = self.kept

    def set_parameters(self, **parameters):
        """Edit the parameters cell."""
        values = {**TINY, "anomaly": True, **parameters}
        edits = "".join(f"\n{name} = {value!r}" for name, value in values.items())
        self.cells = {**self.kept, "parameters": self.kept["parameters"] + edits}

    def run_all(self):
        """Run all cells up to the first that fails; return what they displayed, by MIME type, and the last reply."""
        shown = {}

        def keep(message):
            for mime, data in message["content"].get("data", {}).items():
                shown.setdefault(mime, []).append(data)

        for source in self.cells.values():
            reply = self.client.execute_interactive(source, timeout=PATIENCE_S, output_hook=keep)["content"]
            if reply["status"] == "error":
                break
        return shown, reply

    def close(self):
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def lab():
    """One kernel for the tests below, so that each runs the cells again after what the one before it did."""
    opened = Lab()
    yield opened
    opened.close()


def test_the_stop_button_ends_the_worker_and_the_notebook_goes_on(lab, tmp_path):
    shown, run = stopped(lab, tmp_path, lambda kernel: os.killpg(kernel, signal.SIGINT))
    assert shown[MIME][0]["run_id"] == run.folder.name
    assert len(shown[PLOTLY]) == 7
    assert sum(bool(figure["data"]) for figure in shown[PLOTLY]) >= 4, "a prediction may not be ready"
    assert processes(str(run.folder / "cases" / "training" / "case.json")) == []


def test_a_killed_worker_is_a_no_go_that_shows_what_was_recorded_and_lets_the_next_case_run(lab, tmp_path):
    lab.set_parameters(out_dir=str(tmp_path), steps=ENDLESS)
    acting = when_at_work(tmp_path, lambda worker, _: os.kill(worker, signal.SIGKILL))
    shown, reply = lab.run_all()
    acting.join()
    assert (reply["ename"], reply["evalue"].split(":")[0]) == ("VerdictError", "NO-GO")
    run = open_run("newest", out_dir=tmp_path)
    assert list(run.cases["status"]) == ["crashed", "ok", "ok"]
    assert run.cases["reason"][0] == "killed by SIGKILL"
    assert shown[MIME][0]["run_id"] == run.folder.name
    assert len(run.figures["memory"].data[0].x) == run.cases["steps_done"][0] >= STEPS


def test_a_loss_that_is_nan_is_a_no_go_that_names_the_offender(lab, tmp_path):
    lab.set_parameters(out_dir=str(tmp_path), steps=60, lr=1e30)
    _, reply = lab.run_all()
    assert (reply["ename"], reply["evalue"].split(":")[0]) == ("VerdictError", "NO-GO")
    run = open_run("newest", out_dir=tmp_path)
    assert run.cases["status"][0] == "nan"
    assert run.cases["reason"][0].endswith("at step 2; first gradient that is not finite: embedding.weight")


def test_a_restart_of_the_kernel_ends_the_worker(lab, tmp_path):
    lab.set_parameters(out_dir=str(tmp_path), steps=ENDLESS)
    for name in ("parameters", "setup", "plan", "run"):
        lab.client.execute(lab.cells[name])
    worker, _ = worker_of(tmp_path)
    lab.manager.restart_kernel()
    assert gone(worker)
