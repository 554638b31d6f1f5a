"""The members of a fleet are read from their run folders and judged anew; what cannot be read is named."""

import json
from datetime import datetime, timedelta, timezone

import pytest

from nsa_lib.contract.fingerprint import FILE
from nsa_lib.runs.launchers.start import all_runs, note_start
from nsa_lib.runs.launchers.state import FleetState
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.collect import collect, members_in
from nsa_lib.workbook.fleet.gates import quarantine, ruled
from nsa_lib.workbook.fleet.parameters import NOBODY
from nsa_lib.workbook.history import publish
from nsa_lib.workbook.launch import launch
from nsa_lib.workbook.run import Run
from nsa_lib.workbook.since import since_last
from tests.made import sealed, with_schema
from tests.made_runs import day, edit, untaught_smoke

FLEET = "october"


@pytest.fixture
def add(templates, tmp_path):
    """Return what adds a member of a number to the fleet in tmp_path."""

    def put(rank, *, make=None, created=None, host="box", name=None, **changes):
        member = {"fleet": FLEET, "rank": rank, "job": None, "host": host, "gpu_uuid": None}
        place = tmp_path / "fleets" / FLEET
        folder = templates.put(place, "smoke", name or f"smoke-{rank}", make=make, created=created, member=member)
        edit(folder / "run.json", **changes)
        return folder

    return put


def judged(tmp_path, **given):
    return collect(launch({"launcher": NOBODY, "fleet": FLEET, "out_dir": str(tmp_path), **given}))


def test_members_that_agree_are_go_and_leave_a_run_of_their_own(add, tmp_path):
    for rank in range(3):
        add(rank)
    run = judged(tmp_path, expected="3")
    assert (run.verdict, run.folder.parent) == ("GO", tmp_path / "runs")
    assert json.loads((run.folder / "summary.json").read_text())["verdict"] == "GO"
    assert Run.read(run.folder).verdict == "GO", "from its folder alone"


def test_a_member_is_judged_anew_whatever_its_summary_says(add, tmp_path):
    for rank in range(3):
        folder = add(rank, make=untaught_smoke if rank == 1 else None)
    edit(folder.parent / "smoke-1" / "summary.json", verdict="GO")
    run = judged(tmp_path, expected="3")
    assert run.verdict == "NO-GO"
    assert [one.member.rank for one in quarantine(ruled(run))] == [1]


def test_other_bits_in_one_step_are_found(add, tmp_path):
    for rank in range(3):
        folder = add(rank)
    path = folder / "cases" / "training" / FILE
    losses = json.loads(path.read_text())["losses"]
    edit(path, losses=[*losses[:40], "another", *losses[41:]])
    run = judged(tmp_path, expected="3")
    (named,) = quarantine(ruled(run))
    assert (named.member.rank, named.findings[0].rule, run.verdict) == (2, "fingerprints", "NO-GO")


def test_a_member_that_cannot_be_read_is_named(add, tmp_path):
    for rank in range(3):
        folder = add(rank)
    (folder / "cases" / "training" / "result.json").write_text("{torn")
    run = judged(tmp_path, expected="3")
    assert run.verdict == "INCOMPLETE"
    assert "cannot be read" in quarantine(ruled(run))[0].why
    (folder / "run.json").write_text("{torn")
    assert "smoke-2" in {member.host for member in members_in(tmp_path / "fleets" / FLEET)}


def test_of_a_member_that_ran_twice_the_newest_run_counts(add, tmp_path):
    add(0), add(1)
    add(1, make=untaught_smoke, created=day(2), name="smoke-1-again")
    members = members_in(tmp_path / "fleets" / FLEET)
    assert [(member.rank, member.verdict) for member in members] == [(0, "GO"), (1, "NO-GO")]


def test_what_an_earlier_start_of_the_name_left_stands_for_nobody(add, tmp_path):
    folder = tmp_path / "fleets" / FLEET
    add(0, name="before-0"), add(1, name="before-1")
    note_start(folder, all_runs(folder))
    assert members_in(folder) == []
    add(0)
    run = judged(tmp_path, expected="2")
    assert run.verdict == "INCOMPLETE"
    assert "member 1" in {one.name for one in quarantine(ruled(run))}, "it was GO before, and left nothing this time"
    assert dict(+FleetState(folder, 2).counts()) == {"GO": 1, "pending": 1}


def test_a_member_that_hangs_is_named_with_its_last_heartbeat(add, tmp_path):
    for rank in range(3):
        folder = add(rank)
    (folder / "summary.json").unlink()
    (folder / "cases" / "training" / "result.json").unlink()
    sealed(folder)
    run = judged(tmp_path, expected="3")
    (named,) = [one for one in quarantine(ruled(run)) if one.member and one.member.rank == 2]
    assert run.verdict == "INCOMPLETE"
    assert "INCOMPLETE: not finished: last heartbeat " in named.why
    assert all("not finished" not in one.why for one in quarantine(ruled(run)) if one.name != named.name)


def test_a_member_that_was_started_again_is_counted_once(add, tmp_path):
    add(0), add(1), add(1, created=day(2), name="smoke-1-again")
    for name in ("smoke-0", "smoke-1"):
        (tmp_path / "fleets" / FLEET / "runs" / name / "summary.json").unlink()
    assert dict(+FleetState(tmp_path / "fleets" / FLEET, 2).counts()) == {"GO": 1, "running": 1}


def test_a_fleet_of_which_there_is_no_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no run in") as refused:
        judged(tmp_path)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="needs a name"):
        launch({"launcher": NOBODY, "out_dir": str(tmp_path)})


def test_members_have_no_line_in_the_history_and_read_no_other_run(add, tmp_path):
    run = Run.read(add(0))
    assert publish(run) is None
    assert not list(tmp_path.rglob("history.jsonl"))
    assert FLEET in since_last(run).caption


def test_many_members_are_read_by_several_processes(add, tmp_path, monkeypatch):
    monkeypatch.setattr("nsa_lib.workbook.collect.ALONE", 1)
    for rank in range(3):
        add(rank)
    assert [member.rank for member in members_in(tmp_path / "fleets" / FLEET)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"parameters": {"stepz": 3}}, "stepz: no such parameter"),
        ({"parameters": {"steps": "ten"}}, "steps='ten'"),
        ({"parameters": {"fleet": "x"}}, "fleet is the fleet's own parameter"),
        ({"faults": {"0": "nothing_such"}}, "fault='nothing_such'"),
        ({"expected": "a:b"}, "expected='a:b'"),
        ({"launcher": "kubernetes"}, "launcher='kubernetes'"),
        ({"fleet": "../october"}, r"fleet='\.\./october': accepts up to 40 letters"),
        ({"fleet": "our fleet"}, "fleet='our fleet': accepts up to 40 letters"),
        ({"quorum": 0}, "quorum=0"),
        ({"quorum": 9, "expected": "8"}, "quorum=9: expected=8 are 8 members; accepts no more"),
    ],
)
def test_what_is_not_accepted_is_refused_before_any_work(given, line, tmp_path):
    with pytest.raises(ConfigError, match=line):
        launch({"launcher": NOBODY, "fleet": FLEET, "out_dir": str(tmp_path), **given})


def test_expected_members_are_a_number_or_hosts_or_a_file_of_hosts(add, tmp_path):
    add(0), add(1, host="other")
    (tmp_path / "hosts.txt").write_text("box:1\nother:2\n")
    for asked, missing in (
        ("3", "member 2"),
        ("box, other:2", "other (1 of 2)"),
        (str(tmp_path / "hosts.txt"), "other"),
    ):
        gate = next(gate for gate in judged(tmp_path, expected=asked).gates if gate.name == "members")
        assert missing in gate.detail


def test_a_member_of_an_older_library_is_named_with_what_to_do(add, tmp_path):
    for rank in range(3):
        folder = add(rank)
    with_schema(folder / "run.json", 1)
    run = judged(tmp_path, expected="3")
    assert run.verdict == "INCOMPLETE"
    (named, *_) = [one for one in quarantine(ruled(run)) if one.member is not None]
    assert "recorded by an older nsa_lib" in named.why
    assert "smoke again" in named.why


def test_a_member_whose_host_has_another_clock_is_named_and_no_other(add, tmp_path):
    ahead = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()
    add(0), add(1), add(2, created=ahead)
    run = judged(tmp_path, expected="3")
    assert run.verdict == "INCOMPLETE"
    (named,) = quarantine(ruled(run))
    assert named.member.rank == 2
    assert "dated in the future" in named.why


def test_a_member_that_comes_late_is_judged_when_it_is_there(add, tmp_path):
    add(0), add(1)
    assert judged(tmp_path, expected="3").verdict == "INCOMPLETE"
    add(2)
    assert judged(tmp_path, expected="3").verdict == "GO"


def test_a_summary_that_is_half_written_stops_nobody_and_its_member_is_judged(add, tmp_path, capsys):
    for rank in range(2):
        folder = add(rank)
    (folder / "summary.json").write_text('{"schema": 2, "verd')
    state = FleetState(tmp_path / "fleets" / FLEET, 3)
    assert dict(+state.counts()) == {"GO": 1, "running": 1, "pending": 1}
    state.show(), state.show(), state.show(at_once=True)
    assert capsys.readouterr().out.count("running") == 1, "what has not changed is not printed again"
    assert judged(tmp_path, expected="2").verdict == "GO"
