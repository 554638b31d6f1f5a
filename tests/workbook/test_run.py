"""A run folder, as the worker and the runner leave it, becomes frames, a summary and figures, here and elsewhere."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from nsa_lib.contract.heartbeat import SCHEMA, STEP_COLUMNS
from nsa_lib.runs.recorded import CASE_COLUMNS, machine_name
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import QUESTIONS
from nsa_lib.workbook.run import compare, judged_run, key_figures, open_run, record
from nsa_lib.workbook.smoke.gates import smoke_gates
from tests.made import save, with_case, with_schema
from tests.workbook.smoke.made import ended, healthy, kept, with_steps, without_case

SUMMARY_KEYS = [
    "schema", "run_id", "notebook", "profile", "custom", "verdict", "headline", "reasons", "on_trial", "gates",
    "advice", "key_figures", "parameters", "environment", "cases",
]  # fmt: skip

GATE_KEYS = ["name", "required", "outcome", "measured", "limit", "margin", "unit", "detail", "user_traceback"]


@pytest.fixture
def folder(tmp_path):
    return save(healthy("laptop"), tmp_path / "runs" / "smoke-1")


def test_a_disk_that_takes_no_more_costs_a_line_each_and_never_the_verdict(folder, capsys):
    for name in ("summary.json", "cases.csv"):
        (folder / name).mkdir()  # nothing can take its place
    run = record(folder)
    assert (run.verdict, (folder / "steps.csv").is_file()) == ("GO", True)
    said = capsys.readouterr().out.replace("\n  ", " ").splitlines()
    assert len(said) == 2
    assert all("without a say in the verdict: IsADirectoryError" in line for line in said)
    assert not [*folder.glob("*.tmp")]


def test_a_run_folder_becomes_two_frames(folder):
    run, left = open_run(folder), healthy("laptop")
    assert list(run.cases) == list(CASE_COLUMNS)
    assert list(run.steps) == list(STEP_COLUMNS)
    assert list(run.cases["case_id"]) == ["training", "hot", "anomaly"]
    assert dict(run.steps.groupby("case_id").size()) == {"training": 100, "hot": 3, "anomaly": 10}
    assert run.steps["loss"].tolist() == left.steps["loss"].tolist()
    assert smoke_gates(run) == smoke_gates(left)
    assert run.verdict == "GO"


def test_a_recorded_run_reads_the_same_again(folder):
    recorded = record(folder)
    read = open_run(folder)
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "cases", "cases.csv", "steps.csv", "summary.json", "SHA256SUMS"
    }  # fmt: skip
    for name in ("cases", "steps"):
        pd.testing.assert_frame_equal(getattr(read, name), getattr(recorded, name), check_dtype=False)
    assert read.gates == recorded.gates
    assert read.summary == recorded.summary


def test_a_run_is_read_from_what_its_workers_wrote_whatever_a_frame_says(folder):
    record(folder)
    for name in ("steps.csv", "cases.csv", "summary.json"):
        (folder / name).write_text("edited")
    assert open_run(folder).verdict == "GO"
    heartbeat = folder / "cases" / "training" / "heartbeat.jsonl"
    heartbeat.write_text("".join(heartbeat.read_text().splitlines(keepends=True)[:-1]))
    assert open_run(folder).verdict == "NO-GO"


def test_the_summary_holds_what_the_design_says(folder):
    record(folder)
    summary = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert list(summary) == SUMMARY_KEYS
    assert (summary["schema"], summary["verdict"], summary["profile"]) == (SCHEMA, "GO", "laptop")
    assert all(list(gate) == GATE_KEYS for gate in summary["gates"])
    assert summary["headline"] == "23 of 23 required gates passed; 100 steps recorded, peak reserved 36 MiB"
    assert summary["parameters"] == healthy("laptop").info["parameters"]
    assert [case["case_id"] for case in summary["cases"]] == ["training", "hot", "anomaly"]
    assert all(isinstance(text, str) for text in (*summary["reasons"], *summary["advice"], *summary["custom"]))


def test_a_folder_copied_from_another_machine_reads_the_same(folder, tmp_path):
    record(folder)
    copy = shutil.copytree(folder, tmp_path / "from-the-gpu-box")
    there, here = open_run(folder), open_run(str(copy))
    assert here.summary == there.summary
    assert here.figures["memory"] == there.figures["memory"]


def test_figures_and_verdict_need_no_torch(folder):
    record(folder)
    code = f"""import sys
from nsa_lib.workbook.run import open_run
run = open_run({str(folder)!r})
assert set(run.figures) == {{"memory", "phases", "prediction", "loss", "grad_norm", "selection", "step_time"}}
assert len(run.figures["memory"].data) == 3
assert run.verdict == "GO"
assert "torch" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Runs that did not go well


def test_a_line_that_was_being_written_when_its_writer_died_is_left_out_and_told(folder):
    heartbeat = folder / "cases" / "training" / "heartbeat.jsonl"
    heartbeat.write_text(heartbeat.read_text()[:-40])
    run = record(folder)
    assert dict(zip(run.cases["case_id"], run.cases["torn_heartbeat"], strict=True)) == {
        "training": True, "hot": False, "anomaly": False,
    }  # fmt: skip
    assert len(run.of("training")) == 99
    assert (run.verdict, open_run(folder).verdict) == ("NO-GO", "NO-GO")


@pytest.mark.parametrize("case_id", ["training", "hot", "anomaly"])
def test_a_case_that_left_no_result_was_interrupted(folder, case_id):
    (folder / "cases" / case_id / "result.json").unlink()
    for run in (open_run(folder), record(folder), open_run(folder)):
        assert run.case(case_id)["status"] == "interrupted"
        assert run.case(case_id)["reason"] == "no result was written"
        assert run.verdict == "INCOMPLETE"


def test_a_runner_killed_at_once_leaves_a_run_that_can_be_opened(folder):
    shutil.rmtree(folder / "cases")
    for run in (open_run(folder), record(folder), open_run(folder)):
        assert list(run.cases["status"]) == ["interrupted"] * 3
        assert run.steps.empty
        assert run.verdict == "INCOMPLETE"
        assert "no steps recorded" in run.figures["memory"].layout.meta["description"]
        assert len(run.figures) == 7


STDERR = 'Traceback, "quoted":\r\n  50%|#####     |\r100%|##########|\n\x00NUL, None\nValueError: 7, né\n'


@pytest.mark.parametrize("status", ["failed", "oom", "nan", "stalled", "timeout", "crashed"])
def test_a_failed_case_is_the_same_when_it_is_read_again(tmp_path, status):
    run = ended(healthy("laptop"), status, 70, stderr_tail=STDERR)
    run = with_case(run, "anomaly", status="failed", reason="7", stderr_tail="None")
    recorded = record(save(run, tmp_path / "run"))
    read = open_run(tmp_path / "run")
    assert read.case("training")["status"] == status
    assert read.cases["reason"].tolist() == recorded.cases["reason"].tolist() == ["because", "", "7"]
    assert read.cases["stderr_tail"].tolist() == [STDERR, "", "None"]
    assert read.summary == recorded.summary
    assert read.verdict == "NO-GO"


# What cannot be read


@pytest.mark.parametrize("name", ["run.json", "cases/training/result.json"])
@pytest.mark.parametrize("content", [None, '{"schema": 1, "run_'])
def test_a_newer_or_broken_file_is_refused_in_one_line(folder, name, content):
    if content is None:
        with_schema(folder / name, SCHEMA + 1)
    else:
        (folder / name).write_text(content)
    with pytest.raises(ConfigError) as refusal:
        _ = open_run(folder).verdict
    line = str(refusal.value)
    assert line.startswith(str(folder / name))
    assert (
        f"schema {SCHEMA + 1} is newer than this library reads ({SCHEMA})" if content is None else "not JSON"
    ) in line
    assert "\n" not in line


def test_a_run_of_an_older_library_says_who_recorded_it_and_what_to_do(folder):
    path = folder / "run.json"
    info = json.loads(path.read_text())
    facts = {"host": "box-7", "source_sha256": 64 * "a", "git_commit": 40 * "b"}
    path.write_text(json.dumps({**info, "schema": 1, "environment": {**info["environment"], **facts}}))
    with pytest.raises(ConfigError) as refusal:
        judged_run(folder)
    line = str(refusal.value)
    assert line.startswith(f"{path}: recorded by an older nsa_lib (schema 1, source aaaa")
    for said in ("commit bbbb", "host box-7", "at 2025-03-01", "run smoke again, or open it with the nsa_lib that"):
        assert said in line
    assert "\n" not in line


def test_a_run_of_an_older_library_that_tells_nothing_of_itself_is_refused_too(folder):
    (folder / "run.json").write_text(json.dumps({"schema": 1, "environment": "unknown"}))
    with pytest.raises(ConfigError, match=r"older nsa_lib \(schema 1\)"):
        judged_run(folder)


def test_no_run_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run in"):
        open_run("newest", out_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"not a run folder, it has no run\.json"):
        open_run(tmp_path)


# The newest run


def day(number):
    return f"2025-03-{number:02}T10:15:00.000000+00:00"


def test_the_newest_run_is_the_one_made_last(tmp_path):
    for name, number in (("z", 1), ("b", 3), ("a", 2)):
        save(healthy("laptop"), tmp_path / "runs" / name, run_id=name, created=day(number))
    (tmp_path / "runs" / "just-made").mkdir()
    assert open_run(out_dir=tmp_path).info["run_id"] == "b"
    assert open_run("newest", out_dir=str(tmp_path)).folder == tmp_path / "runs" / "b"


def test_an_old_run_that_is_broken_is_in_nobodys_way(tmp_path):
    for name, number in (("newer-library", 1), ("torn", 2), ("good", 3)):
        save(healthy("laptop"), tmp_path / "runs" / name, run_id=name, created=day(number))
    with_schema(tmp_path / "runs" / "newer-library" / "run.json", SCHEMA + 1)
    torn = tmp_path / "runs" / "torn" / "run.json"
    torn.write_text('{"schema": 1, "run_')
    os.utime(torn, (1.7e9, 1.7e9))
    assert open_run(out_dir=tmp_path).info["run_id"] == "good"


@pytest.mark.parametrize("broken", ["newer", "torn"])
def test_a_newest_run_that_is_broken_is_an_error_and_no_older_run(tmp_path, broken):
    for name, number in (("good", 2), ("last", 3)):
        save(healthy("laptop"), tmp_path / "runs" / name, run_id=name, created=day(number))
    last = tmp_path / "runs" / "last" / "run.json"
    if broken == "newer":
        with_schema(last, SCHEMA + 1)
    else:
        last.write_text("")
    with pytest.raises(ConfigError, match=r"last/run\.json"):
        open_run(out_dir=tmp_path)


# Comparison


def test_runs_are_compared_by_what_differs_and_nothing_else(tmp_path):
    environment = {"torch": "2.5.1", "packages": {"plotly": "7.1", "pandas": "3.2"}}
    later = without_case(with_steps(healthy("laptop", lr=1e-3), loss=lambda step, loss: 6.0), "anomaly")
    run_a = open_run(save(healthy("laptop"), tmp_path / "a", run_id="a"))
    run_b = open_run(save(later, tmp_path / "b", run_id="b", environment=environment))
    changed = compare(run_a, run_b)
    assert list(changed) == ["kind", "name", "a", "b"]
    found = {(row.kind, row.name): (row.a, row.b) for row in changed.itertuples(index=False)}
    assert found == {
        ("parameter", "lr"): (3e-4, 1e-3),
        ("environment", "torch"): ("2.13.0", "2.5.1"),
        ("environment", "packages.pandas"): ("3.1", "3.2"),
        ("gate", "anomaly"): ("PASS", "NOT_RUN"),
        ("gate", "evidence"): ("PASS 0 contradictions", "NOT_RUN 1 contradiction"),
        ("gate", "loss_falls"): ("PASS 59.53 %", "FAIL 0 %"),
        ("figure", "loss of the last step"): ("2.269 nats per token", "6 nats per token"),
        ("verdict", ""): ("GO", "NO-GO"),
    }


def test_figures_that_look_alike_are_told_with_all_their_digits(tmp_path):
    run_a, run_b = (
        open_run(save(with_steps(healthy("laptop"), loss=lambda step, loss, last=last: last), tmp_path / name))
        for name, last in (("a", 6.0), ("b", 6.0000001))
    )
    (row,) = (row for row in compare(run_a, run_b).itertuples(index=False) if row.kind == "figure")
    assert tuple(row)[2:] == ("6.0 nats per token", "6.0000001 nats per token")


def test_a_run_does_not_differ_from_its_copy(folder, tmp_path):
    record(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert compare(open_run(folder), open_run(tmp_path / "copy")).empty


def test_gates_and_figures_that_differ_are_named_once_each(tmp_path):
    run = healthy("laptop")
    slower = with_steps(
        run,
        ts=lambda step, ts: 1.7e9 + 2 * (ts - 1.7e9),
        tokens_per_s=lambda step, pace: pace / 2,
        step_ms=lambda step, ms: 2 * ms,
    )
    changed = compare(open_run(save(run, tmp_path / "a")), open_run(save(slower, tmp_path / "b")))
    assert list(changed["kind"]) == ["figure", "figure"]
    assert [tuple(row)[1:] for row in changed.to_numpy()] == [
        ("pace, median after warm-up", "5,120 tokens/s", "2,560 tokens/s"),
        ("step time, median after warm-up", "100 ms", "200 ms"),
    ]


def test_runs_of_two_notebooks_and_of_one_name_are_compared(tmp_path):
    run = healthy("laptop")
    other = save(run, tmp_path / "b", notebook="preflight", environment={"torch": "2.13.0"})
    changed = compare(open_run(save(run, tmp_path / "a")), open_run(other))
    assert list(changed)[2:] == [run.info["run_id"], f"{run.info['run_id']} (again)"]
    assert ("gate", "loss_falls") in set(zip(changed["kind"], changed["name"], strict=True))


# Key figures


def test_key_figures_are_highest_peaks_and_medians_after_the_warm_up(folder):
    run = with_steps(
        healthy("laptop"),
        peak_alloc_mib=lambda step, mib: 90.0 if step == 3 else mib,
        step_ms=lambda step, ms: 9e9 if step <= 10 else step,
        tokens_per_s=lambda step, pace: 1.0 if step <= 10 else 7.0,
    )
    found = key_figures(open_run(save(run, folder.with_name("smoke-2"))))
    assert found["peak_alloc_mib"] == 90.0
    assert found["peak_reserved_mib"] == pytest.approx(1.05 * 34)
    assert (found["step_ms"], found["tokens_per_s"]) == (55.5, 7.0)
    assert found["loss"] == pytest.approx(6.2 * 0.99**100)
    assert all(type(value) is float for value in found.values())


def test_a_figure_that_is_not_known_is_none_and_never_nan(folder):
    run = healthy("laptop")
    short = open_run(save(kept(run, 5), folder.with_name("short")))
    assert (key_figures(short)["step_ms"], key_figures(short)["tokens_per_s"]) == (None, None)
    untrained = key_figures(open_run(save(without_case(run, "training"), folder.with_name("untrained"))))
    assert untrained["peak_alloc_mib"] == pytest.approx(34.0)
    assert (untrained["loss"], untrained["step_ms"]) == (None, None)
    lost = with_steps(run, loss=lambda step, loss: float("nan"), peak_alloc_mib=lambda step, mib: float("inf"))
    found = key_figures(open_run(save(lost, folder.with_name("lost"))))
    assert (found["loss"], found["peak_alloc_mib"]) == (None, None)
    shutil.rmtree(folder / "cases")
    assert set(key_figures(open_run(folder)).values()) == {None}


def test_a_machine_is_named_by_its_gpu_or_else_its_processor():
    assert machine_name({"environment": {"gpu": "NVIDIA H200", "cpu": "x"}}) == "NVIDIA H200"
    assert machine_name({"environment": {"gpu": None, "cpu": "x"}}) == "x"
    assert machine_name({"environment": {}}) is None


# A run that was read to its end


def test_a_judged_run_is_whole(folder):
    assert judged_run(folder).verdict == judged_run(str(record(folder).folder)).verdict == "GO"


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / "run.json").unlink(), "not a run folder"),
        (
            lambda folder: with_schema(folder / "cases" / "anomaly" / "result.json", SCHEMA + 1),
            f"schema {SCHEMA + 1} is newer",
        ),
        (lambda folder: (folder / "run.json").write_text("{"), "not JSON"),
        (
            lambda folder: (folder / "cases" / "anomaly" / "heartbeat.jsonl").write_text("x\n"),
            "cannot be read (JSONDec",
        ),
        (lambda folder: (folder / "cases" / "anomaly" / "result.json").write_bytes(b"\xff\n"), "not JSON"),
        (lambda folder: with_info(folder, notebook="cooking"), "a run of cooking, which this library does not judge"),
        (lambda folder: with_info(folder, parameters=[{"name": "x"}]), "cannot be read ("),
        (lambda folder: with_info(folder, environment=[{}]), "cannot be read (TypeError: "),
    ],
)
def test_a_run_that_cannot_be_judged_is_refused_in_one_line(folder, damage, line):
    damage(folder)
    with pytest.raises(ConfigError) as refusal:
        judged_run(folder)
    assert line in str(refusal.value)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def with_info(folder, **changes):
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Verdict first, decoration after


def test_a_verdict_is_there_though_all_that_decorates_it_fails(folder, monkeypatch, capsys):
    def fail(*_):
        raise TypeError("planted")

    judging = QUESTIONS["smoke"].judging
    broken = replace(QUESTIONS["smoke"], judging=replace(judging, advice=fail, headline=fail, figures=fail))
    monkeypatch.setitem(QUESTIONS, "smoke", broken)
    monkeypatch.setattr("nsa_lib.workbook.run.write_csv", fail)
    recorded = record(folder)
    assert recorded.verdict == "GO"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["verdict"], len(summary["advice"])) == ("GO", 1)
    assert "planted" in summary["headline"]
    assert capsys.readouterr().out.count("without a say in the verdict") == 2


def test_a_torn_prediction_stops_no_verdict(folder):
    (folder / "cases" / "training" / "prediction.json").write_text('{"schema": 1, "peak')
    run = record(folder)
    assert run.verdict == "GO"
    assert "not JSON" in run.case("training")["prediction"]["reason"]
