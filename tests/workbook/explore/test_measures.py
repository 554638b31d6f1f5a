"""Exploring a finished run: what is answered, what is refused, without torch and in a real kernel."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.heartbeat import STEP_COLUMNS
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, GateResult
from nsa_lib.report.charts.attention_map import NOT_KEPT, gate_map, selection_map
from nsa_lib.report.tables import facts_table
from nsa_lib.runs import environment
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.comparison import differences_table
from nsa_lib.workbook.decide import choose
from nsa_lib.workbook.explore.figures import closest_gates_table, peak_by_phase, slow_steps_chart, slow_steps_table
from nsa_lib.workbook.explore.measures import closest_gates, differences, open_runs, overlaid, overview, slow_steps
from nsa_lib.workbook.explore.rerun import changed_case, recorded_case, rerun
from nsa_lib.workbook.questions import QUESTIONS
from nsa_lib.workbook.run import open_run, record
from tests.runs.test_interrupt import Lab, when_at_work
from tests.runs.test_runner import RESULT, plant, processes
from tests.samples import code_cell, concluded, export, notebook, sample_notebook
from tests.saved import save
from tests.subject.test_config import CASE
from tests.test_notebooks import FOLDER
from tests.workbook.backward_scaling import test_gates
from tests.workbook.smoke.test_gates import healthy, with_case, with_steps

MAP = {
    "l_sel": 64,
    "branches": ["cmp", "slc", "win"],
    "selected": [[[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.25, 1.0]]] * 2,
    "branch_gates": [[[0.5, 0.25, 0.75]] * 4, [[0.125, 0.5, 0.5]] * 4],
}

FACTS = {"torch": "2.13.0", "cuda_usable": False, "cuda_problem": "no NVIDIA device"}


def smoke(**changes):
    return with_case(healthy("laptop", **changes), "training", attention_map=MAP)


def scaling(folder):
    """Save a scaling as its runner would have left it."""
    run = test_gates.healthy("laptop")
    info = {
        **healthy("laptop").info, "run_id": folder.name, "notebook": "backward_scaling",
        "case_ids": list(run.cases["case_id"]),
        "parameters": [{"origin": "profile", "checklist": None, "differs": False, **row}
                       for row in run.info["parameters"]],
    }  # fmt: skip
    return save(replace(run, info=info), folder)


def put_case(folder, case=CASE):
    (folder / "cases" / case.case_id / "case.json").write_text(case.to_json())


@pytest.fixture
def folder(tmp_path):
    """A recorded smoke whose training can be run again."""
    made = save(smoke(), tmp_path / "runs" / "smoke-1", run_id="smoke-1")
    record(made)
    put_case(made)
    return made


@pytest.fixture
def run(folder):
    return open_run(folder)


def asked(out_dir, **parameters):
    return open_runs({"out_dir": str(out_dir), **parameters})


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
        ({"run": "foreign"}, "a run of tomorrow, which this library does not judge"),
        ({"run": "odd"}, "odd: cannot be read (KeyError"),
    ],
)
def test_a_run_that_cannot_be_opened_is_refused_in_one_line(folder, tmp_path, parameters, line):
    broken = {
        "torn": "{", "newer": '{"schema": 99}', "odd": '{"schema": 1, "notebook": "smoke"}',
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
    shutil.rmtree(folder / "cases" / "dense")
    opened, _ = asked(tmp_path)
    assert overview(opened)["verdict"] == "INCOMPLETE"
    assert 0 < len(opened.of("training")) < 100
    assert slow_steps_chart(opened, slow_steps(opened)).data
    assert peak_by_phase(opened).data
    assert NOT_KEPT in selection_map(opened, layer=0).layout.title.subtitle.text
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
    assert ("parameter", "seq_lens") in set(zip(changed["kind"], changed["name"]))
    assert len(differences_table(changed).rows) == len(changed) > 0
    assert differences_table(differences(run, None)).rows == []


def test_hashes_side_by_side_are_shortened():
    changed = pd.DataFrame([["environment", "source_sha256", "ab" * 32, "cd" * 32]], columns=["kind", "name", "a", "b"])
    assert "abababababab…" in repr(differences_table(changed))


# Charts


def test_the_peak_is_named_by_phase_case_and_step(run):
    raised = with_steps(run, peak_alloc_mib=lambda step, mib: mib + (step == 37))
    figure = peak_by_phase(raised)
    assert figure.layout.title.subtitle.text.endswith("case training, peak first reached in step 37")
    assert figure.layout.xaxis.title.text == "MiB"


def test_a_scaling_has_no_optimizer_phase_where_none_was_measured():
    run = test_gates.healthy("laptop")
    steps = run.steps[run.steps["case_id"] == "s512"].assign(peak_alloc_optimizer_mib=np.nan)
    figure = peak_by_phase(replace(run, steps=steps))
    assert list(figure.data[0].y) == ["forward", "backward"]
    assert "case s512" in figure.layout.title.subtitle.text


def test_slow_steps_are_marked_where_they_are(run):
    evidence = with_steps(run, step_ms=lambda step, _: 300.0 if step in (50, 70) else 100.0)
    figure = slow_steps_chart(evidence, slow_steps(evidence))
    marked = next(trace for trace in figure.data if trace.name == "slow")
    assert (list(marked.x), list(marked.y)) == ([50, 70], [300, 300])
    assert "2 slow" in figure.layout.title.subtitle.text


def test_the_selection_map_shows_shares_and_leaves_the_future_empty(run):
    figure = selection_map(run, layer=1)
    shown = np.array(figure.data[0].z, dtype=float)
    assert np.isnan(shown[np.triu_indices(3, k=1)]).all()
    assert shown[2].tolist() == [1, 0.25, 1]
    assert figure.layout.xaxis.title.text == "key block (64 tokens)"
    assert figure.layout.yaxis.title.text == "query block (64 tokens)"
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], "query 0 is on top"
    assert figure.layout.coloraxis.colorbar.title.text == "share of queries"
    for layer in (-1, 2):
        with pytest.raises(ConfigError, match=f"layer={layer}: accepts 0 to 1"):
            selection_map(run, layer=layer)


def test_the_gate_map_has_a_panel_for_each_branch(run):
    figure = gate_map(run)
    assert [np.array(panel.z).tolist() for panel in figure.data] == [
        [[layer[0][branch]] * 4 for layer in MAP["branch_gates"]] for branch in range(3)
    ]
    assert [title.text for title in figure.layout.annotations] == ["compressed", "selected", "sliding"]
    assert figure.layout.coloraxis.colorbar.title.text == "mean gate"
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert "selected 0.375" in figure.layout.title.subtitle.text


@pytest.mark.parametrize("kept", [None, {**MAP, "selected": []}])
def test_a_run_that_kept_no_map_says_so(kept):
    evidence = with_case(healthy("laptop"), "training", attention_map=kept)
    assert NOT_KEPT in selection_map(evidence, layer=0).layout.title.subtitle.text
    assert bool(gate_map(evidence).data) == (kept is not None and kept != "null")


def test_charts_of_a_run_without_a_step_or_a_case_say_so(run):
    empty = replace(run, steps=run.steps.iloc[:0], cases=run.cases.iloc[:0])
    drawn = [peak_by_phase(empty), slow_steps_chart(empty, slow_steps(empty)), gate_map(empty),
             selection_map(empty, layer=0)]  # fmt: skip
    for figure in drawn:
        assert not figure.data
        assert figure.layout.meta["description"]


# Another try


def test_fields_of_case_model_and_attention_are_changed_by_name():
    changes = {"steps": "20", "layers": 3, "w": 16.0, "lr": "1e-2", "branches": ["slc"], "look": True, "rope_base": 500}
    changed = changed_case(CASE, changes)
    assert (changed.steps, changed.lr, changed.look) == (20, 0.01, True)
    assert (changed.model.layers, changed.model.nsa.w) == (3, 16)
    assert (changed.model.nsa.branches, changed.model.nsa.rope_base) == (("slc",), 500.0)
    assert replace(
        changed, steps=CASE.steps, lr=CASE.lr, look=False,
        model=replace(changed.model, layers=1, nsa=CASE.model.nsa),
    ) == CASE  # fmt: skip
    assert changed_case(CASE, {}) == CASE


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"stepz": 3}, "stepz: no such field of a case; accepts work, seq_len, batch, steps"),
        ({"case_id": "x"}, "case_id: no such field"),
        ({"model": None}, "model: no such field"),
        ({"steps": "ten"}, "steps='ten': accepts a whole number above 0"),
        ({"steps": None}, "steps=None: accepts a whole number above 0"),
        ({"steps": 0}, "steps=0: accepts a whole number above 0"),
        ({"look": "perhaps"}, "look='perhaps': accepts True or False"),
        ({"groups": 3}, "heads=4, groups=3: heads must be a multiple of groups"),
        ({"dtype": "int8"}, "dtype='int8': accepts float32, bfloat16"),
        ({"branches": "slc"}, "branches='slc': accepts a list of names"),
        ({"branches": ["cmp", 7]}, "branches=('cmp', '7'): accepts one or more of cmp, slc, win"),
        ({"backends": "masked"}, "backends='masked': accepts a list of names"),
        ({"backends": ["fast"]}, "backends=('fast',): accepts one or more of masked, gather, packed, fused"),
        ({"backends": ["packed", "fused"]}, "backend=fused, device=cpu: accepts cuda"),
        ({"backend": "fused"}, "backend=fused, device=cpu: accepts cuda"),
        ({"backend": "auto"}, "backend='auto': accepts masked, gather, packed, fused"),
        ({"work": "play"}, "work='play': accepts train, backward"),
        ({"device": "cuda"}, "device=cuda: needs a CUDA device (no NVIDIA device); here accepts cpu"),
        ({"alloc_conf": "magic:1"}, "magic"),
        ({"data": "/nowhere.txt", "vocab": 256}, "data=/nowhere.txt: no such file"),
        ({"compile": True}, "compile=True, device=cpu"),
    ],
)
def test_what_cannot_be_run_again_is_refused_in_one_line_and_leaves_nothing(run, monkeypatch, changes, line):
    monkeypatch.setattr(environment, "torch_facts", lambda: FACTS)
    with pytest.raises(ConfigError) as refusal:
        rerun(run, "training", **changes)
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert [path.name for path in run.folder.parent.iterdir()] == ["smoke-1"]


@pytest.mark.parametrize("changes", [{"backend": "fused"}, {"backends": ["fused"]}])
def test_fused_is_not_run_again_where_it_cannot_run(run, monkeypatch, changes):
    gpu = {"torch": "2.13.0", "cuda_usable": True, "triton": None, "compute_capability": "9.0"}
    monkeypatch.setattr(environment, "torch_facts", lambda: gpu)
    with pytest.raises(ConfigError, match=r"^backend=fused: needs Triton, which is not installed$"):
        rerun(run, "training", device="cuda", **changes)


def test_a_case_that_the_run_has_not_or_that_cannot_be_read_is_refused(run):
    with pytest.raises(ConfigError, match=r"case_id='train': accepts training, anomaly, dense"):
        rerun(run, "train")
    with pytest.raises(ConfigError, match=r"case_id='\.\./\.\.': accepts"):
        recorded_case(run, "../..")
    empty = SimpleNamespace(info={"case_ids": []})
    with pytest.raises(ConfigError, match="case_id=None: accepts none: this run has no cases"):
        recorded_case(empty, None)
    for text in ("{}", "{", "[]", '{"model": {"nsa": {"wide": 1}}}'):
        (run.folder / "cases" / "anomaly" / "case.json").write_text(text)
        with pytest.raises(ConfigError, match=r"anomaly/case\.json: not a case that this library can run"):
            recorded_case(run, "anomaly")
    (run.folder / "cases" / "anomaly" / "case.json").unlink()
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        recorded_case(run, "anomaly")


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A worker that takes two steps and ends well."""
    monkeypatch.setattr(environment, "torch_facts", lambda: FACTS)
    plant(tmp_path, monkeypatch, RESULT.replace("STATUS", "ok").replace('"training"', "folder.name"))


def test_a_rerun_is_a_run_of_its_own_that_never_counts(run, planted, tmp_path, capsys):
    again = rerun(run, "training", steps=20, w=16)
    assert again.folder.parent == run.folder.parent
    assert again.folder.name.endswith("-rerun")
    assert again.info["custom"] == ["rerun of smoke-1: case training, steps=20, w=16"]
    assert (again.info["notebook"], again.info["profile"]) == ("smoke", "laptop")
    assert again.info["case_ids"] == ["training"]
    values = {row["name"]: (row["value"], row["origin"]) for row in again.info["parameters"]}
    case = CaseConfig.from_json((again.folder / "cases" / "training" / "case.json").read_text())
    assert case == replace(CASE, steps=20, model=replace(CASE.model, nsa=replace(CASE.model.nsa, w=16)))
    assert values["steps"][0] == 100, "the planted case has other steps than the parameter, so that stays"
    assert again.verdict in ("INCOMPLETE", "NO-GO")
    assert choose(tmp_path, "newest")[0][0].info["run_id"] == "smoke-1"
    assert asked(tmp_path)[0].folder == run.folder
    assert "rerun of smoke-1: case training, steps=20, w=16." in capsys.readouterr().out
    assert len(differences(run, again)) > 0


def test_the_command_of_a_rerun_asks_for_the_same(run, planted):
    again = rerun(run, "training", steps=20, branches=["slc"])
    code = again.info["reproduce"].removeprefix("python -c ").strip("'").replace("'\"'\"'", "'")
    calls = []
    names = {"rerun": lambda *given, **changes: calls.append((given, changes)), "open_run": str}
    exec(code.split("; ")[-1], names)
    assert calls == [((str(run.folder), "training"), {"steps": 20, "branches": ("slc",)})]


def test_a_parameter_follows_the_case_that_took_its_value_from_it(folder, planted):
    put_case(folder, replace(CASE, steps=100))
    again = rerun(open_run(folder), "training", steps=20)
    rows = {row["name"]: row for row in again.info["parameters"]}
    assert (rows["steps"]["value"], rows["steps"]["origin"], rows["steps"]["differs"]) == (20, "given", True)


def test_a_rerun_of_a_copied_run_or_with_out_dir_lands_where_it_may(run, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "PROJECT", tmp_path / "project")
    copied = open_run(shutil.copytree(run.folder, tmp_path / "usb" / "copied"))
    assert rerun(copied, "training").folder.parent == tmp_path / "project" / "reports" / "runs"
    assert rerun(copied, "training", out_dir=tmp_path / "x").folder.parent == tmp_path / "x" / "runs"
    assert rerun(copied, "training").info["custom"] == ["rerun of smoke-1: case training, unchanged"]


def test_a_case_of_a_scaling_is_run_again_too(planted, tmp_path):
    folder = scaling(tmp_path / "runs" / "backward_scaling-1")
    put_case(folder, replace(CASE, case_id="s512", work="backward", steps=8, warmup_steps=3))
    again = rerun(open_run(folder), "s512", steps=20)
    assert again.verdict in ("INCOMPLETE", "NO-GO")
    assert again.figures


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
              selection_map(run, layer=0), gate_map(run),
              overlaid(run, other, "peak_alloc_mib", "Peak", "MiB")):
    assert chart.data and chart.bundle()
print(changed_case(recorded_case(run, "training"), {"steps": 7}).steps)
"""


def test_everything_but_a_rerun_works_where_torch_cannot_be_imported(folder, tmp_path):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "7\n", done.stderr


def test_the_notebook_in_a_kernel_run_interrupted_run_again_and_after_a_restart(folder, tmp_path):
    lab = Lab("explore")
    try:
        endless = {"rerun": lab.kept["rerun"].replace("steps=20", "steps=100_000")}
        edited = {"parameters": lab.kept["parameters"] + f'\nout_dir = "{tmp_path}"\nother = "smoke-1"'}
        lab.cells = {**lab.kept, **edited, **endless}
        acting = when_at_work(tmp_path, lambda _, kernel: os.killpg(kernel, signal.SIGINT))
        shown, reply = lab.run_all()
        acting.join()
        assert reply["status"] == "ok", reply
        (stopped,) = reruns(tmp_path)
        assert stopped.cases["status"].tolist() == ["interrupted"]
        assert len(stopped.steps) > 0
        assert processes(str(stopped.folder / "cases" / "training" / "case.json")) == []
        assert len(shown["application/vnd.plotly.v1+json"]) == 6
        lab.cells = {**lab.kept, **edited}
        assert lab.run_all()[1]["status"] == "ok"
        assert [run.cases["status"][0] for run in reruns(tmp_path)] == ["interrupted", "ok"]
        lab.manager.restart_kernel()
        lab.client.wait_for_ready(timeout=60)
        shown, reply = lab.run_all()
        assert reply["status"] == "ok", reply
        assert [run.info["custom"][0] for run in reruns(tmp_path)][1:] == [
            "rerun of smoke-1: case training, steps=20"
        ] * 2
        assert any("smoke-1" in html for html in shown["text/html"])
    finally:
        lab.close()


def reruns(out_dir):
    return [open_run(path) for path in sorted((out_dir / "runs").glob("*-rerun*"))]


# The report of a notebook that gives no verdict


def test_a_notebook_that_gives_no_verdict_has_no_banner():
    html = export(notebook(code_cell(), nsa={"verdict": False}), name="explore")
    assert 'class="nsa-banner' not in html
    assert "INCOMPLETE" not in html
    assert "<title>explore</title>" in html


@pytest.mark.parametrize("said", [None, {}, {"verdict": True}, {"verdict": None}, {"verdict": 0}, [], "verdict"])
def test_any_other_notebook_keeps_its_banner(said):
    html = export(notebook(code_cell(), **({} if said is None else {"nsa": said})))
    assert 'class="nsa-banner' in html
    assert "<title>INCOMPLETE: " in html


def test_a_notebook_that_recorded_a_verdict_shows_it_whatever_it_says_of_itself():
    made = sample_notebook("NO-GO")
    made.metadata["nsa"] = {"verdict": False}
    assert "<title>NO-GO: " in export(made)
    assert "<title>INCOMPLETE: " in export(
        notebook(code_cell(outputs=concluded()), code_cell(count=2), nsa={"verdict": False})
    )


def test_the_smoke_does_not_say_that_it_gives_no_verdict():
    for path in FOLDER.glob("*.ipynb"):
        said = json.loads(path.read_text())["metadata"].get("nsa")
        assert said == (None if QUESTIONS[path.stem].judging else {"verdict": False})
