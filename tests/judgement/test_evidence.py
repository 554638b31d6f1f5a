"""Files of a run that were changed after it, one at a time: its verdict is INCOMPLETE or it is custom, never GO."""

import json
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.origin import MACHINE
from nsa_lib.judgement.evidence import _of_parameters
from nsa_lib.subject.config import PLAIN_BACKENDS
from nsa_lib.workbook.questions import QUESTIONS
from nsa_lib.workbook.run import judged_run
from tests.made import resolved, sealed
from tests.made_runs import day, edit, set_fact, set_parameter


@pytest.fixture
def smoke(templates, tmp_path):
    """The folder of a smoke that is GO."""
    folder = templates.put(tmp_path, "smoke")
    assert judged_run(folder).verdict == "GO"
    return folder


def said(folder):
    """Return what the gate over the evidence says of a run whose files are listed as they are; nothing if it passes."""
    run = judged_run(sealed(folder))
    (gate,) = [gate for gate in run.gates if gate.name == "evidence"]
    assert gate.required
    assert run.verdict == ("GO" if gate.outcome == "PASS" else "INCOMPLETE")
    return gate.detail if gate.outcome == "NOT_RUN" else ""


def edit_case(folder, case_id="training", **changes):
    path = folder / "cases" / case_id / "case.json"
    edit(path, **changes)
    return path


def edit_first_beat(folder, **changes):
    path = folder / "cases" / "training" / "heartbeat.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(first), **changes}) + "\n" + "".join(rest))


def origin_of(folder):
    first = (folder / "cases" / "training" / "heartbeat.jsonl").read_text().splitlines()[0]
    return json.loads(first)["origin"]


def test_a_case_that_was_edited_after_its_run_is_not_the_one_that_its_worker_read(smoke):
    edit_case(smoke, lr=0.5)
    assert "training: its case.json is not the one that its worker read" in said(smoke)


def test_a_case_that_was_merely_written_anew_is_not_either(smoke):
    path = smoke / "cases" / "training" / "case.json"
    path.write_text(CaseConfig.from_json(path.read_text()).to_json() + "\n")
    assert "training: its case.json is not the one" in said(smoke)


def planned(notebook, profile):
    """What a notebook plans on its defaults, as the gate reads it of a run."""
    values = resolved(notebook, {}, profile=profile)
    cases = QUESTIONS[notebook].request.cases(values, PLAIN_BACKENDS)
    rows = [{"name": name, "value": json.loads(json.dumps(value.value))} for name, value in values.items()]
    asked = [{"asked": json.loads(case.to_json())} for case in cases]
    return SimpleNamespace(info={"parameters": rows}, each_case=lambda: iter(asked))


NOTEBOOKS = [(name, profile) for name, q in QUESTIONS.items() if q.request.cases for profile in q.request.profiles]


@pytest.mark.parametrize(("notebook", "profile"), NOTEBOOKS)
def test_every_parameter_is_that_of_a_case(notebook, profile):
    assert list(_of_parameters(planned(notebook, profile))) == []


@pytest.mark.parametrize(
    ("name", "value"), [("seq_len", 256), ("lr", 1.0), ("dtype", "float16"), ("steps", 101), ("w", 1)]
)
def test_a_parameter_that_no_case_has_is_named(name, value):
    """So it is if whatever makes cases of parameters halves one, and would again."""
    run = planned("smoke", "laptop")
    next(row for row in run.info["parameters"] if row["name"] == name)["value"] = value
    assert list(_of_parameters(run)) == [f"{name}={value} is in run.json, no case has it"]


def test_parameters_that_were_edited_are_not_those_of_the_cases(smoke):
    set_parameter(smoke, "batch", 8)
    assert "training: batch=1, by the parameters in run.json 8" in said(smoke)
    assert "batch=8 (laptop: 1)" in judged_run(smoke).info["custom"]


@pytest.mark.parametrize(("name", "value"), [("heads", 8), ("lr", 0.1), ("backend", "packed"), ("alloc_conf", "")])
def test_so_is_every_other_one(smoke, name, value):
    set_parameter(smoke, name, value)
    assert f"{name}=" in said(smoke)


def test_values_that_no_notebook_accepts_make_no_run(smoke):
    set_parameter(smoke, "groups", 3)
    assert "the parameters in run.json make no run: heads=4, groups=3" in said(smoke)


@pytest.mark.parametrize("case_ids", [["training"], ["training", "anomaly", "dense"]])
def test_a_case_that_was_taken_out_or_added(smoke, case_ids):
    edit(smoke / "run.json", case_ids=case_ids)
    assert "its parameters make training, hot, anomaly" in said(smoke)


@pytest.mark.parametrize("name", MACHINE)
def test_a_fact_of_the_machine_that_its_worker_found_otherwise(smoke, name):
    set_fact(smoke, name, "what was found")
    edit_first_beat(smoke, origin={**origin_of(smoke), name: "what was found"})
    assert said(smoke) == ""
    set_fact(smoke, name, "what is told")
    assert said(smoke) == f"training: {name} what was found, in run.json what is told"


def test_a_worker_that_did_not_say_what_it_ran(smoke):
    edit_first_beat(smoke, origin=None)
    assert said(smoke) == "training: its worker did not say what it ran"


def test_a_run_that_is_said_to_be_younger_than_its_workers(smoke):
    edit(smoke / "run.json", created=day(2))
    assert said(smoke) == f"run.json says {day(2)}, its workers ran before, or a clock was set back meanwhile"


def test_a_run_of_the_future(smoke):
    later = datetime.now(timezone.utc) + timedelta(days=1)
    edit(smoke / "run.json", created=later.isoformat())
    edit_first_beat(smoke, ts=later.timestamp())
    edit_beat = smoke / "cases" / "anomaly" / "heartbeat.jsonl"
    edit_beat.write_text(edit_beat.read_text().replace(str(datetime.fromisoformat(day(1)).timestamp()), "9e9"))
    assert "it is dated in the future" in said(smoke)


def test_a_run_without_custom_in_its_run_json_is_custom_all_the_same(smoke):
    for name, value in {"alloc_conf": "", "reserved_limit_mib": None}.items():
        set_parameter(smoke, name, value)
    assert judged_run(smoke).info["custom"] == ["alloc_conf= (laptop: expandable_segments:True,max_split_size_mb:256)"]


@pytest.mark.parametrize(
    ("name", "value", "custom"),
    [
        ("lr", 1e-2, "lr=0.01 (laptop: 0.0003)"),
        ("data", "/a/text", "data=/a/text (laptop: synthetic)"),
        ("compile", True, "compile=True (laptop: False)"),
        ("seed", 1, "seed=1 (laptop: 0)"),
        ("steps", 99, "steps=99 (laptop: 100)"),
        ("reserved_limit_mib", 1e6, "reserved_limit_mib=1e+06 (laptop: 65)"),
        ("anomaly", False, "anomaly=False (laptop: True)"),
        ("fault", "nan_loss", "fault=nan_loss: a seeded fault"),
    ],
)
def test_every_parameter_but_a_few_makes_a_run_custom(smoke, name, value, custom):
    set_parameter(smoke, name, value)
    assert judged_run(smoke).info["custom"] == [custom]


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 200), ("tag", "x"), ("accept_review", True), ("stall_timeout_s", 5.0), ("total_timeout_s", 5.0)],
)
def test_these_few_do_not(smoke, name, value):
    set_parameter(smoke, name, value)
    assert judged_run(smoke).info["custom"] == []


def test_a_frame_that_was_edited_is_never_read(smoke):
    for name in ("cases.csv", "steps.csv", "summary.json"):
        (smoke / name).write_text("edited")
    assert judged_run(smoke).verdict == "GO"


EDITED = (
    "run.json", "cases/training/case.json", "cases/training/result.json", "cases/training/heartbeat.jsonl",
    "cases/training/fingerprint.json", "cases/hot/fingerprint.json", "cases/anomaly/result.json",
)  # fmt: skip


@pytest.mark.parametrize("name", EDITED)
def test_one_digit_that_was_edited_is_seen_in_every_file_that_a_verdict_is_made_from(smoke, name):
    text = (smoke / name).read_text()
    place = max(at for at, letter in enumerate(text) if letter.isdecimal())
    (smoke / name).write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    run = judged_run(smoke)
    assert run.verdict in ("INCOMPLETE", "NO-GO")
    (gate,) = [gate for gate in run.gates if gate.name == "evidence"]
    assert gate.outcome == "NOT_RUN"
    assert f"{name} was changed after the run" in gate.detail


def test_a_file_that_was_taken_away_or_put_there_is_seen(smoke):
    (smoke / "cases" / "hot" / "fingerprint.json").unlink()
    (smoke / "cases" / "anomaly" / "fingerprint.json").write_text(
        (smoke / "cases/training/fingerprint.json").read_text()
    )
    (gate,) = [gate for gate in judged_run(smoke).gates if gate.name == "evidence"]
    assert "cases/hot/fingerprint.json is listed in SHA256SUMS and not there" in gate.detail
    assert "cases/anomaly/fingerprint.json is not listed in SHA256SUMS" in gate.detail


@pytest.mark.parametrize("text", [None, "", "no sum at all\n"])
def test_a_run_without_sums_was_judged_by_nobody_knows_what(smoke, text):
    (smoke / "SHA256SUMS").unlink()
    if text is not None:
        (smoke / "SHA256SUMS").write_text(text)
    (gate,) = [gate for gate in judged_run(smoke).gates if gate.name == "evidence"]
    assert gate.outcome == "NOT_RUN"
    assert "SHA256SUMS" in gate.detail
