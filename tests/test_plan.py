"""Every refusal comes before any work, in one line; what is planned is what was asked for."""

import shutil
from types import SimpleNamespace

import pytest

from nsa_lib import environment
from nsa_lib.config import ConfigError
from nsa_lib.plan import plan

CPU = {"torch": "2.13.0", "cuda_usable": False, "cuda_problem": "torch 2.13.0 is a build without CUDA"}
GPU = {"torch": "2.13.0", "cuda_usable": True, "cuda_problem": None}


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Plan a smoke on a machine with the given facts of torch."""

    def asked(facts=CPU, *, nvidia=False, **given):
        monkeypatch.setattr(environment, "torch_facts", lambda: facts)
        monkeypatch.setattr(environment, "has_nvidia_device", lambda: nvidia)
        return plan("smoke", {"out_dir": str(tmp_path), **given})

    return asked


def test_auto_is_the_checklist_where_cuda_works_and_the_laptop_without_a_device(ask):
    assert ask(GPU, nvidia=True).profile == "checklist"
    assert ask(CPU).profile == "laptop"


def test_a_device_that_torch_cannot_use_is_an_error_and_no_laptop(ask):
    with pytest.raises(ConfigError, match=r"NVIDIA device that torch cannot use .*without CUDA"):
        ask(CPU, nvidia=True)
    assert ask(CPU, nvidia=True, profile="laptop").profile == "laptop"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"profile": "checklist"}, "profile=checklist: needs a CUDA device"),
        ({"device": "cuda"}, "device=cuda: needs a CUDA device"),
        ({"heads": 4, "groups": 3}, "heads=4, groups=3"),
        ({"backend": "fast"}, "backend='fast': accepts masked, gather or packed"),
        ({"compile": True}, "compile=True, device=cpu"),
        ({"data": "/no/such/file"}, "data=/no/such/file: no such file"),
        ({"out_dir": "/proc/here"}, "out_dir=/proc/here: cannot be made"),
        ({"seq_len": "many"}, "seq_len='many': accepts a whole number above 0"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(ask, given, word):
    with pytest.raises(ConfigError) as refusal:
        ask(**given)
    assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_emulated_device_is_no_larger_than_the_real_one_and_makes_a_custom_run(ask):
    gpu = {**GPU, "gpu_memory_mib": 143_771}
    planned = ask(gpu, nvidia=True, device_budget_gib=80)
    assert {case.budget_mib for case in planned.cases} == {80 * 1024}
    assert planned.custom == ("device_budget_gib=80: an emulated device",)
    assert any(notice.startswith("emulated: the allocator is capped at 80 GiB") for notice in planned.notices)
    with pytest.raises(ConfigError, match=r"device_budget_gib=141: the device has 140\.4 GiB"):
        ask(gpu, nvidia=True, device_budget_gib=141)
    assert ask(CPU, device_budget_gib=141).cases[0].budget_mib == 141 * 1024, "a CPU's device is simulated"


def test_the_checklist_on_a_cpu_is_refused(ask):
    with pytest.raises(ConfigError, match="judged on a GPU"):
        ask(GPU, profile="checklist", device="cpu")


def test_a_text_shorter_than_a_sequence_is_refused(ask, tmp_path):
    (tmp_path / "short.txt").write_text("x" * 512)
    with pytest.raises(ConfigError, match="512 bytes, a sequence needs 513"):
        ask(data=str(tmp_path / "short.txt"))


def test_a_full_disk_is_refused(ask, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(ConfigError, match="1 MiB free on its disk, a run needs 64"):
        ask()


def test_many_processes_are_refused(ask, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match="WORLD_SIZE=8"):
        ask()


def test_a_smoke_is_the_training_the_anomaly_case_the_profile_and_the_yardstick(ask):
    assert [case.case_id for case in ask(CPU).cases] == ["training", "anomaly"]
    assert [case.case_id for case in ask(GPU).cases] == ["training", "anomaly", "profiler", "dense"]
    assert [case.case_id for case in ask(GPU, anomaly=False, profiler=False).cases] == ["training", "dense"]
    training, anomaly, profiler, dense = ask(GPU, steps=200, backend="packed").cases
    assert (training.steps, training.model.backend, training.detect_anomaly) == (200, "packed", False)
    assert (anomaly.detect_anomaly, anomaly.steps) == (True, 10)
    assert (profiler.profile_operators, training.profile_operators) == (True, False)
    assert dense.model.attention == "dense"
    assert [case.check_attention for case in ask(GPU).cases] == [True, False, False, False]


def test_on_a_cpu_operators_are_counted_in_the_training_case(ask):
    assert ask(CPU).cases[0].profile_operators
    assert not ask(CPU, profiler=False).cases[0].profile_operators


def test_a_run_too_short_to_be_judged_is_told_before_it_starts(ask):
    assert "at least 60 steps" in ask(steps=59).notices[0]
    assert not any("60 steps" in notice for notice in ask(steps=100).notices)


def test_the_reproduce_command_names_what_was_given(ask, tmp_path):
    command = ask(steps=80, tag="007").reproduce
    assert command == (
        "papermill notebooks/smoke.ipynb out.ipynb --engine nsa -p profile laptop -p steps 80 "
        f"-r out_dir {tmp_path} -r tag 007"
    )
