"""Each fault of the run does what the table says."""

import ctypes
import os
import signal
import time
from types import SimpleNamespace

import pytest

from nsa_lib.contract.faults import FAULT_STEP
from nsa_lib.contract.heartbeat import HeartbeatReader
from nsa_lib.worker.faults import of_run
from tests.worker.faults.planted import beats, train


class StruckError(Exception):
    """In the place of what would end the tests."""


def strike(*arguments):
    raise StruckError(*arguments)


@pytest.mark.parametrize(("fault", "share"), [("none", 0), ("leak_12", 0.12), ("leak_30", 0.30)])
def test_a_leak_keeps_its_share_of_the_peak_over_fifty_steps(tmp_path, fault, share):
    _, steps = train(tmp_path, fault, steps=60)
    peaks = [beat["peak_alloc_mib"] for beat in steps]
    rounding = 50 * 512 / (peaks[9] * 2**20) if share else 0  # what is kept each step is a multiple of 512 B
    assert share - 1e-3 <= peaks[59] / peaks[9] - 1 <= share + rounding
    assert peaks[5] == peaks[9]


def test_a_creeping_pool_is_reserved_and_not_allocated(tmp_path):
    _, steps = train(tmp_path, "pool_creep", steps=30)
    reserved = [beat["peak_reserved_mib"] for beat in steps]
    assert len({beat["peak_alloc_mib"] for beat in steps[10:]}) == 1
    assert reserved[29] > reserved[19] + 20 > reserved[10] + 40


@pytest.mark.parametrize("fault", ["hang_forward", "hang_gil", "sigkill", "segfault"])
def test_what_ends_a_case_strikes_in_the_forward_pass_of_its_step(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(time, "sleep", strike)
    monkeypatch.setattr(ctypes, "PyDLL", lambda name: SimpleNamespace(sleep=strike))
    monkeypatch.setattr(ctypes, "string_at", strike)
    monkeypatch.setattr(os, "kill", strike)
    with pytest.raises(StruckError):
        train(tmp_path, fault)
    assert len(beats(tmp_path)) == FAULT_STEP - 1


@pytest.mark.parametrize(
    ("moment", "done", "phase"), [("build", 0, "build"), ("first", 0, "warmup"), ("last", 7, "step")]
)
def test_it_strikes_at_another_moment_where_it_is_told_to(tmp_path, monkeypatch, moment, done, phase):
    monkeypatch.setattr(os, "kill", strike)
    with pytest.raises(StruckError):
        train(tmp_path, "sigkill@last", steps=8)
    assert len(beats(tmp_path)) == 7


def test_more_memory_than_there_is_ends_as_oom(tmp_path):
    result, steps = train(tmp_path, "oom")
    assert (result["status"], len(steps)) == ("oom", FAULT_STEP - 1)


def test_a_silent_case_trains_to_its_end(tmp_path):
    result, steps = train(tmp_path, "silent_heartbeat")
    assert (result["status"], len(steps)) == ("ok", FAULT_STEP - 1)


def test_a_torn_heartbeat_ends_in_the_middle_of_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "kill", strike)
    with pytest.raises(StruckError) as struck:
        train(tmp_path, "torn_heartbeat")
    assert struck.value.args[1] == signal.SIGKILL
    reader = HeartbeatReader(tmp_path / "heartbeat.jsonl")
    assert [beat["step"] for beat in reader.read()][-1] == FAULT_STEP - 1
    assert reader.torn


def test_a_full_disk_ends_the_case_and_its_last_whole_line_is_kept(tmp_path):
    with pytest.raises(OSError, match=r"bytes of a heartbeat|File too large"):
        train(tmp_path, "disk_full", steps=30)
    assert (tmp_path / "heartbeat.jsonl").stat().st_size == of_run.FULL_BYTES
    assert FAULT_STEP < len(beats(tmp_path)) < 30
    assert not (tmp_path / "result.json").exists()
