"""A case from its file to its heartbeats and result, in this process."""

import json
from dataclasses import replace

import pytest
import torch

from nsa_lib.contract.case import WORKS
from nsa_lib.contract.faults import FAULT_STEP
from nsa_lib.subject.attention import module as attention_module
from nsa_lib.subject.attention.backends import gather
from nsa_lib.subject.config import PLAIN_BACKENDS
from nsa_lib.worker import loop
from nsa_lib.worker.loop import run_to_result
from tests.subject.test_config import CASE

TRAINING = replace(CASE, steps=20, profile_operators=True)


@pytest.fixture
def run(tmp_path):
    """Run a case and return its result and its beats."""

    def run(case, name="case"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "case.json").write_text(case.to_json())
        run_to_result(folder / "case.json")
        beats = [json.loads(line) for line in (folder / "heartbeat.jsonl").read_text().splitlines()]
        return json.loads((folder / "result.json").read_text()), beats

    return run


def test_a_case_beats_once_a_step_and_ends_with_a_result(run):
    result, beats = run(TRAINING)
    assert (result["status"], result["routes"]) == ("ok", ["masked"])
    assert [beat["phase"] for beat in beats] == ["build", *["warmup"] * 11, *["step"] * 10, "judge"]
    steps = [beat for beat in beats if beat["step"]]
    assert [beat["step"] for beat in steps] == list(range(1, 21))
    for beat in steps:
        peaks = [beat[f"peak_alloc_{phase}_mib"] for phase in ("forward", "backward", "optimizer")]
        assert beat["peak_alloc_mib"] == max(peaks)
        assert result["state_mib"] <= beat["peak_alloc_mib"] <= beat["peak_reserved_mib"]
        assert beat["tokens_per_s"] == pytest.approx(64 / (beat["step_ms"] / 1000))
    assert result["operators"]["early"] == result["operators"]["late"]


def test_figures_of_memory_loss_and_operators_are_the_same_in_two_runs(run):
    def without_clocks(beats):
        clocks = ("ts", "step_ms", "tokens_per_s")
        return [{name: value for name, value in beat.items() if name not in clocks} for beat in beats]

    _, first = run(replace(CASE, steps=4), "first")
    _, second = run(replace(CASE, steps=4), "second")
    assert without_clocks(first) == without_clocks(second)


@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
def test_the_route_is_the_one_that_ran_and_not_the_one_asked_for(run, monkeypatch, backend):
    asked = replace(CASE, model=replace(CASE.model, backend=backend))
    assert run(asked, "right")[0]["routes"] == [backend]
    monkeypatch.setitem(attention_module.BACKENDS, "packed", gather)
    wrong = replace(CASE, model=replace(CASE.model, backend="packed"))
    assert run(wrong, "wrong")[0]["routes"] == ["gather"]


def test_a_loss_that_is_not_finite_ends_the_case_and_names_the_offender(run):
    result, beats = run(replace(CASE, lr=1e30, steps=9))
    assert result["status"] == "nan"
    assert "first gradient that is not finite: " in result["reason"]
    assert len(beats) < 2 + 9


def test_a_nan_that_only_the_anomaly_case_sees_is_named(run, monkeypatch):
    step = loop.training.train_step

    def planted(model, *arguments, **more):
        model.norm.weight.data[0] = torch.nan
        return step(model, *arguments, **more)

    monkeypatch.setattr(loop.training, "train_step", planted)
    with pytest.warns(UserWarning, match="Error detected in"):
        result, _ = run(replace(CASE, detect_anomaly=True))
    assert result["status"] == "nan"


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_a_lack_of_memory_is_oom(run, monkeypatch, error):
    def planted(*arguments, **more):
        raise error

    monkeypatch.setattr(loop.training, "train_step", planted)
    assert run(CASE)[0]["status"] == "oom"


def test_any_other_error_is_left_to_the_runner(run, monkeypatch, tmp_path):
    monkeypatch.setattr(loop.training, "train_step", lambda *arguments, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(CASE)
    assert not (tmp_path / "case" / "result.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_gone_is_unavailable(run):
    assert run(replace(CASE, device="cuda"))[0]["status"] == "unavailable"


def test_the_dense_yardstick_has_no_route(run):
    assert run(replace(CASE, model=replace(CASE.model, attention="dense")))[0]["routes"] == []


def test_a_backward_case_times_its_phases_and_keeps_no_optimizer(run):
    result, beats = run(replace(CASE, work="backward", steps=4, warmup_steps=3))
    steps = [beat for beat in beats if beat["step"]]
    assert [beat["phase"] for beat in steps] == ["warmup"] * 3 + ["step"]
    for beat in steps:
        assert 0 < beat["forward_ms"] + beat["backward_ms"] <= beat["step_ms"]
        assert "peak_alloc_optimizer_mib" not in beat
    trained, _ = run(replace(CASE, steps=4), "trained")
    # Parameters and gradients, without AdamW's two moments of each parameter.
    assert result["state_mib"] == pytest.approx(trained["state_mib"] / 2, rel=0.01)


def test_a_case_on_an_emulated_device_stays_within_it_or_runs_out_of_memory(run):
    needed = max(beat["peak_reserved_mib"] for beat in run(CASE, "free")[1] if beat["step"])
    fits, beats = run(replace(CASE, device_budget_gib=needed / 1024), "fits")
    assert (fits["status"], fits["device_total_mib"]) == ("ok", needed)
    assert all(beat["peak_reserved_mib"] <= needed for beat in beats if beat["step"])
    small, _ = run(replace(CASE, device_budget_gib=needed / 4096), "small")
    assert small["status"] == "oom"
    assert "simulated device is full" in small["reason"]


@pytest.mark.parametrize(("fault", "status"), [("nan_loss", "nan"), ("oom", "oom")])
def test_what_was_known_before_a_failure_is_in_the_result(run, fault, status):
    result, _ = run(replace(CASE, fault=fault, steps=FAULT_STEP + 1, look=True))
    assert (result["status"], result["routes"], result["effective"]["dtype"]) == (status, ["masked"], "float32")
    assert result["state_mib"] > 0
    assert "attention_map" not in result


def test_every_work_of_the_contract_is_there():
    assert set(loop.WORKS) == set(WORKS)
