"""A case on two ranks, real ones over gloo: what it trains, what it leaves, and how every end of a rank is named."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from nsa_lib.contract.collectives import OPERATIONS, SIZES_MIB, transfers
from nsa_lib.contract.heartbeat import HeartbeatReader
from nsa_lib.runs import waits
from nsa_lib.runs.environment import PROJECT
from nsa_lib.runs.processes import children
from nsa_lib.runs.watch import Limits
from nsa_lib.subject.config import ConfigError
from nsa_lib.worker.loop import run_to_result
from nsa_lib.worker.ranks import flights
from tests.runs.test_runner import gone, processes
from tests.worker.ranks.cases import PAIR, run_pair


def beats(folder):
    return [beat for beat in HeartbeatReader(folder / "heartbeat.jsonl").read() if beat["step"]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same training in one process: its result and its beats."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "case.json").write_text(replace(PAIR, ranks=1, strategy="none").to_json())
    torch.set_num_threads(1)
    run_to_result(folder / "case.json")
    return json.loads((folder / "result.json").read_text()), beats(folder)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_as_one_process_does(tmp_path, alone, strategy):
    result = run_pair(tmp_path, strategy=strategy)
    assert (result["status"], result["reason"], result["steps_done"]) == ("ok", "", PAIR.steps)
    whole, own = alone
    ranks = [beats(tmp_path / f"rank{rank}") for rank in range(2)]
    for one, *both in zip(own, *ranks, strict=True):
        assert sum(beat["loss"] for beat in both) / 2 == pytest.approx(one["loss"], rel=1e-5)
        assert [beat["grad_norm"] for beat in both] == pytest.approx([one["grad_norm"]] * 2, rel=1e-4)
        assert [data for beat in both for data in beat["data"]] == one["data"]
        assert all(beat["own_ms"] > 0 and beat["peak_alloc_mib"] < one["peak_alloc_mib"] for beat in both)
        parts = [beat["part_norms"] for beat in both]
        expected = [one["part_norms"]] * 2 if strategy == "ddp" else [[norm] for norm in one["part_norms"]]
        assert parts == [pytest.approx(norms, rel=1e-4) for norms in expected]
    starts = [rank["start"]["hash"] for rank in result["ranks"]]
    assert starts == [whole["start"]["hash"]] * 2
    first, second = (rank["digests"] for rank in result["ranks"])
    assert first == second, "all ranks hold the same parameters"
    assert [found["step"] for found in first] == [10, PAIR.steps]
    sharded = strategy == "fsdp2"
    assert result["state_mib"] == pytest.approx(whole["state_mib"] / (2 if sharded else 1), rel=0.01)
    assert result["operators"]["early"] == result["operators"]["late"]
    assert processes(str(tmp_path / "case.json")) == []


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("sigkill", "crashed", ("rank 1: killed by SIGKILL",)),
        ("oom", "oom", ("rank 1: ", "can't allocate memory")),
        ("hang_forward", "stalled", ("rank 0 is in gloo:all_reduce", "rank 1 has not entered it")),
        ("hang_collective", "stalled", ("rank 1 has not entered it", "gloo:all_reduce of [[1]], collective 1")),
        ("mismatched_shapes", "crashed", ("rank 1: killed by SIGABRT", "collective mismatch")),
    ],
)
def test_a_rank_that_ends_the_others_is_named(tmp_path, fault, status, words):
    result = run_pair(tmp_path, fault=fault)
    assert result["status"] == status
    assert all(word in result["reason"] for word in words), result["reason"]
    assert result["steps_done"] == 4
    if status == "stalled":
        assert all(f"--- rank {rank}\n" in result["stderr_tail"] for rank in range(2))
        assert result["stderr_tail"].count("in train_step") >= 2, "the stacks of both ranks are kept"
    assert processes(str(tmp_path / "case.json")) == []


@pytest.mark.parametrize(
    ("fault", "strategy"),
    [("hang_forward@first", "fsdp2"), ("hang_forward@first", "ddp"), ("hang_collective@first", "ddp")],
)
def test_a_hang_in_the_first_step_is_ended_long_before_its_limit_and_told_meanwhile(
    tmp_path, capsys, monkeypatch, fault, strategy
):
    monkeypatch.setattr(waits, "ASK_AFTER_S", 1.0)
    monkeypatch.setattr(waits, "ASK_EVERY_S", 1.0)
    monkeypatch.setattr(waits, "TELL_AFTER_S", 1.0)
    result = run_pair(tmp_path, fault=fault, strategy=strategy, limits=Limits(wait_floor_s=10), profile_operators=False)
    assert (result["status"], result["steps_done"]) == ("stalled", 0)
    assert "s for rank 1 (limit 10 s)" in result["reason"]
    assert "rank 1 has not entered it" in result["reason"]
    assert "rank 1 is in" in capsys.readouterr().out.replace("\n  ", " "), (
        "told while it ran, with the place of the code"
    )


def test_a_rank_that_compiles_is_seen_to():
    code = compile("import sys\ndef wait(found):\n    found.append(compiles())\n", "compiler.py", "exec")
    module = {"__name__": "triton.compiler.compiler", "compiles": flights.compiles}
    exec(code, module)
    found = []
    module["wait"](found)
    assert found == [True]
    assert not flights.compiles()


def test_the_collectives_are_measured_and_their_sums_checked(tmp_path):
    count = len(transfers("cpu"))
    result = run_pair(tmp_path, work="collectives", steps=count, strategy="none", digest_parts=0)
    assert (result["status"], result["steps_done"]) == ("ok", count)
    found = beats(tmp_path / "rank1")
    assert {(b["collective"], b["size_mib"]) for b in found} == {(n, s) for n in OPERATIONS for s in SIZES_MIB["cpu"]}
    assert all(beat["bus_gb_per_s"] > 0 for beat in found)


def test_torchrun_and_its_ranks_die_with_the_process_that_started_them(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.worker.ranks.cases import run_pair\n"
        "run_pair(Path(sys.argv[1]), steps=100_000, profile_operators=False)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT) as parent:
        beat = tmp_path / "rank1" / "heartbeat.jsonl"
        deadline = time.monotonic() + 600
        while not (beat.exists() and beats(beat.parent)) and time.monotonic() < deadline:
            time.sleep(0.1)
        (torchrun,) = children(parent.pid)
        ranks = children(torchrun)
        assert len(ranks) == 2
        os.kill(parent.pid, signal.SIGKILL)
    assert all(gone(pid) for pid in (torchrun, *ranks))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"strategy": "none"}, "ranks=2, strategy=none: accepts ddp or fsdp2"),
        ({"micro_batches": 2}, "micro_batches=2: accepts 1 but where one process trains step by step"),
        ({"micro_batches": 3}, "micro_batches=3: batch must be a multiple of it"),
        ({"strategy": "zero"}, "strategy='zero': accepts none, ddp, fsdp2"),
        ({"batch": 3}, "batch=3, ranks=2: batch must be a multiple of ranks"),
        ({"ranks": 0}, "ranks=0: accepts a size above 0"),
        ({"ranks": 1, "fault": "slow_rank"}, "fault=slow_rank: strikes one of several ranks"),
        ({"look": True}, "look=True, strategy=ddp: accepts False"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(changes, line):
    with pytest.raises(ConfigError, match=line.replace("(", r"\(")):
        replace(PAIR, **changes)
