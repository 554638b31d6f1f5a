"""An exploration: runs are opened, and asked."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from nsa_lib.contract.heartbeat import SCHEMA, STEP_COLUMNS
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, GateResult
from nsa_lib.report.charts.attention_map import NOT_KEPT, gate_map, selection_map
from nsa_lib.report.facts import facts_table
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.comparison import differences_table
from nsa_lib.workbook.explore.figures import closest_gates_table, peak_by_phase, slow_steps_chart, slow_steps_table
from nsa_lib.workbook.explore.measures import closest_gates, differences, open_runs, overlaid, overview, slow_steps
from nsa_lib.workbook.run import open_run
from tests.made import save
from tests.workbook.explore.made import asked, scaling, smoke
from tests.workbook.smoke.made import with_steps

# Opening


def test_a_run_is_opened_by_its_name_its_folder_or_as_the_newest_wherever_it_lies(folder, tmp_path):
    elsewhere = shutil.copytree(folder, tmp_path / "usb" / "copied")
    for which in ("newest", "smoke-1", str(folder), str(elsewhere)):
        opened, other = asked(tmp_path, run=which)
        assert (opened.info["run_id"], other) == ("smoke-1", None)
    opened, other = asked(tmp_path, other=str(elsewhere))
    assert (opened.folder, other.folder) == (folder, elsewhere)
    assert differences(opened, other).empty


def test_the_newest_run_is_one_with_cases_and_no_rerun_and_a_broken_one_is_in_nobodys_way(folder, tmp_path):
    later = {"created": "2031-01-01T00:00:00+00:00"}
    save(smoke(), tmp_path / "runs" / "smoke-2-rerun", **later, custom=["rerun of smoke-1: case training, steps=20"])
    nothing_run = replace(smoke(), info={**smoke().info, "case_ids": []})
    save(nothing_run, tmp_path / "runs" / "readiness-3", **later)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    assert asked(tmp_path)[0].folder == folder
    assert asked(tmp_path, run="smoke-2-rerun")[0].info["created"] == later["created"]


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"run": "smoke-9"}, "run='smoke-9': accepts a run folder, the name of one in "),
        ({"run": "smoke-1", "other": "smoke-9"}, "other='smoke-9': accepts a run folder"),
        ({"run": ""}, "run='': accepts a run folder"),
        ({"run": 7}, "run=7: accepts text"),
        ({"run": "torn"}, "torn/run.json: not JSON"),
        ({"run": "newer"}, "newer/run.json: schema 99 is newer than this library reads"),
        ({"run": "older"}, "older/run.json: recorded by an older nsa_lib (schema 1"),
        ({"run": "foreign"}, "a run of tomorrow, which this library does not judge"),
        ({"run": "odd"}, "odd: cannot be read (KeyError"),
    ],
)
def test_a_run_that_cannot_be_opened_is_refused_in_one_line(folder, tmp_path, parameters, line):
    broken = {
        "torn": "{", "newer": '{"schema": 99}', "odd": f'{{"schema": {SCHEMA}, "notebook": "smoke"}}',
        "older": json.dumps({**smoke().info, "schema": 1}),
        "foreign": json.dumps({**smoke().info, "notebook": "tomorrow"}),
    }  # fmt: skip
    for name, text in broken.items():
        (folder.parent / name).mkdir()
        (folder.parent / name / "run.json").write_text(text)
    with pytest.raises(ConfigError) as refusal:
        asked(tmp_path, **parameters)
    assert line in str(refusal.value)
    assert len(refusal.value._render_traceback_()) == 1
    assert "\n" not in str(refusal.value)


def test_a_folder_with_nothing_but_an_older_librarys_run_says_so(folder, tmp_path):
    (folder / "run.json").write_text(json.dumps({**smoke().info, "schema": 1}))
    with pytest.raises(ConfigError, match="recorded by an older nsa_lib"):
        asked(tmp_path)


def test_a_folder_without_runs_and_a_name_that_is_no_parameter_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="run=newest: no run in "):
        asked(tmp_path)
    with pytest.raises(ConfigError, match="runs: no such parameter of explore"):
        open_runs({"In": ["# Parameters\nruns = 'x'\n"]})


def test_a_run_of_an_older_library_is_read_without_the_columns_that_it_had_not(folder, tmp_path):
    path = folder / "cases" / "training" / "result.json"
    result = json.loads(path.read_text())
    del result["attention_map"]
    path.write_text(json.dumps(result))
    opened, _ = asked(tmp_path)
    assert slow_steps(opened).empty
    assert NOT_KEPT in gate_map(opened).layout.title.subtitle.text


def test_a_run_that_was_cut_short_is_explored_without_a_traceback(tmp_path):
    folder = save(smoke(), tmp_path / "runs" / "smoke-1")
    for name in ("training", "anomaly"):
        (folder / "cases" / name / "result.json").unlink()
    beats = folder / "cases" / "training" / "heartbeat.jsonl"
    beats.write_text(beats.read_text()[:9000])  # in the middle of a line
    opened, _ = asked(tmp_path)
    assert overview(opened)["verdict"] == "INCOMPLETE"
    assert 0 < len(opened.of("training")) < 100
    assert slow_steps_chart(opened, slow_steps(opened)).data
    assert peak_by_phase(opened).data
    assert NOT_KEPT in selection_map(opened, layer=1).layout.title.subtitle.text
    assert repr(closest_gates_table(closest_gates(opened)))
    assert len(differences_table(differences(opened, opened)).rows) == 0


# Answers


def test_the_overview_says_what_was_run_and_what_was_said(run):
    said = overview(run)
    assert (said["run"], said["torch"], said["custom"]) == ("smoke-1", "2.13.0", None)
    assert "required gates" in repr(facts_table("Run", said))


def test_slow_steps_are_those_above_the_median_and_five_deviations():
    def jitter(step, _):  # the median is 100 ms, the median absolute deviation 1 ms
        return {1: 900.0, 40: 106.0, 41: 104.9, 90: 500.0}.get(step, 100.0 + (step % 3 - 1))

    slow = slow_steps(with_steps(smoke(), step_ms=jitter))
    assert slow[["case_id", "step", "step_ms"]].values.tolist() == [["training", 40, 106.0], ["training", 90, 500.0]]
    assert slow["median_ms"].tolist() == [100, 100]
    assert slow["limit_ms"].tolist() == [105, 105]
    assert slow["times"].tolist() == [1.06, 5.0]
    assert repr(slow_steps_table(slow)).splitlines()[2].split()[:3] == ["training", "90", "500"]


def test_each_case_and_each_contestant_of_a_timing_has_a_median_of_its_own():
    rows = [
        {
            "case_id": case_id,
            "step": step,
            "phase": "step",
            "step_ms": base + (30 if step == 12 else 0),
            "backend": name,
        }
        for case_id, name, base in (("a", None, 10.0), ("timing", "masked", 100.0), ("timing", "packed", 500.0))
        for step in range(11, 21)
    ]
    slow = slow_steps(SimpleNamespace(steps=pd.DataFrame(rows).reindex(columns=STEP_COLUMNS)))
    assert slow[["case_id", "step", "median_ms"]].values.tolist() == [
        ["a", 12, 10], ["timing", 12, 100], ["timing", 12, 500],
    ]  # fmt: skip


def test_no_step_is_slow_in_a_run_without_steps_and_nothing_breaks():
    empty = SimpleNamespace(steps=pd.DataFrame(columns=STEP_COLUMNS))
    assert slow_steps(empty).empty
    assert repr(slow_steps_table(slow_steps(empty))).startswith("Slow steps: 0")


def test_the_closest_gate_is_the_one_with_the_least_left_and_one_beyond_its_limit_is_before_it():
    gates = [
        GateResult("far", True, PASS, measured=10, limit=100, margin=90),
        GateResult("exact", True, PASS, measured=100, limit=100),
        GateResult("near", True, PASS, measured=99, limit=100, margin=1),
        GateResult("beyond", True, FAIL, measured=150, limit=100, margin=-50),
        GateResult("below", False, FAIL, measured=40, limit=50),
        GateResult("above", False, PASS, measured=60, limit=50),
        GateResult("zero", True, PASS, measured=0, limit=0),
        GateResult("unrun", True, NOT_RUN, limit=5),
        GateResult("words", True, PASS, measured="masked", limit="masked"),
        GateResult("infinite", True, FAIL, measured=math.inf, limit=5),
    ]
    found = closest_gates(SimpleNamespace(gates=gates))
    assert found["name"].tolist() == ["beyond", "below", "near", "above", "far", "exact", "zero"]
    assert found["distance_percent"].tolist()[:5] == [-50, -20, 1, 20, 90]
    assert "PASS" in repr(closest_gates_table(found))
    assert closest_gates(SimpleNamespace(gates=[])).empty


def test_two_runs_are_laid_over_each_other_and_without_a_second_one_that_is_said(run, tmp_path):
    other = open_run(scaling(tmp_path / "runs" / "backward_scaling-1"))
    both = overlaid(run, other, "peak_alloc_mib", "Peak", "MiB")
    assert [len(trace.x) > 0 for trace in both.data] == [True, True]
    alone = overlaid(run, None, "peak_alloc_mib", "Peak", "MiB")
    assert not alone.data
    assert "no second run" in alone.layout.title.subtitle.text
    changed = differences(run, other)
    assert ("parameter", "seq_lens") in set(zip(changed["kind"], changed["name"], strict=True))
    assert len(differences_table(changed).rows) == len(changed) > 0
    assert differences_table(differences(run, None)).rows == []


# Without torch, and in JupyterLab


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from nsa_lib.report import *
from nsa_lib.report.charts import gate_map, selection_map
from nsa_lib.workbook.comparison import differences_table
from nsa_lib.workbook.explore.figures import closest_gates_table, peak_by_phase, slow_steps_chart, slow_steps_table
from nsa_lib.workbook.explore.measures import differences, closest_gates, open_runs, overlaid, overview, slow_steps
from nsa_lib.workbook.explore.rerun import changed_case, recorded_case
run, other = open_runs({"out_dir": sys.argv[1], "other": "smoke-1"})
for table in (facts_table("Run", overview(run)), gates_table(run.summary["gates"]), cases_table(run.cases),
              slow_steps_table(slow_steps(run)), closest_gates_table(closest_gates(run)),
              differences_table(differences(run, other))):
    assert table._repr_html_() and repr(table)
for chart in (peak_by_phase(run), slow_steps_chart(run, slow_steps(run)),
              selection_map(run, layer=1), gate_map(run),
              overlaid(run, other, "peak_alloc_mib", "Peak", "MiB")):
    assert chart.data and chart.bundle()
print(changed_case(recorded_case(run, "training"), {"steps": 7}).steps)
"""


def test_everything_but_a_rerun_works_where_torch_cannot_be_imported(folder, tmp_path):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "7\n", done.stderr
