"""Which cases several GPUs go through, and what is refused."""

import json

import pytest

from nsa_lib.runs import environment
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import plan
from nsa_lib.workbook.several_gpus.figures import link_table, memory_table, ranks_table
from nsa_lib.workbook.several_gpus.measures import link_rows, memory_rows, rank_rows
from tests.made import with_case
from tests.runs.test_plan import CPU
from tests.workbook.several_gpus.made import healthy


@pytest.fixture
def planned(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "torch_facts", lambda: CPU)
    monkeypatch.setattr(environment, "has_nvidia_device", lambda: False)
    return lambda **given: plan("several_gpus", {"out_dir": str(tmp_path), "profile": "laptop", **given})


def test_a_laptop_has_two_ranks_of_each_strategy_beside_one_process(planned):
    found = planned()
    cases = {case.case_id: (case.ranks, case.strategy, case.grad_checkpointing) for case in found.cases}
    assert cases == {
        "one": (1, "none", True), "one_in_turn": (1, "none", True),
        "ddp": (2, "ddp", True), "fsdp2": (2, "fsdp2", True),
        "one_other": (1, "none", False), "ddp_other": (2, "ddp", False), "fsdp2_other": (2, "fsdp2", False),
        "collectives": (2, "none", True),
    }  # fmt: skip
    assert {case.batch for case in found.cases} == {2}
    assert found.custom == ()


def test_a_fault_is_planted_where_ranks_train_and_not_in_what_they_are_compared_with(planned):
    faults = {case.case_id: case.fault for case in planned(fault="flipped_bit", strategies="ddp").cases}
    assert faults == {
        "one": "none",
        "one_in_turn": "none",
        "ddp": "flipped_bit",
        "one_other": "none",
        "ddp_other": "none",
        "collectives": "none",
    }


@pytest.mark.parametrize("given", ["ddp", ["ddp"], "['ddp']", '["ddp"]', ("ddp",)])
def test_strategies_are_read_as_papermill_hands_them_over(planned, given):
    assert planned(strategies=given)["strategies"] == ("ddp",)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"strategies": "zero"}, "strategies='zero': accepts one or more of ddp, fsdp2"),
        ({"strategies": ["ddp", "ddp"]}, "accepts one or more of ddp, fsdp2"),
        ({"strategies": []}, "accepts one or more of ddp, fsdp2"),
        ({"gpus": 3}, "batch=2, ranks=3: batch must be a multiple of ranks"),
        ({"gpus": 0}, "gpus=0: accepts a whole number above 0"),
        ({"gpus": 1, "fault": "slow_rank"}, "fault=slow_rank: strikes one of several ranks"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(planned, given, line):
    with pytest.raises(ConfigError, match=line.replace("(", r"\(")):
        planned(**given)


def test_a_run_takes_all_gpus_that_are_visible_and_no_more(monkeypatch, tmp_path):
    gpu = {**CPU, "cuda_usable": True, "cuda_problem": None, "gpu_count": 4, "gpu": "NVIDIA H200", "gpu_uuid": "u",
           "gpu_memory_mib": 143_771, "compute_capability": "9.0", "triton": "3.6"}  # fmt: skip
    monkeypatch.setattr(environment, "torch_facts", lambda: gpu)
    given = {"out_dir": str(tmp_path), "profile": "checklist"}
    found = plan("several_gpus", given)
    assert (found["gpus"], found.values["gpus"].origin) == (4, "auto")
    assert [case.case_id for case in found.cases if case.profile_operators] == ["ddp_profiler", "fsdp2_profiler"]
    with pytest.raises(ConfigError, match="gpus=8: this machine shows 4"):
        plan("several_gpus", {**given, "gpus": 8})


def test_the_tables_show_every_rank_every_kind_of_memory_and_every_size():
    run = healthy()
    ranks, memory, link = rank_rows(run), memory_rows(run), link_rows(run)
    assert len(ranks) == 2 + 2 + 2 + 1 + 2 + 2
    assert list(memory["headroom_mib"].round(1)) == [0.0, 0.0, 0.9, 0.9, 3.2, 3.2]
    parts = memory[["state_mib", "between_mib", "within_mib"]].sum(axis=1)
    assert list(parts) == pytest.approx(list(memory["peak_alloc_mib"]))
    assert len(link) == 9
    for table, rows in ((ranks_table(ranks), ranks), (memory_table(memory), memory), (link_table(link), link)):
        assert len(table.rows) == len(rows)
    assert json.dumps({name: figure.layout.meta["description"] for name, figure in run.figures.items()})


def test_of_a_predicted_peak_the_table_tells_what_no_meter_does():
    terms = {"activations": 2.0, "loss": 1.0, "communication": 0.5}
    found = {
        "peak_alloc_mib": 10.0, "state_mib": 4.8, "peak_alloc_forward_mib": 9.0, "peak_alloc_backward_mib": 10.0,
        "terms": {"forward": dict.fromkeys(terms, 9.9), "backward": terms},
    }  # fmt: skip
    rows = memory_rows(with_case(healthy(), "fsdp2", prediction=found)).set_index("case_id")
    assert list(rows.loc["fsdp2", ["predicted_state_mib", "activations_mib", "communication_mib"]]) == [4.8, 3.0, 0.5]
    assert rows.loc["ddp", ["predicted_state_mib", "activations_mib", "communication_mib"]].isna().all()
    assert rows.loc["fsdp2", "difference_percent"] == pytest.approx(5.0)
    table = memory_table(rows.reset_index())
    assert len(table.header) <= 7
    shown = {tuple(cell.text for cell in row[:2]): [cell.text for cell in row[2:]] for row in table.rows}
    assert shown["fsdp2", "yes"][0].startswith("4.8 → ")
    assert shown["fsdp2", "yes"][1:4] == ["3.0", "0.5", "10.0 → 10.5 (+5.0 %)"]
    assert shown["ddp", "no"][1:3] == ["–", "–"]
    assert "%" not in shown["ddp", "no"][3], "nothing was predicted"
    assert shown["one", "yes"][-1] == "–", "it saves nothing over itself"
