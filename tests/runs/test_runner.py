"""One result a case, whatever becomes of its process: planted ends in place of the worker."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from nsa_lib.contract.case import SNAPSHOT_STEPS
from nsa_lib.contract.source import OTHER_SOURCE
from nsa_lib.judgement.gate import NOT_RUN
from nsa_lib.runs import environment, nodes, predictor, runner
from nsa_lib.runs.folder import make_run_folder
from nsa_lib.runs.processes import children
from nsa_lib.runs.progress import Progress
from nsa_lib.runs.runner import Limits, StopButton, execute, run_case, start_worker
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import plan
from nsa_lib.workbook.run import record
from tests.processes import command_lines
from tests.runs.test_plan import CPU
from tests.subject.test_config import CASE

LIMITS = Limits(start_s=600, build_s=600, warmup_s=600, step_floor_s=1.0)
"""Nothing but a hang after the second step, which all that is planted comes to at once, meets a limit."""

PATIENT = replace(LIMITS, step_floor_s=600)
"""For what beats: a busy machine may let it beat late."""

BEATS = f"""
import ctypes, faulthandler, json, os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {str(environment.PROJECT)!r})
from nsa_lib.contract.heartbeat import Heartbeat
faulthandler.enable(); faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)
folder = Path(sys.argv[1]).parent
(folder / "ready").touch()
if not sys.stdin.readline():
    sys.exit()
h = Heartbeat(folder / "heartbeat.jsonl")
h.beat("warmup")
def step(n, seconds=0.01):
    h.beat("step", n, step_ms=1000 * seconds, peak_alloc_mib=10.0)
step(1); step(2)
"""

RESULT = """
(folder / "result.json").write_text(json.dumps({"schema": 1, "case_id": "training", "status": "STATUS", "reason": "R"}))
"""


def plant(tmp_path, monkeypatch, code):
    script = tmp_path / "planted.py"
    script.write_text(BEATS + code)
    monkeypatch.setattr(runner, "WORKER", (sys.executable, str(script)))
    monkeypatch.setattr(predictor, "COMMAND", (sys.executable, "-c", "raise NotImplementedError('planted')"))


def run_planted(tmp_path, monkeypatch, code, limits=LIMITS):
    plant(tmp_path, monkeypatch, code)
    (tmp_path / "case.json").write_text(CASE.to_json())
    with StopButton() as stop:
        process = start_worker(CASE, tmp_path)
        return run_case(CASE, tmp_path, process, limits=limits, progress=Progress({"training": 3}), stop=stop)


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        (RESULT.replace("STATUS", "ok"), "ok", "R"),
        (RESULT.replace("STATUS", "oom"), "oom", "R"),
        ("", "failed", "without a result"),
        ("raise TypeError('planted')", "failed", "TypeError: planted"),
        (RESULT.replace("STATUS", "ok") + "sys.exit(3)", "failed", "exit status 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "crashed", "SIGKILL"),
        ("ctypes.string_at(0)", "crashed", "SIGSEGV"),
        ("os.abort()", "crashed", "SIGABRT"),
        ("time.sleep(600)", "stalled", "after step 2"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)", "stalled", "after step 2"),
        ("ctypes.PyDLL(None).sleep(600)", "stalled", "after step 2"),  # C code that holds the GIL
    ],
    ids=["ok", "oom", "nothing", "exception", "bad-exit", "kill", "segv", "abort", "hang", "hang-term", "hang-gil"],
)
def test_every_end_is_named(tmp_path, monkeypatch, code, status, word):
    result = run_planted(tmp_path, monkeypatch, code)
    assert result["status"] == status
    assert word in result["reason"]
    assert result["steps_done"] == 2
    if status == "stalled":
        assert "planted.py" in result["stderr_tail"], "the stacks of a hang are kept"


def test_a_snapshot_is_watched_to_its_end(tmp_path):
    snapshot = replace(CASE, case_id="snapshot", work="snapshot", steps=SNAPSHOT_STEPS, warmup_steps=0)
    (tmp_path / "case.json").write_text(snapshot.to_json())
    with StopButton() as stop:
        process = start_worker(snapshot, tmp_path)
        result = run_case(snapshot, tmp_path, process, limits=Limits(), progress=Progress({"snapshot": 5}), stop=stop)
    assert (result["status"], result["steps_done"]) == ("ok", SNAPSHOT_STEPS), result


def test_modules_in_the_working_folder_do_not_reach_a_worker(tmp_path, monkeypatch):
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "case.json").write_text(CASE.to_json())
    for module in ("profile", "random", "torch"):
        (tmp_path / f"{module}.py").write_text(f"raise SystemExit('{module} of the user')")
    monkeypatch.chdir(tmp_path)
    process = start_worker(CASE, Path("case"))
    process.stdin.close()  # torch is imported, and then nobody wants the case
    assert (process.wait(), (tmp_path / "case" / "stderr.log").read_text()) == (0, "")


def test_another_run_at_once_is_announced(tmp_path, monkeypatch, smoke, capsys):
    waits = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "-m", "nsa_lib.worker"]
    waits.append("/out/runs/smoke-of-another/cases/training/case.json")
    plant(tmp_path, monkeypatch, RESULT.replace("STATUS", "ok"))
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        execute(smoke)
        said = capsys.readouterr().out.replace("\n  ", " ")  # with all others that run now it is wider than a terminal
        other.stdin.close()
    (line,) = [line for line in said.splitlines() if "running on this machine too" in line]
    assert "smoke-of-another" in line
    execute(smoke)
    assert "smoke-of-another" not in capsys.readouterr().out


CHANGED = "nsa_lib has changed; restart the kernel"


def test_a_library_that_changed_since_its_import_stops_a_run_before_any_work(monkeypatch, smoke):
    monkeypatch.setattr(environment, "why_outdated", lambda: CHANGED)
    with pytest.raises(ConfigError, match="restart the kernel"):
        execute(smoke)
    assert not [*smoke.out_dir.glob("runs/*")]


def test_a_library_that_changes_during_a_case_leaves_the_others_unjudged(tmp_path, monkeypatch, smoke):
    plant(tmp_path, monkeypatch, RESULT.replace("STATUS", "ok"))
    said = iter(["", CHANGED])
    monkeypatch.setattr(runner, "why_outdated", lambda: next(said, CHANGED))
    run = record(execute(smoke))
    assert run.cases["status"].to_list() == ["ok", "interrupted", "interrupted"]
    assert run.cases["reason"].iloc[1] == f"not started: {CHANGED}"
    assert {gate.name: gate.outcome for gate in run.gates}["anomaly"] == NOT_RUN


def test_a_worker_of_other_source_leaves_its_case_unjudged(tmp_path, monkeypatch):
    (tmp_path / "case.json").write_text(CASE.to_json())
    monkeypatch.setattr(runner, "package_sha256", lambda: "0" * 64)
    with StopButton() as stop:
        process = start_worker(CASE, tmp_path)
        result = run_case(CASE, tmp_path, process, limits=LIMITS, progress=Progress({"training": 3}), stop=stop)
    assert (result["status"], result["exit_code"]) == ("interrupted", OTHER_SOURCE)
    assert "is other source than the notebook imported" in result["reason"]


@pytest.mark.parametrize(
    ("code", "outdated", "status"),
    [
        ("raise ImportError('half pulled')", CHANGED, "interrupted"),
        ("raise ImportError('half pulled')", "", "failed"),
        ("sys.stdin.readline(); begin(); raise TypeError('in a step')", CHANGED, "failed"),
        ("sys.stdin.readline(); os.kill(os.getpid(), 9)", CHANGED, "crashed"),
    ],
    ids=["before-its-first-beat", "and-nothing-changed", "after-it", "killed"],
)
def test_a_worker_that_could_not_begin_while_the_library_changed_is_no_failure(
    tmp_path, monkeypatch, code, outdated, status
):
    begin = BEATS.partition("(folder")[0]
    begin += "def begin(): Heartbeat(folder / 'heartbeat.jsonl').beat('build')\n"
    (tmp_path / "planted.py").write_text(begin + code)
    (tmp_path / "case.json").write_text(CASE.to_json())
    monkeypatch.setattr(runner, "WORKER", (sys.executable, str(tmp_path / "planted.py")))
    monkeypatch.setattr(runner, "why_outdated", lambda: outdated)
    with StopButton() as stop:
        process = start_worker(CASE, tmp_path)
        result = run_case(CASE, tmp_path, process, limits=LIMITS, progress=Progress({"training": 3}), stop=stop)
    assert result["status"] == status
    assert ("half pulled" in result["reason"]) == code.startswith("raise")


def test_a_full_disk_ends_everything_that_was_started(tmp_path, monkeypatch, smoke):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    plant(tmp_path, monkeypatch, "time.sleep(600)")
    monkeypatch.setattr(runner, "run_case", no_space)
    monkeypatch.setattr(predictor, "write_json", no_space)
    before = children(os.getpid())
    with pytest.raises(ConfigError, match="No space left on device; nothing that the run started is left") as refusal:
        execute(smoke)
    assert "\n" not in str(refusal.value)
    assert children(os.getpid()) <= before


def test_slow_but_beating_is_not_stalled(tmp_path, monkeypatch):
    code = "for n in range(3, 63): time.sleep(0.1); step(n)\n" + RESULT.replace("STATUS", "ok")
    limits = replace(LIMITS, step_floor_s=5.0)  # all steps together take longer than any may be silent
    assert run_planted(tmp_path, monkeypatch, code, limits)["status"] == "ok"


def test_beating_beyond_the_total_limit_is_a_timeout(tmp_path, monkeypatch):
    code = "for n in range(3, 200): time.sleep(0.1); step(n)"
    limits = replace(PATIENT, total_s=1.5)
    assert run_planted(tmp_path, monkeypatch, code, limits)["status"] == "timeout"


@pytest.mark.parametrize(("spent_s", "status"), [(0.0, "ok"), (599.0, "timeout")])
def test_a_case_ends_when_the_run_has_taken_all_of_its_time(tmp_path, monkeypatch, spent_s, status):
    code = "for n in range(3, 33): time.sleep(0.1); step(n)\n" + RESULT.replace("STATUS", "ok")
    result = run_planted(tmp_path, monkeypatch, code, replace(PATIENT, total_s=0.1, run_s=600, spent_s=spent_s))
    assert result["status"] == status
    assert result["reason"] == ("the run has taken all of its total_timeout_s=600" if status == "timeout" else "R")


def test_a_kill_by_the_kernel_for_memory_is_oom(tmp_path, monkeypatch):
    counts = iter([0, 1])
    monkeypatch.setattr(environment, "oom_kills", lambda: next(counts))
    result = run_planted(tmp_path, monkeypatch, "os.kill(os.getpid(), signal.SIGKILL)")
    assert result["status"] == "oom"


def test_children_of_a_case_are_swept(tmp_path, monkeypatch):
    code = "child = subprocess.Popen(['sleep', '600']); (folder / 'child').write_text(str(child.pid))\n"
    run_planted(tmp_path, monkeypatch, code + RESULT.replace("STATUS", "ok"))
    assert gone(int((tmp_path / "child").read_text()))


def test_the_stop_button_ends_the_case_and_keeps_what_was_recorded(tmp_path, monkeypatch):
    code = "(folder / 'pid').write_text(str(os.getpid())); time.sleep(600)"
    pressing = threading.Thread(target=press_once_there, args=(tmp_path / "pid",), daemon=True)
    pressing.start()
    result = run_planted(tmp_path, monkeypatch, code, PATIENT)
    pressing.join()
    assert (result["status"], result["reason"]) == ("interrupted", "stopped by the user")
    assert result["steps_done"] == 2
    assert gone(int((tmp_path / "pid").read_text()))


def press_once_there(path):
    """Press the stop button as soon as a file holds something."""
    while not (path.exists() and path.read_text()):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    """The plan of a smoke of three cases."""
    monkeypatch.setattr(environment, "torch_facts", lambda: CPU)
    planned = plan("smoke", {"profile": "laptop", "out_dir": str(tmp_path / "out")})
    cases = [case for case in planned.cases if case.case_id != "hot"]
    return replace(planned, cases=(*cases, replace(cases[0], case_id="third")))


NOT_STARTED = ("interrupted", "not started")


@pytest.mark.parametrize(
    ("owner", "name", "training"),
    [
        (nodes, "make_run_folder", NOT_STARTED),
        (runner.subprocess, "Popen", ("interrupted", "stopped by the user")),
        (runner, "end_tree", ("ok", "R")),
        (runner.Progress, "end", ("ok", "R")),
    ],
    ids=["run-folder", "spawn", "sweep", "progress"],
)
def test_the_stop_button_may_be_pressed_at_any_point(tmp_path, monkeypatch, smoke, owner, name, training):
    press_after(monkeypatch, owner, name)
    ending = "time.sleep(600)" if training[0] == "interrupted" else RESULT.replace("STATUS", "ok")
    plant(tmp_path, monkeypatch, ending)
    folder = execute(smoke)
    results = [json.loads((folder / f"cases/{case.case_id}/result.json").read_text()) for case in smoke.cases]
    assert [(result["status"], result["reason"]) for result in results] == [training, NOT_STARTED, NOT_STARTED]
    assert processes(str(tmp_path / "planted.py")) == []
    with pytest.raises(KeyboardInterrupt):  # given back to Python
        signal.raise_signal(signal.SIGINT)


def test_after_the_time_of_the_run_nothing_more_is_started(tmp_path, monkeypatch, smoke):
    plant(tmp_path, monkeypatch, "for n in range(3, 600): time.sleep(0.1); step(n)")
    limit = replace(smoke.values["total_timeout_s"], value=0.5)
    folder = execute(replace(smoke, values={**smoke.values, "total_timeout_s": limit}))
    results = [json.loads((folder / f"cases/{case.case_id}/result.json").read_text()) for case in smoke.cases]
    over = "the run has taken all of its total_timeout_s=0.5"
    ends = [("timeout", over), ("interrupted", f"not started: {over}"), ("interrupted", f"not started: {over}")]
    assert [(result["status"], result["reason"]) for result in results] == ends
    assert processes(str(tmp_path / "planted.py")) == []


def press_after(monkeypatch, owner, name):
    """Press the stop button as soon as a function returns."""
    function = getattr(owner, name)

    def pressed(*args, **kwargs):
        result = function(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, pressed)


def processes(word):
    """Return the processes that have a word on their command line."""
    return [pid for pid, words in command_lines().items() if word in words]


def test_the_next_worker_is_started_ahead_and_begins_when_its_turn_comes(tmp_path, monkeypatch, smoke):
    follower = {one.case_id: other.case_id for one, other in zip(smoke.cases, smoke.cases[1:], strict=False)}
    until_the_next_is_ready = (
        f"waited_for = folder.parent / {follower!r}.get(folder.name, folder.name) / 'ready'\n"
        "while not waited_for.exists(): time.sleep(0.05)\n"
        "time.sleep(0.05)\n"  # the time of a file is that of the last tick
    )
    plant(tmp_path, monkeypatch, until_the_next_is_ready + RESULT.replace("STATUS", "ok"))
    folder = execute(smoke)
    cases = [folder / "cases" / case.case_id for case in smoke.cases]
    began = [json.loads((case / "heartbeat.jsonl").read_text().splitlines()[0])["ts"] for case in cases]
    ended = [(case / "result.json").stat().st_mtime for case in cases]
    ready = [(case / "ready").stat().st_mtime for case in cases]
    for before, after in ((0, 1), (1, 2)):
        assert ready[after] < ended[before] < began[after]


def test_a_worker_that_dies_before_its_turn_fails_its_own_case_alone(tmp_path, monkeypatch, smoke):
    plant(tmp_path, monkeypatch, RESULT.replace("STATUS", "ok"))
    script = tmp_path / "planted.py"
    death = "import sys\nif 'third' in sys.argv[1]: raise ImportError('planted')\n"
    script.write_text(death + script.read_text())
    folder = execute(smoke)
    results = [json.loads((folder / f"cases/{case.case_id}/result.json").read_text()) for case in smoke.cases]
    assert [result["status"] for result in results] == ["ok", "ok", "failed"]
    assert results[2]["reason"] == "ImportError: planted"


def test_a_worker_that_is_not_let_go_ends_with_the_pipe_that_it_waits_at(tmp_path):
    (tmp_path / "case.json").write_text(CASE.to_json())
    process = start_worker(CASE, tmp_path)
    process.stdin.close()
    assert process.wait(600) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"case.json", "stderr.log"}


def test_no_worker_outlives_a_supervision_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(Progress, "show", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_planted(tmp_path, monkeypatch, "time.sleep(600)")
    assert processes(str(tmp_path / "planted.py")) == []


def test_runs_that_start_in_the_same_second_share_no_folder(smoke):
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(make_run_folder, [smoke] * 8))
    assert len(set(folders)) == 8
    assert {json.loads((folder / "run.json").read_text())["run_id"] for folder in folders} == {f.name for f in folders}


def test_a_worker_dies_with_the_process_that_started_it(tmp_path):
    (tmp_path / "worker.py").write_text(
        "import os, sys, time\nfrom nsa_lib.contract.process import die_with_parent\n"
        "die_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(600)"
    )
    (tmp_path / "parent.py").write_text(
        "import os, subprocess, sys, time\n"
        f"worker = {str(tmp_path / 'worker.py')!r}\n"
        "subprocess.Popen([sys.executable, worker, str(os.getpid())], start_new_session=True)\n"
        "time.sleep(600)"
    )
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=environment.PROJECT) as parent:
        worker = int(parent.stdout.readline())
        assert not gone(worker, patience_s=0)
        parent.kill()
    assert gone(worker)


def gone(pid: int, patience_s: float = 300) -> bool:
    """Return whether a process ends within the patience; a zombie has ended."""
    deadline = time.monotonic() + patience_s
    while True:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def test_limits_follow_what_was_measured():
    limits = Limits()
    assert limits.silence_s("warmup", []) == limits.warmup_s
    assert limits.silence_s("step", [0.1] * 20) == limits.step_floor_s
    assert limits.silence_s("step", [46.0, 94.0, 93.0]) == 930
    assert Limits(given_s=7).silence_s("step", [46.0]) == 7
    assert Limits(given_s=7).silence_s("start", []) == limits.start_s


def test_how_long_the_judge_may_be_silent_does_not_hang_on_the_steps_before_it():
    assert Limits().silence_s("judge", [0.1] * 20) == Limits(given_s=7).silence_s("judge", [46.0]) == Limits().judge_s
