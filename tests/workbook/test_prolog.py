"""A scheduler learns from an exit status and one line of JSON whether a GPU is healthy, defective or unknown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nsa_lib.__main__ import main
from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.report.verdict import Verdict
from nsa_lib.runs import papermill
from nsa_lib.workbook import prolog as module
from nsa_lib.workbook.keep import keep_run
from nsa_lib.workbook.prolog import STATUSES, prolog
from nsa_lib.workbook.questions import QUESTIONS
from nsa_lib.workbook.run import judged_run
from tests.made import resolved

SMALL = {
    "profile": "prolog", "device": "cpu", "dtype": "float32", "dim": 64, "layers": 1, "heads": 2, "groups": 2,
    "seq_len": 128, "vocab": 64, "n_sel": 4, "w": 64, "d_k": 32, "d_v": 32, "reserved_limit_mib": 70000.0,
    "total_timeout_s": 600.0,
}  # fmt: skip
"""On a machine without a GPU and in less than two minutes, also where it is busy."""


def ran(capsys, given):
    status = prolog("smoke", given)
    out = capsys.readouterr().out
    assert out.count("\n") == 1, "one line and nothing else"
    told = json.loads(out)
    assert told["exit_status"] == status
    return status, told


@pytest.mark.parametrize(
    ("given", "status", "word"),
    [({}, 0, "healthy"), ({"fault": "sigkill"}, 3, "defective"), ({"device": "cuda"}, 2, "could not run")],
    ids=["healthy", "defective", "could-not-run"],
)
def test_a_real_run_ends_with_its_status(capsys, tmp_path, given, status, word):
    found, told = ran(capsys, {**SMALL, "out_dir": str(tmp_path), **given})
    assert (found, told["status"]) == (status, word), told
    if status != 2:
        assert told["host"]
        assert (tmp_path / "runs").samefile(told["run"].rpartition("/")[0])


def test_a_wrong_bit_is_defective_beside_what_was_kept_of_the_healthy(capsys, tmp_path):
    asked = {**SMALL, "out_dir": str(tmp_path)}
    _, told = ran(capsys, asked)
    kept = tmp_path / "fingerprints"
    keep_run(judged_run(Path(told["run"])), kept)
    status, told = ran(capsys, {**asked, "fingerprint": str(kept)})
    assert (status, told["status"]) == (0, "healthy"), told
    status, told = ran(capsys, {**asked, "fingerprint": str(kept), "fault": "wrong_bit"})
    assert (status, told["status"]) == (3, "defective"), told
    assert "kept_bits" in " ".join([told["headline"], *told["reasons"]])


def test_a_run_that_has_no_time_for_its_steps_could_not_run(capsys, tmp_path):
    status, told = ran(capsys, {**SMALL, "out_dir": str(tmp_path), "steps": 100_000, "total_timeout_s": 20.0})
    assert (status, told["verdict"]) == (2, "INCOMPLETE"), told
    assert "its time was too short" in told["headline"]
    assert any("the run has taken all of its total_timeout_s=20" in reason for reason in told["reasons"])


@pytest.mark.parametrize(
    ("details", "status"),
    [
        (["timeout: the run has taken all of its total_timeout_s=120"], 2),
        (["timeout: the run has taken all of its total_timeout_s=120", "another bit in step 3"], 3),
        (["timeout: still beating after 86400 s"], 3),
        ([], 3),
    ],
)
def test_only_what_its_limit_cut_short_is_no_defect(capsys, monkeypatch, tmp_path, details, status):
    gates = [{"name": "steps", "required": True, "outcome": "FAIL", "detail": detail} for detail in details]
    gates += [{"name": "fast", "required": False, "outcome": "FAIL", "detail": "of no weight"}]
    folder = tmp_path / "runs" / "smoke-1"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"schema": SCHEMA, "gates": gates}))
    monkeypatch.setattr(module, "_run", lambda notebook, given: (Verdict("NO-GO", "made", run_id="smoke-1"), None))
    assert ran(capsys, {"out_dir": str(tmp_path)})[0] == status


def test_a_notebook_that_comes_to_no_end_is_killed_and_could_not_run(capsys, monkeypatch, tmp_path):
    """What never answers: a kernel's start, a judge, a page on a disk that hangs."""
    hangs = [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"]
    monkeypatch.setattr(papermill, "command", lambda *_: hangs)
    monkeypatch.setattr(module, "ENDS_S", 0.5)
    status, told = ran(capsys, {**SMALL, "out_dir": str(tmp_path), "total_timeout_s": 0.5})
    assert (status, told["headline"]) == (2, "it came to no end within 1 s and was killed")


def from_a_shell(stdout, *given):
    words = [word for name, value in given for word in ("-p", name, value)]
    command = [sys.executable, "-m", "nsa_lib", "run", "smoke", "-p", "profile", "prolog", *words]
    with subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True) as started:
        return (*started.communicate(), started.returncode)


def test_a_scheduler_that_reads_no_output_still_gets_the_status(tmp_path):
    read, write = os.pipe()
    os.close(read)
    try:
        _, said, status = from_a_shell(write, ("out_dir", str(tmp_path)), ("stepz", "3"))
    finally:
        os.close(write)
    assert (status, said) == (2, "")


def test_from_a_shell_there_is_one_line_on_stdout_and_nothing_on_stderr(tmp_path):
    out, said, status = from_a_shell(subprocess.PIPE, ("out_dir", str(tmp_path)), ("steps", "ten"))
    assert (status, out.count("\n"), said) == (2, 1, "")
    assert json.loads(out)["exit_status"] == 2


@pytest.mark.parametrize("given", [{"stepz": 3}, {"out_dir": "/proc/here"}], ids=["unknown", "no-folder"])
def test_what_cannot_be_started_could_not_run(capsys, tmp_path, given):
    found, told = ran(capsys, {"profile": "prolog", "out_dir": str(tmp_path), **given})
    assert (found, told["status"], told["host"]) == (2, "could not run", None)
    assert told["headline"]


def test_every_verdict_has_a_status_of_its_own(capsys, monkeypatch, tmp_path):
    for word in STATUSES:
        monkeypatch.setattr(module, "_run", lambda notebook, given, word=word: (Verdict(word, "made"), None))
        ran(capsys, {"out_dir": str(tmp_path)})
    statuses = [status for status, _ in STATUSES.values()]
    assert len(set(statuses)) == len(statuses)
    assert 1 not in statuses, "Python's own"


def test_the_command_line_takes_the_profile(capsys, monkeypatch):
    monkeypatch.setattr(module, "_run", lambda notebook, given: (Verdict("NO-GO", "made"), None))
    assert main(["run", "smoke", "-p", "profile", "prolog"]) == 3
    assert json.loads(capsys.readouterr().out)["status"] == "defective"


def test_it_is_a_smoke_of_two_minutes_that_readiness_does_not_count():
    request = QUESTIONS["smoke"].request
    values = resolved("smoke", profile="prolog")
    assert (values["total_timeout_s"].value, values["device"].value) == (120.0, "cuda")
    assert request.differences(values, profile="prolog") == ["profile=prolog: shorter than the checklist"]
    assert request.differences(resolved("smoke", profile="checklist"), profile="checklist") == []
