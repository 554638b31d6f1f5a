"""The launcher `local`: a member a GPU, each pinned, all at once; faults are named, the stop button is heard."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import pytest

from nsa_lib.runs import environment
from nsa_lib.runs.launchers import local
from nsa_lib.runs.launchers.member import Task, own_gpu
from nsa_lib.runs.launchers.start import FILE, all_runs, note_start
from nsa_lib.runs.launchers.state import FleetState
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.collect import collect, members_in
from nsa_lib.workbook.fleet.gates import quarantine, ruled
from nsa_lib.workbook.launch import launch
from tests.processes import command_lines

PATIENCE_S = 300
"""How long to wait for what happens within seconds on an idle machine."""

SMALL = {"layers": 1, "seq_len": 128, "vocab": 64, "steps": 60}


def test_a_wrong_bit_is_named_among_members_that_were_started_here(tmp_path, capsys):
    asked = {
        "launcher": "local", "fleet": "here", "gpus": 3, "profile": "laptop", "parameters": SMALL,
        "faults": {"1": "wrong_bit"}, "out_dir": str(tmp_path),
    }  # fmt: skip
    run = collect(launch(asked))
    (named,) = quarantine(ruled(run))
    assert (named.member.rank, run.verdict) == (1, "NO-GO")
    assert [finding.rule for finding in named.findings] == ["fingerprints"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 GO", "each is GO by itself"
    assert len(lines) == len(set(lines)), "no line twice"


def test_the_stop_button_ends_all_members_and_what_they_recorded_is_judged(tmp_path):
    folder = tmp_path / "fleets" / "here"
    parameters = {**SMALL, "steps": 100_000, "profile": "laptop", "fleet": "here", "out_dir": str(tmp_path)}
    pressed = []

    def press_once_both_train():
        if not pressed and len(list(folder.glob("runs/*/cases/training/heartbeat.jsonl"))) == 2:
            pressed.append(os.kill(os.getpid(), signal.SIGINT))

    with StopButton() as stop:
        local.run_members(
            Task(str(folder), "smoke", parameters, {}), 2, visible=[], stop=stop, tell=press_once_both_train
        )
    assert pressed
    assert Counter(member.verdict for member in members_in(folder)) == {"INCOMPLETE": 2}
    assert dict(+FleetState(folder, 2).counts()) == {"INCOMPLETE": 2}


def test_a_member_that_hangs_is_named_with_its_last_heartbeat_and_ends_at_the_second_press(tmp_path):
    folder = tmp_path / "fleets" / "here"
    parameters = {**SMALL, "steps": 100_000, "profile": "laptop", "fleet": "here", "out_dir": str(tmp_path)}
    presses, hung = [], []

    def press(number):
        if presses.count(number) == 0 and not stop.pressed:
            presses.append(number)
            os.kill(os.getpid(), signal.SIGINT)

    def act():
        run = next(folder.glob("runs/*/cases/training/heartbeat.jsonl"), None)
        if run is None or b'"step": 3,' not in run.read_bytes():
            return
        if not hung:
            hung.extend(processes_in(tmp_path))
            for pid in hung:
                os.kill(pid, signal.SIGSTOP)
        press(1) or press(2)

    with StopButton() as stop:
        local.run_members(Task(str(folder), "smoke", parameters, {}), 1, visible=[], stop=stop, tell=act)
    assert presses == [1, 2]
    for pid in hung:  # what is stopped does not see that its parent is gone
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    (member,) = members_in(folder)
    assert member.verdict == "INCOMPLETE"
    assert re.match(r"not finished: last heartbeat .* ago, training, phase (warmup|step), step \d+$", member.reasons[0])


def processes_in(folder):
    """Return the processes that are told a path in a folder: members, their kernels, the workers."""
    told = {pid: any(str(folder) in word for word in words) for pid, words in command_lines().items()}
    return [pid for pid, is_told in told.items() if is_told and pid != os.getpid()]


def wait_for(condition):
    """Wait until a condition holds, long enough for a machine that does much else."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_members_of_a_killed_kernel_end_with_it_and_the_next_start_counts_none_of_them(tmp_path):
    asked = {
        "launcher": "local", "fleet": "here", "gpus": 2, "profile": "laptop",
        "parameters": {**SMALL, "steps": 100_000}, "out_dir": str(tmp_path),
    }  # fmt: skip
    folder = tmp_path / "fleets" / "here"
    kernel = subprocess.Popen([sys.executable, "-c", f"from nsa_lib.workbook.launch import launch; launch({asked})"])
    try:
        wait_for(lambda: len(list(folder.glob("runs/*/cases/training/heartbeat.jsonl"))) == 2)
        assert len(processes_in(tmp_path)) > 2
    finally:
        kernel.kill()
        kernel.wait()
    wait_for(lambda: not processes_in(tmp_path))
    run = collect(launch({**asked, "launcher": "nobody", "expected": "2"}))
    assert run.verdict == "INCOMPLETE"
    assert (folder / FILE).exists(), "a start under the same name tells its runs from those before"
    assert Counter(one.member.verdict for one in quarantine(ruled(run))) == {"INCOMPLETE": 2}
    note_start(folder, all_runs(folder))
    assert dict(+FleetState(folder, 2).counts()) == {"pending": 2}, "what is dead neither runs nor ended"


@pytest.fixture
def started(monkeypatch):
    """The environments in which members would have been started."""
    found = []

    class Ended:
        def __init__(self, command, *, env, **_):
            found.append((command[command.index("member") + 1], env["CUDA_VISIBLE_DEVICES"]))

        def poll(self):
            return 0

        def wait(self, timeout):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Ended)
    return found


@pytest.mark.parametrize("shown", [None, "0,1,2,3", "GPU-aa,GPU-bb,GPU-cc,GPU-dd", "6,4,2,0"])
def test_each_member_sees_one_gpu_of_those_that_this_process_sees(tmp_path, monkeypatch, started, shown):
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    visible = environment.visible_gpus(4)
    with StopButton() as stop:
        local.run_members(Task(str(tmp_path), "smoke", {}, {}), 4, visible=visible, stop=stop, tell=lambda: None)
    names = (shown or "0,1,2,3").split(",")
    assert started == [(str(rank), name) for rank, name in enumerate(names)]


def test_more_members_than_gpus_are_refused_and_one_gpu_is_taken_to_be_the_members_own():
    with pytest.raises(ConfigError, match="it shows 2 GPUs"):
        own_gpu(["0", "1"], 2, 4)
    assert own_gpu(["GPU-aa"], 3, 8) == "GPU-aa", "Slurm has bound it to the task"
