"""Predictions beside a run: made, late, failed, stopped; each leaves a file, and no process is left."""

import json
import os
import sys
import time

import pytest

from nsa_lib.runs import predictor
from nsa_lib.runs.predictor import Predictor
from tests.runs.test_runner import gone
from tests.subject.test_config import CASE

WRITE = """
import json, os, sys, time
from pathlib import Path
parent, source, capability, folder, *case_ids = sys.argv[1:]
def write(case_id):
    path = Path(folder) / "cases" / case_id / "prediction.json"
    path.write_text(json.dumps({"schema": 1, "capability": capability, "visible": os.environ["CUDA_VISIBLE_DEVICES"]}))
"""

CASES = ["training", "dense", "third"]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a predictor whose process does as planted."""

    def start(code, **more):
        script = tmp_path / "planted.py"
        script.write_text(WRITE + code)
        monkeypatch.setattr(predictor, "COMMAND", (sys.executable, str(script)))
        for case_id in CASES:
            (tmp_path / "cases" / case_id).mkdir(parents=True)
        return Predictor(tmp_path, CASES, {"compute_capability": "8.0"}, **more)

    return start


def read(tmp_path):
    return {name: json.loads((tmp_path / "cases" / name / "prediction.json").read_text()) for name in CASES}


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_every_case_gets_its_prediction_without_a_view_of_the_gpu(tmp_path, start, processes):
    made = start("[write(case_id) for case_id in case_ids]", processes=processes)
    seen = []
    made.wait(600, stopped=lambda: False, watch=seen.append)
    assert made.done == 3
    made.end()
    assert list(read(tmp_path).values()) == [{"schema": 1, "capability": "8.0", "visible": ""}] * 3


def test_one_that_dies_leaves_its_reason_for_those_without(tmp_path, start):
    made = start("write('training'); raise ImportError('planted')")
    made.wait(600, stopped=lambda: False)
    made.end()
    found = read(tmp_path)
    assert "capability" in found["training"]
    assert [found[name]["reason"] for name in CASES[1:]] == ["ImportError: planted"] * 2


@pytest.mark.parametrize("stopped", [False, True])
def test_one_that_is_late_is_ended(tmp_path, start, stopped):
    made = start("write('training'); Path(folder, 'pid').write_text(str(os.getpid())); time.sleep(600)")
    deadline = time.monotonic() + 600
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    began = time.monotonic()
    made.wait(600 if stopped else 0.3, stopped=lambda: stopped)
    made.end()
    assert time.monotonic() - began < 300
    assert read(tmp_path)["third"]["reason"] == "it was not ready in time"
    assert gone(int((tmp_path / "pid").read_text()))


def test_the_real_one_predicts_a_case_at_the_lowest_priority(tmp_path):
    folder = tmp_path / "cases" / CASE.case_id
    folder.mkdir(parents=True)
    (folder / "case.json").write_text(CASE.to_json())
    made = Predictor(tmp_path, [CASE.case_id], {})
    nice = []
    made.wait(600, stopped=lambda: False, watch=lambda done: nice.append(os.getpriority(os.PRIO_PROCESS, made.pids[0])))
    made.end()
    assert json.loads((folder / "prediction.json").read_text())["peak_alloc_mib"] > 0
    assert max(nice) == 19


def test_no_case_is_no_process(tmp_path):
    made = Predictor(tmp_path, [], {})
    made.wait(5, stopped=lambda: False)
    made.end()
    assert made.pids == []


@pytest.mark.parametrize("each", [True, False])
def test_the_patience_may_be_that_with_each_one(tmp_path, start, monkeypatch, each):
    """Each prediction takes most of the patience, all of them more than that: by a clock that they alone move."""
    predicting = start(
        "for number, case_id in enumerate(case_ids):\n"
        "    while not Path(folder, f'go_{number}').exists(): time.sleep(0.01)\n"
        "    write(case_id)\n"
    )
    now = [0.0]
    monkeypatch.setattr(predictor.time, "monotonic", lambda: now[0])

    def watch(done):
        if not (tmp_path / f"go_{done}").exists():
            now[0] += 60
            (tmp_path / f"go_{done}").touch()

    predicting.wait(100, stopped=lambda: False, watch=watch, each=each)
    predicting.end()
    assert ("reason" in read(tmp_path)["third"]) is not each
