"""What a user brings, through a notebook or all of its cases: refused beside its traceback, or judged to the end."""

import shutil
import subprocess
import sys

import nbformat
import pytest

from nsa_lib.runs.environment import PROJECT
from nsa_lib.runs.runner import execute
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.explore.measures import overview
from nsa_lib.workbook.explore.rerun import rerun
from nsa_lib.workbook.questions import plan
from nsa_lib.workbook.run import record
from tests.worker.preflight.own.test_own import HERE

SIZES = {
    "profile": "laptop", "dim": 32, "heads": 2, "groups": 2, "d_k": 16, "d_v": 16, "l_sel": 16, "n_sel": 3, "w": 32,
    "layers": 1, "vocab": 64, "seq_len": 128,
}  # fmt: skip


def test_what_raises_on_import_ends_the_notebook_with_its_own_traceback_and_the_report_has_it(tmp_path):
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    for folder in (beside, elsewhere):
        folder.mkdir()
    shutil.copy(PROJECT / "notebooks" / "preflight.ipynb", beside)
    (beside / "mine.py").write_text("import math\n\nSCALE = math.log(0)\n")
    out = elsewhere / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "../beside/preflight.ipynb", str(out), "--engine", "nsa"]
    command += ["-p", "profile", "laptop", "-p", "out_dir", str(tmp_path), "-p", "attention", "mine.py:Mine"]
    ended = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    cells = nbformat.read(out, as_version=4).cells
    (error,) = [o for cell in cells for o in cell.get("outputs", ()) if o.output_type == "error"]
    line, *told = error.traceback
    assert line.startswith(f"ConfigError: attention={beside}/mine.py:Mine: {beside}/mine.py cannot be imported: ")
    assert "ValueError: " in line
    assert f'  File "{beside}/mine.py", line 3, in <module>' in told
    assert not any("nsa_lib" in told_line for told_line in told)
    html = out.with_suffix(".html").read_text()
    assert "SCALE = math.log(0)" in html
    assert not list(tmp_path.glob("runs/*"))


def judged(notebook, out_dir, role, name, **given):
    asked = {**SIZES, role: f"{HERE}/mistakes.py:{name}", "out_dir": str(out_dir), **given}
    run = record(execute(plan(notebook, asked)))
    return run, {gate.name: gate for gate in run.gates}


def test_a_mistake_of_a_kernel_is_found_by_a_preflight_and_all_its_cases_end(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def kernel(q, k, v, block_indices, *, l_sel, scale):\n"
        "    shared = q.shape[1] // k.shape[1]\n"
        "    k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))\n"
        "    return (q @ k.mT * scale).softmax(-1) @ v\n"
    )
    run, gates = judged("preflight", tmp_path, "backend", "", backend=f"{tmp_path}/mine.py:kernel")
    assert run.verdict == "NO-GO"
    assert set(run.cases["status"]) == {"ok"}
    found = {name for name, gate in gates.items() if gate.required and gate.outcome == "FAIL"}
    assert {"selected_own", "attention_own", "future_own", "future"} <= found
    assert run.summary["on_trial"] == "mine.py:kernel, judged by the float64 reference"


def test_a_mistake_of_a_model_is_found_by_a_smoke(tmp_path):
    name = "ModelWithoutMask"
    run, gates = judged("smoke", tmp_path, "model", name, steps=15, anomaly=False)
    assert run.verdict == "NO-GO"
    assert gates["future"].outcome == "FAIL"
    assert [gates[name].outcome for name in ("evidence", "unrecorded")] == ["PASS", "PASS"]
    assert run.summary["on_trial"] == f"mistakes.py:{name}, judged without a reference"


def test_a_contrast_tries_what_a_user_brings_though_ours_come_first(tmp_path):
    (tmp_path / "mine.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"mine\.py cannot be imported: ZeroDivisionError"):
        plan("backend_contrast", {**SIZES, "model": f"{tmp_path}/mine.py:build", "out_dir": str(tmp_path)})


def test_a_contrast_asks_whether_what_it_measures_is_right(tmp_path):
    few = {"seq_len": 64, "seq_lens": [64], "steps": 3, "rounds": 1}
    run, gates = judged("backend_contrast", tmp_path, "attention", "ForgottenMask", **few)
    assert run.verdict == "NO-GO"
    found = {name for name, gate in gates.items() if gate.required and gate.outcome == "FAIL"}
    assert found == {"future_own", "others_own"}
    assert gates["self_error_own"].outcome == "PASS"
    assert "mistakes.py:ForgottenMask: " in run.summary["headline"]


def test_what_is_explored_is_named_and_a_case_of_it_runs_again_as_it_is_now(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text((HERE / "honest.py").read_text())
    run, _ = judged("smoke", tmp_path, "attention", "", attention=f"{mine}:Linear", steps=5, anomaly=False)
    assert overview(run)["on trial"] == "mine.py:Linear, judged without a reference"
    again = rerun(run, "training", steps=4)
    assert list(again.cases["status"]) == ["ok"]
    assert again.info["on_trial"] == run.info["on_trial"]
    assert "it ran another" not in next(gate.detail for gate in again.gates if gate.name == "evidence")
    mine.write_text("1 / 0")
    before = sorted(tmp_path.glob("runs/*"))
    with pytest.raises(ConfigError, match=r"mine\.py cannot be imported: ZeroDivisionError"):
        rerun(run, "training", steps=4)
    assert sorted(tmp_path.glob("runs/*")) == before


def test_several_ranks_train_what_a_user_brings_and_are_held_against_one(tmp_path):
    given = {"steps": 14, "seq_len": 64, "strategies": ["ddp", "fsdp2"], "gpus": 2}
    run, gates = judged("several_gpus", tmp_path, "attention", "", attention=f"{HERE}/honest.py:Linear", **given)
    assert set(run.cases["status"]) == {"ok"}
    for strategy in given["strategies"]:
        assert gates[f"executed_{strategy}"].measured.startswith("honest.py:Linear, forward ")
        kinds = ("steps", "executed", "start", "data", "loss", "gradients", "parameters", "parts")
        assert {gates[f"{kind}_{strategy}"].outcome for kind in kinds} == {"PASS"}
    for fact in (run.case("ddp")["on_trial"], run.case("ddp")["ranks"][1]["on_trial"]):
        assert fact["file_sha256"] == run.info["on_trial"]["file_sha256"]


def test_a_model_of_a_users_is_refused_by_several_gpus_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="model") as caught:
        plan("several_gpus", {"In": ["", "# Parameters\nmodel = 'mine.py:Model'"], "out_dir": str(tmp_path)})
    assert "\n" not in str(caught.value)
