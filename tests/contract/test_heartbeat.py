"""Heartbeats as they are written and read while they grow."""

import json
import math
import os

import pytest

from nsa_lib.contract.heartbeat import Heartbeat, HeartbeatReader


def test_beats_are_read_once_each_as_they_come(tmp_path):
    heartbeat, reader = Heartbeat(tmp_path / "h"), HeartbeatReader(tmp_path / "h")
    heartbeat.beat("build")
    heartbeat.beat("step", 1, step_ms=9.0, loss=2.5)
    first = reader.read()
    heartbeat.beat("step", 2, step_ms=9.0, loss=math.nan)
    second = reader.read()
    assert [(b["phase"], b["step"]) for b in first] == [("build", None), ("step", 1)]
    assert first[1]["loss"] == 2.5
    assert math.isnan(second[0]["loss"])
    assert reader.read() == []


def test_a_torn_last_line_waits_and_is_told(tmp_path):
    path = tmp_path / "h"
    line = json.dumps({"phase": "step", "step": 1})
    path.write_text(line + "\n" + line[:9])
    reader = HeartbeatReader(path)
    assert len(reader.read()) == 1
    assert reader.torn
    with path.open("a") as file:
        file.write(line[9:] + "\n")
    assert reader.read() == [{"phase": "step", "step": 1}]
    assert not reader.torn


def test_a_whole_line_that_is_not_json_is_an_error(tmp_path):
    (tmp_path / "h").write_text("beat\n")
    with pytest.raises(ValueError, match="Expecting value"):
        HeartbeatReader(tmp_path / "h").read()


def test_no_file_yet_is_no_beat(tmp_path):
    assert HeartbeatReader(tmp_path / "h").read() == []


def test_a_line_that_does_not_fit_is_an_error(tmp_path, monkeypatch):
    heartbeat = Heartbeat(tmp_path / "h")
    monkeypatch.setattr(os, "write", lambda descriptor, text: len(text) - 1)
    with pytest.raises(OSError, match="No space left on device"):
        heartbeat.beat("build")


def test_a_step_that_does_not_say_how_long_it_took_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="step 3: its heartbeat lacks step_ms"):
        Heartbeat(tmp_path / "h").beat("step", 3, loss=2.5)
    assert (tmp_path / "h").read_text() == ""
