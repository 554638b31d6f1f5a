"""What a reviewer takes away: gates as JUnit that any parser reads, and an archive that holds nothing else."""

import os
import xml.etree.ElementTree as ElementTree
import zipfile

import pytest

from nsa_lib.workbook.readiness.review import junit, named_apart, pack

CREATED = "2025-03-01T10:15:00.000000+00:00"


def gate(outcome, *, required=True, name="steps", measured=None, detail="because"):
    return {
        "name": name, "required": required, "outcome": outcome, "measured": measured, "limit": 100, "margin": None,
        "unit": "steps", "detail": detail,
    }  # fmt: skip


def suites(**gates):
    root = ElementTree.fromstring(junit({name: (CREATED, own) for name, own in gates.items()}).encode())
    assert root.tag == "testsuites"
    return {suite.get("name"): suite for suite in root}


# JUnit


@pytest.mark.parametrize(
    ("outcome", "required", "kind"),
    [
        ("PASS", True, None),
        ("WARN", True, None),
        ("FAIL", True, "failure"),
        ("FAIL", False, "skipped"),
        ("NOT_RUN", True, "error"),
        ("NOT_RUN", False, "skipped"),
    ],
)
def test_a_gate_is_what_a_build_server_understands(outcome, required, kind):
    (case,) = suites(smoke=[gate(outcome, required=required)])["smoke"]
    assert (case.get("name"), case.get("classname")) == ("steps", "smoke")
    assert [child.tag for child in case if child.tag != "system-out"] == ([kind] if kind else [])


def test_a_suite_a_notebook_counts_its_gates():
    smoke = [gate("PASS"), gate("WARN"), gate("FAIL"), gate("FAIL"), gate("NOT_RUN"), gate("NOT_RUN", required=False)]
    found = suites(smoke=smoke, readiness=[])
    assert list(found) == ["smoke", "readiness"]
    counts = ("tests", "failures", "errors", "skipped")
    assert [found["smoke"].get(name) for name in counts] == ["6", "2", "1", "1"]
    assert [found["readiness"].get(name) for name in counts] == ["0", "0", "0", "0"]
    assert found["smoke"].get("timestamp") == "2025-03-01T10:15:00"


def test_a_message_says_figures_limit_and_reason_and_a_warning_is_kept():
    (failed,) = suites(smoke=[gate("FAIL", measured=59)])["smoke"]
    assert failed[0].get("message") == "FAIL: 59 steps (limit 100) because"
    (unjudged,) = suites(smoke=[gate("NOT_RUN")])["smoke"]
    assert unjudged[0].get("message") == "NOT_RUN: because"
    (warned,) = suites(smoke=[gate("WARN", measured=1)])["smoke"]
    assert warned.findtext("system-out") == "WARN: 1 step (limit 100) because"


@pytest.mark.parametrize("text", ["\x00\x1b[31m\ufffe", "\ud800", '<a>&"]]>', "two\nlines", "né 😀"])
def test_whatever_a_worker_said_last_leaves_xml_that_is_read(text):
    for outcome in ("FAIL", "WARN", "NOT_RUN"):
        (case,) = suites(smoke=[gate(outcome, name=f"a{text}", detail=f"said {text} and died")])["smoke"]
        said = case[0].get("message") or case[0].text
        assert said.startswith(f"{outcome}: said ")
        assert said.endswith(" and died")
    if text in ('<a>&"]]>', "né 😀"):
        assert text in said


# The archive


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "here" / "smoke-1"
    (folder / "cases" / "training").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "cases" / "training" / "result.json").write_text("result")
    return folder


def packed(tmp_path, **given):
    pack(tmp_path / "review.zip", **{"runs": {}, "reports": {}, "files": [], "page": "a page", **given})
    with zipfile.ZipFile(tmp_path / "review.zip") as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    assert found.pop("readiness.html") == b"a page"
    return found


def test_runs_reports_and_files_have_their_places(tmp_path, run_folder):
    (tmp_path / "smoke.html").write_text("page")
    (tmp_path / "summary.json").write_text("{}")
    reports = {tmp_path / "smoke.html": "smoke.html"}
    assert packed(tmp_path, runs={run_folder: "smoke-1"}, reports=reports, files=[tmp_path / "summary.json"]) == {
        "runs/smoke-1/run.json": b"{}",
        "runs/smoke-1/cases/training/result.json": b"result",
        "reports/smoke.html": b"page",
        "summary.json": b"{}",
    }


def test_a_link_does_not_lead_out_of_a_run_folder(tmp_path, run_folder):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    (run_folder / "key").symlink_to(tmp_path / "secret" / "key")
    (run_folder / "folder").symlink_to(tmp_path / "secret")
    (run_folder / "nowhere").symlink_to(tmp_path / "gone")
    found = packed(tmp_path, runs={run_folder: "smoke-1"})
    assert set(found) == {"runs/smoke-1/run.json", "runs/smoke-1/cases/training/result.json"}
    assert b"secret" not in found.values()


@pytest.mark.parametrize("seconds", [0, 4.5e9])
def test_a_file_dated_before_1980_or_after_2107_is_packed(tmp_path, run_folder, seconds):
    os.utime(run_folder / "run.json", (seconds, seconds))
    assert packed(tmp_path, runs={run_folder: "smoke-1"})["runs/smoke-1/run.json"] == b"{}"


def test_two_of_one_name_are_both_there_and_one_named_twice_is_there_once(tmp_path, run_folder):
    for place in ("a", "b"):
        (tmp_path / place / "smoke-1").mkdir(parents=True)
        (tmp_path / place / "smoke-1" / "run.json").write_text(place)
    folders = [run_folder, *(tmp_path / place / "smoke-1" for place in "aab")]
    named = named_apart(folders)
    assert list(named.values()) == ["smoke-1", "2-smoke-1", "3-smoke-1"]
    found = packed(tmp_path, runs=named)
    assert [found[f"runs/{name}/run.json"] for name in named.values()] == [b"{}", b"a", b"b"]
