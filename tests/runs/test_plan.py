"""Every refusal comes before any work, in one line; what is planned is what was asked for."""

import shutil
from types import SimpleNamespace

import pytest

from nsa_lib.runs import environment
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import plan

CPU = {"torch": "2.13.0", "cuda_usable": False, "cuda_problem": "torch 2.13.0 is a build without CUDA"}

GPU = {"torch": "2.13.0", "cuda_usable": True, "cuda_problem": None}

AMPERE = {**GPU, "triton": "3.6.0", "compute_capability": "8.0"}
"""A GPU on which `fused` runs."""


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Plan a run, a smoke if nothing else is said, on a machine with the given facts of torch."""

    def asked(facts=CPU, *, nvidia=False, notebook="smoke", **given):
        monkeypatch.setattr(environment, "torch_facts", lambda: facts)
        monkeypatch.setattr(environment, "has_nvidia_device", lambda: nvidia)
        return plan(notebook, {"out_dir": str(tmp_path), **given})

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
        (
            {"backend": "fast"},
            "backend='fast': no built-in of this name and no entry point of the group nsa_lib.backends",
        ),
        ({"backend": "fused"}, "backend=fused, device=cpu: accepts cuda"),
        ({"compile": True}, "compile=True, device=cpu"),
        ({"data": "/no/such/file"}, "data=/no/such/file: no such file"),
        ({"out_dir": "/proc/here"}, "out_dir=/proc/here: cannot be made"),
        ({"seq_len": "many"}, "seq_len='many': accepts a whole number above 0"),
        ({"seq_len": 1}, "seq_len=1, l=16, d=16: fewer than two compressed blocks"),
        ({"seq_len": 31}, "accepts a seq_len of 32 or more"),
        ({"notebook": "preflight", "seq_len": 16}, "accepts a seq_len of 32 or more"),
        ({"notebook": "backward_scaling", "seq_lens": [16, 64]}, "seq_len=16, l=16, d=16"),
        ({"l": 1, "d": 1, "seq_len": 1}, "accepts a seq_len of 2 or more"),
        ({"w": 1}, "w=1: a window of one token, whose keys would have no gradient; accepts 2 or more"),
        ({"dim": 3}, "dim=3: accepts a whole number above 15"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(ask, given, word):
    with pytest.raises(ConfigError) as refusal:
        ask(**given)
    assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "given", [{"seq_len": 32}, {"l": 1, "d": 1, "seq_len": 2}, {"w": 2}, {"dim": 16}, {"n_sel": 3}]
)
def test_the_smallest_sizes_that_can_be_judged_are_planned(ask, given):
    assert ask(**given).cases


def test_an_emulated_device_is_no_larger_than_the_real_one_and_makes_a_custom_run(ask):
    gpu = {**GPU, "gpu_memory_mib": 143_771}
    planned = ask(gpu, nvidia=True, device_budget_gib=80)
    assert {case.budget_mib for case in planned.cases} == {80 * 1024}
    assert planned.custom == ("device_budget_gib=80: an emulated device",)
    assert any(notice.startswith("emulated: the allocator is capped at 80 GiB") for notice in planned.notices)
    with pytest.raises(ConfigError, match=r"device_budget_gib=141: the device has 140\.4 GiB"):
        ask(gpu, nvidia=True, device_budget_gib=141)
    assert ask(CPU, device_budget_gib=141).cases[0].budget_mib == 141 * 1024, "a CPU's device is simulated"


@pytest.mark.parametrize(
    ("lacks", "given", "line"),
    [
        ({"triton": None}, {}, "backend=fused: needs Triton, which is not installed"),
        (
            {"compute_capability": "7.5"}, {},
            "backend=fused: needs compute capability 8.0 or more, this is 7.5",
        ),
        ({}, {"n_sel": 40}, "backend=fused, n_sel=40: accepts up to 32"),
        ({}, {"dtype": "float64"}, "backend=fused, dtype=float64: accepts bfloat16, float16, float32"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("notebook", ["smoke", "preflight", "backward_scaling"])
def test_fused_is_refused_where_it_cannot_run(ask, notebook, lacks, given, line):
    with pytest.raises(ConfigError) as refusal:
        ask({**AMPERE, **lacks}, notebook=notebook, backend="fused", **given)
    assert str(refusal.value) == line


def test_fused_runs_where_it_can(ask):
    cases = ask(AMPERE, backend="fused").cases
    assert {case.model.backend for case in cases} == {"fused"}


# auto


def test_auto_is_fused_where_it_can_run_and_says_so_before_the_run(ask, tmp_path):
    found = ask(AMPERE, backend="auto")
    assert {case.model.backend for case in found.cases} == {"fused"}
    (row,) = [row for row in found.parameter_rows if row["name"] == "backend"]
    assert (row["value"], row["origin"], row["differs"]) == ("fused", "auto", False)
    assert "backend=auto: this run takes fused (fused can run here)." in found.notices
    assert found.custom == ()
    assert found.reproduce == (
        "papermill notebooks/smoke.ipynb out.ipynb --engine nsa -r profile checklist "
        f"-r backend fused -r out_dir {tmp_path}"
    )


@pytest.mark.parametrize(
    ("facts", "given", "why"),
    [
        (CPU, {}, "backend=fused, device=cpu: accepts cuda"),
        ({**AMPERE, "triton": None}, {}, "backend=fused: needs Triton, which is not installed"),
        (AMPERE, {"d_k": 256}, "backend=fused, d_k=256: accepts up to 128"),
    ],
)
def test_auto_is_masked_elsewhere_and_says_why(ask, facts, given, why):
    found = ask(facts, backend="auto", **given)
    assert {case.model.backend for case in found.cases} == {"masked"}
    assert (found["backend"], found.values["backend"].origin) == ("masked", "auto")
    assert f"backend=auto: this run takes masked ({why})." in found.notices
    assert "-r backend masked" in found.reproduce


def test_auto_on_a_laptop_has_the_memory_limit_of_the_backend_that_it_takes(ask):
    assert ask(CPU, backend="auto")["reserved_limit_mib"] == ask(CPU)["reserved_limit_mib"] > 0


def test_without_auto_nothing_is_said_of_it(ask):
    for given in ({}, {"backend": "packed"}):
        found = ask(AMPERE, **given)
        assert not any("auto" in notice for notice in found.notices)
        assert found.values["backend"].origin != "auto"


@pytest.mark.parametrize(("facts", "fused"), [(AMPERE, True), (GPU, False), (CPU, False)])
def test_preflight_and_contrast_go_through_every_backend_that_can_run(ask, facts, fused):
    (*checks, _), contest = ask(facts, notebook="preflight").cases, ask(facts, notebook="backend_contrast").cases
    assert all(("fused" in case.backends) == fused for case in (*checks, contest[-1]))
    assert ("model_fused" in [case.case_id for case in contest]) == fused


def test_the_checklist_on_a_cpu_is_refused(ask):
    with pytest.raises(ConfigError, match="judged on a GPU"):
        ask(GPU, profile="checklist", device="cpu")


def test_a_text_shorter_than_a_sequence_is_refused(ask, tmp_path):
    (tmp_path / "short.txt").write_text("x" * 512)
    with pytest.raises(ConfigError, match="512 bytes, a sequence needs 513"):
        ask(data=str(tmp_path / "short.txt"))


def test_a_text_of_one_byte_is_refused(ask, tmp_path):
    (tmp_path / "same.txt").write_text("x" * (2**20 + 513))
    with pytest.raises(ConfigError, match="the same byte throughout"):
        ask(data=str(tmp_path / "same.txt"), vocab=256)
    (tmp_path / "two.txt").write_text("x" * 2**20 + "y")
    assert ask(data=str(tmp_path / "two.txt"), vocab=256)


def test_a_full_disk_is_refused(ask, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(ConfigError, match="1 MiB free on its disk, a run needs 64"):
        ask()


def test_many_processes_are_refused(ask, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match="WORLD_SIZE=8"):
        ask()


def test_a_smoke_is_the_training_the_anomaly_case_the_profile_and_the_yardstick(ask):
    assert [case.case_id for case in ask(CPU).cases] == ["training", "hot", "anomaly"]
    assert [case.case_id for case in ask(GPU).cases] == ["training", "anomaly", "profiler", "dense"]
    assert [case.case_id for case in ask(GPU, anomaly=False, profiler=False).cases] == ["training", "dense"]
    training, anomaly, profiler, dense = ask(GPU, steps=200, backend="packed").cases
    assert (training.steps, training.model.backend, training.detect_anomaly) == (200, "packed", False)
    assert (anomaly.detect_anomaly, anomaly.steps) == (True, 10)
    assert (profiler.profile_operators, training.profile_operators) == (True, False)
    assert dense.model.attention == "dense"
    assert [case.attest for case in ask(GPU).cases] == [True, False, False, False]


def test_on_a_cpu_operators_are_counted_in_the_training_case(ask):
    assert ask(CPU).cases[0].profile_operators
    assert not ask(CPU, profiler=False).cases[0].profile_operators


def test_a_run_too_short_to_be_judged_is_told_before_it_starts(ask):
    assert "at least 60 steps" in ask(steps=59).notices[0]
    assert not any("60 steps" in notice for notice in ask(steps=100).notices)


def test_the_reproduce_command_names_what_was_given(ask, tmp_path):
    command = ask(steps=80, tag="007").reproduce
    assert command == (
        "papermill notebooks/smoke.ipynb out.ipynb --engine nsa -r profile laptop -p steps 80 "
        f"-r out_dir {tmp_path} -r tag 007"
    )
