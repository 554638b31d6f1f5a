"""One case of a run again, with something changed."""

import os
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs import environment
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.decide import choose
from nsa_lib.workbook.explore.measures import differences
from nsa_lib.workbook.explore.rerun import changed_case, recorded_case, rerun
from nsa_lib.workbook.run import open_run
from tests.runs.test_interrupt import Lab, when_at_work
from tests.runs.test_runner import RESULT, plant, processes
from tests.subject.test_config import CASE
from tests.workbook.explore.made import asked, put_case, scaling

FACTS = {"torch": "2.13.0", "cuda_usable": False, "cuda_problem": "no NVIDIA device"}


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


def test_a_run_without_steps_has_its_first_case_run_again(run, monkeypatch):
    monkeypatch.setattr(environment, "torch_facts", lambda: FACTS)
    with pytest.raises(ConfigError, match=r"^steps='ten'"):
        rerun(run, None, steps="ten")
    assert recorded_case(run, run.info["case_ids"][0]).work == "train"
    nothing = replace(run, info={**run.info, "case_ids": []})
    with pytest.raises(ConfigError, match="this run has no cases"):
        rerun(nothing, None)


@pytest.mark.parametrize("changes", [{"backend": "fused"}, {"backends": ["fused"]}])
def test_fused_is_not_run_again_where_it_cannot_run(run, monkeypatch, changes):
    gpu = {"torch": "2.13.0", "cuda_usable": True, "triton": None, "compute_capability": "9.0"}
    monkeypatch.setattr(environment, "torch_facts", lambda: gpu)
    with pytest.raises(ConfigError, match=r"^backend=fused: needs Triton, which is not installed$"):
        rerun(run, "training", device="cuda", **changes)


def test_a_case_that_the_run_has_not_or_that_cannot_be_read_is_refused(run):
    with pytest.raises(ConfigError, match=r"case_id='train': accepts training, hot, anomaly"):
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
        assert len(shown["application/vnd.plotly.v1+json"]) == 8
        lab.cells = {**lab.kept, **edited}
        assert lab.run_all()[1]["status"] == "ok"
        assert [run.cases["status"][0] for run in reruns(tmp_path)] == ["interrupted", "ok"]
        lab.manager.restart_kernel()
        lab.client.wait_for_ready(timeout=600)
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
