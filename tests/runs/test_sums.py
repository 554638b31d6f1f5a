"""Sums of a run's files: what a tool that knows nothing of us says of them, and what was changed since."""

import subprocess

import pytest

from nsa_lib.runs.sums import SUMS, case_files, changes, seal


@pytest.fixture
def folder(tmp_path):
    """The folder of a run of two cases, one of them of two ranks, all of it listed."""
    for name in ("alone", "ranks", "ranks/rank0", "ranks/rank1"):
        case = tmp_path / "cases" / name
        case.mkdir(parents=True)
        for file in ("case.json", "result.json", "heartbeat.jsonl", "stderr.log", "prediction.json"):
            (case / file).write_text(f"{file} of {name}, 1")
    (tmp_path / "run.json").write_text("1")
    seal(tmp_path, [tmp_path / "run.json"])
    for name in ("alone", "ranks"):
        seal(tmp_path, case_files(tmp_path / "cases" / name))
    return tmp_path


def test_sha256sum_reads_them(folder):
    assert changes(folder) == ()
    check = ["sha256sum", "--check", "--strict", "--quiet", SUMS]
    assert subprocess.run(check, cwd=folder, check=False).returncode == 0
    (folder / "run.json").write_text("2")
    assert subprocess.run(check, cwd=folder, check=False, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", ["run.json", "cases/alone/result.json", "cases/ranks/rank1/heartbeat.jsonl"])
def test_a_changed_a_missing_and_a_new_file_are_named(folder, name):
    before = (folder / name).read_text()
    (folder / name).write_text(before.replace("1", "2"))
    assert changes(folder) == (f"{name} was changed after the run",)
    (folder / name).unlink()
    assert changes(folder)[0] == f"{name} is listed in {SUMS} and not there"
    (folder / name).write_text(before)
    lines = (folder / SUMS).read_text().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in lines if not line.endswith(f"  {name}\n")))
    assert changes(folder) == (f"{name} is not listed in {SUMS}: it was not there when the run ended",)


def test_what_decides_nothing_may_change(folder):
    (folder / "cases" / "alone" / "stderr.log").write_text("2")
    (folder / "cases" / "alone" / "prediction.json").write_text("2")
    (folder / "summary.json").write_text("2")
    assert changes(folder) == ()


def test_a_case_that_has_not_ended_has_nothing_to_compare(folder):
    running = folder / "cases" / "running"
    running.mkdir()
    (running / "heartbeat.jsonl").write_text("1")
    assert changes(folder) == ()
