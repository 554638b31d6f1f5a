"""Run folders that are found: the newest first, and one that cannot be read says why and hides none."""

import json
import os
from datetime import datetime, timedelta, timezone

import pytest

from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.runs.found import find, newest_first, runs_in

INFO = {"schema": SCHEMA, "notebook": "smoke", "custom": [], "case_ids": []}


@pytest.fixture
def put(tmp_path):
    """Write a run.json, or what stands in its place."""

    def put_run(name, text=None, **info):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({**INFO, **info}) if text is None else text)
        return folder

    return put_run


def day(number):
    return f"2025-03-{number:02}T10:15:00+00:00"


def test_the_newest_run_comes_first_whatever_it_is_called(put, tmp_path):
    put("z", created=day(1))
    put("a", created=day(3))
    put("m", created=day(2))
    assert [found.folder.name for found in runs_in(tmp_path)] == ["a", "m", "z"]


def test_of_runs_of_one_moment_the_later_name_comes_first(put, tmp_path):
    put("smoke-1", created=day(1))
    put("smoke-1-2", created=day(1))
    assert [found.folder.name for found in runs_in(tmp_path)] == ["smoke-1-2", "smoke-1"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "not JSON"), ("[]", "it has no schema"), (json.dumps({"schema": SCHEMA}), "cannot be read (KeyError")],
)
def test_a_broken_run_says_why_and_has_the_time_of_its_file(put, tmp_path, text, problem):
    sound, broken = put("sound", created=day(1)), put("broken", text)
    os.utime(broken / "run.json", (0, 0))
    (last,) = [found for found in runs_in(tmp_path) if found.folder == broken]
    assert problem in last.problem
    assert (last.created, last.custom) == (datetime.fromtimestamp(0, timezone.utc), ())
    assert [found.folder for found in runs_in(tmp_path)] == [sound, broken]


def test_a_folder_without_a_run_is_found_where_it_is_asked_for(tmp_path):
    (found,) = newest_first([tmp_path])
    assert "no run.json" in found.problem


def test_what_makes_a_run_custom_is_told(put, tmp_path):
    put("one", created=day(1), custom=["steps=20"])
    assert runs_in(tmp_path)[0].custom == ("steps=20",)


# Names


def test_a_run_is_named_by_its_folder_its_name_or_as_the_newest(put, tmp_path, monkeypatch):
    old, new = put("smoke-1", created=day(1)), put("other", created=day(2), notebook="preflight")
    assert find(old, tmp_path) == find(str(old), tmp_path) == find("smoke-1", tmp_path) == old
    assert (find("newest", tmp_path), find("newest:smoke", tmp_path)) == (new, old)
    monkeypatch.chdir(tmp_path / "runs")
    assert find("smoke-1", tmp_path / "nowhere").resolve() == old


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("smoke-20250301T1015", "the nearest: smoke-20250301T101500Z"),
        ("/from/elsewhere/smoke-20250301T101500", "the nearest: smoke-20250301T101500Z"),
        ("newest:capacity", "no run of capacity in "),
        ("", "'': accepts a run folder, the name of one in "),
    ],
)
def test_a_name_of_no_run_is_told_in_one_line_with_the_nearest(put, tmp_path, asked, said):
    put("smoke-20250301T101500Z", created=day(1))
    with pytest.raises(FileNotFoundError) as refusal:
        find(asked, tmp_path)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("why", "info"), [("custom", {"custom": ["dim=64"]}), ("stopped", {"case_ids": ["training"]})])
def test_a_newest_run_that_does_not_count_says_which_one_before_it_does(put, tmp_path, capsys, why, info):
    put("smoke-1", created=day(1))
    newest = put("smoke-2", created=day(2), **info)
    (newest / "cases" / "training").mkdir(parents=True)
    (newest / "cases" / "training" / "result.json").write_text('{"status": "interrupted"}')
    assert find("newest:smoke", tmp_path) == newest
    assert capsys.readouterr().err == f"smoke-2 is {why}; before it ran smoke-1, which counts\n"
    put("smoke-3", created=day(3))
    find("newest", tmp_path)
    assert capsys.readouterr().err == ""


def test_a_run_of_the_future_is_not_believed_and_has_the_time_of_its_file(put, tmp_path):
    sound, future = put("sound", created=day(1)), put("future", created="2099-01-01T00:00:00+00:00")
    os.utime(future / "run.json", (0, 0))
    first, last = runs_in(tmp_path)
    assert (first.folder, last.folder) == (sound, future)
    assert last.problem.endswith("it is dated in the future, 2099-01-01T00:00:00+00:00")


def test_a_clock_that_was_set_back_puts_no_run_before_those_made_since(put, tmp_path):
    now = datetime.now(timezone.utc)
    ahead = now + timedelta(hours=2)
    before = put("before", created=(now - timedelta(hours=1)).isoformat())
    during = put("during", created=ahead.isoformat())  # the clock was set back before its last file was written
    os.utime(during / "run.json", (ahead.timestamp(), ahead.timestamp()))
    assert find("newest", tmp_path) == during
    after = put("after", created=(now + timedelta(seconds=5)).isoformat())
    assert [found.folder for found in runs_in(tmp_path)] == [after, during, before]
    os.utime(during, (ahead.timestamp(), ahead.timestamp()))
    assert [found.folder for found in runs_in(tmp_path)] == [after, before, during], "nobody knows when it was"


def test_a_clock_that_is_minutes_ahead_is_no_future(put, tmp_path):
    put("one", created=(datetime.now(timezone.utc) + timedelta(minutes=5)).isoformat())
    assert runs_in(tmp_path)[0].problem == ""
