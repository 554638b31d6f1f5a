"""Two nodes on one machine, each with its agent of torchrun: one verdict, of node 0, with the ranks of both."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from nsa_lib.contract.heartbeat import HeartbeatReader
from nsa_lib.runs import environment, nodes, ranks
from nsa_lib.runs.environment import PROJECT
from nsa_lib.runs.nodes import Node
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import plan
from tests.ports import free_ports
from tests.runs.test_plan import CPU
from tests.runs.test_ranks import LOST, TWO
from tests.runs.test_runner import processes


@pytest.fixture
def node(tmp_path):
    """Start a node; what is left of it ends with the test."""
    (port,) = free_ports(1)
    started = []

    def start(number, **given):
        words = [str(tmp_path), str(port), str(number), *(f"{name}={value}" for name, value in given.items())]
        with (tmp_path / f"said{number}").open("wb") as said:
            command = [sys.executable, "-m", "tests.runs.a_node", *words]
            started.append(subprocess.Popen(command, cwd=PROJECT, stdout=said, stderr=said))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def result_of(tmp_path):
    (folder,) = (tmp_path / "runs").iterdir()
    return folder, json.loads((folder / "cases" / "ddp" / "result.json").read_text())


def test_two_nodes_come_to_one_verdict_on_node_0_with_the_ranks_of_both(tmp_path, node):
    both = [node(number, steps=14) for number in (1, 0)]
    assert [process.wait(600) for process in both] == [0, 0], (tmp_path / "said0").read_text()
    folder, result = result_of(tmp_path)
    assert (result["status"], len(result["ranks"]), result["steps_done"]) == ("ok", 2, 14)
    verdicts = [(tmp_path / f"said{number}").read_text().splitlines()[-1] for number in (0, 1)]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].endswith(folder.name)
    own = list((tmp_path / "nodes").glob("several_gpus-*-node1/cases/ddp/*"))
    assert {path.name for path in own} == {"case.json", "place.json", "result.json", "stderr.log"}
    assert {path.name for path in (folder / "cases" / "ddp").glob("rank*")} == {"rank0", "rank1"}


def test_a_rank_killed_on_either_node_is_named(tmp_path, node):
    both = [node(number, steps=14, fault="sigkill") for number in (0, 1)]
    assert [process.wait(600) for process in both] == [0, 0]
    _, result = result_of(tmp_path)
    assert (result["status"], result["reason"][:31]) == ("crashed", "rank 1: killed by SIGKILL"), result["reason"]


def test_a_node_that_is_lost_in_the_middle_is_told_by_its_ranks(tmp_path, node):
    first, second = (node(number, steps=100_000, stall_timeout_s=60) for number in (0, 1))
    deadline = time.monotonic() + 600
    while not all(_beats(tmp_path, rank) for rank in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second.kill()  # its torchrun and ranks die with it, as on a machine without power
    assert first.wait(600) == 0
    _, result = result_of(tmp_path)
    assert result["status"] == "crashed"
    assert result["reason"].startswith("rank ")
    assert ": lost without a word, with its node or its connection; rank " in result["reason"]
    folders = [*(tmp_path / "runs").iterdir(), *(tmp_path / "nodes").iterdir()]
    assert len(folders) == 2
    assert [processes(str(folder / "cases" / "ddp" / "case.json")) for folder in folders] == [[], []]


def _beats(tmp_path, rank):
    files = list(tmp_path.glob(f"runs/*/cases/ddp/rank{rank}/heartbeat.jsonl"))
    return [beat for path in files for beat in HeartbeatReader(path).read() if beat["step"]]


def test_a_rank_without_a_word_is_the_cause_only_if_the_others_say_that_they_lost_one(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "NODES_PATIENCE_S", 0.0)
    spread = replace(TWO, nodes=2)
    (tmp_path / "rank0").mkdir()
    for said, reason in ((LOST, "rank 1: lost without"), ("ValueError: planted", "rank 0: ValueError: planted")):
        (tmp_path / "rank0" / "stderr.log").write_text(said)
        failures = {"schema": 1, "failures": {"0": {"exit_code": 1, "at": 5}}}
        (tmp_path / "failures.json").write_text(json.dumps(failures))
        result = ranks.merged(spread, tmp_path, None, 1, killed_for_memory=False)
        assert result["reason"].startswith(reason)


def test_each_launched_case_has_a_meeting_of_its_own_and_others_are_of_node_0():
    alone = replace(TWO, case_id="one", ranks=1, strategy="none")
    cases = [alone, TWO, replace(TWO, case_id="next")]
    guest = Node(1, 2, "node0:29400")
    assert guest.cases(cases) == tuple(cases[1:])
    assert guest.joins(cases[1:]) == {"training": ["node0:29400", "1"], "next": ["node0:29401", "1"]}
    assert Node(0, 2, "node0:29400").joins(cases)["next"] == ["node0:29401", "0"]
    assert set(map(tuple, Node(0, 1, "").joins(cases).values())) == {()}


def test_a_node_that_met_nobody_or_finds_no_verdict_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "VERDICT_PATIENCE_S", 0.0)
    guest, own = Node(1, 2, "node0:29400"), tmp_path / "own"
    (own / "cases" / "ddp").mkdir(parents=True)
    with pytest.raises(ConfigError, match="node 1 of 2: it met no other at rendezvous=node0:29400"):
        guest.judged_folder(own, lambda: False)
    (own / "cases" / "ddp" / "place.json").write_text(json.dumps({"folder": str(tmp_path / "run" / "cases" / "ddp")}))
    with pytest.raises(ConfigError, match=r"node 0 has left no verdict in .*/run"):
        guest.judged_folder(own, lambda: False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert guest.judged_folder(own, lambda: False) == tmp_path / "run"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"nodes": 2}, "nodes=2, rendezvous='': accepts HOST:PORT of node 0"),
        ({"nodes": 2, "rendezvous": "node0"}, "accepts HOST:PORT"),
        ({"nodes": 2, "rendezvous": "node0:29400"}, "node_rank=None: accepts 0 to 1"),
        ({"nodes": 2, "rendezvous": "node0:29400", "node_rank": 2}, "node_rank=2: accepts 0 to 1"),
        ({"rendezvous": "node0:29400"}, "rendezvous=node0:29400, nodes=1: one machine meets no other"),
        ({"nodes": 2, "rendezvous": "n:1", "node_rank": 0, "gpus": 3, "batch": 3}, "ranks=3, nodes=2: ranks must be"),
    ],
)
def test_nodes_that_could_not_meet_are_refused_in_one_line(monkeypatch, tmp_path, given, line):
    monkeypatch.setattr(environment, "torch_facts", lambda: CPU)
    monkeypatch.setattr(environment, "has_nvidia_device", lambda: False)
    with pytest.raises(ConfigError, match=line):
        plan("several_gpus", {"out_dir": str(tmp_path), "profile": "laptop", **given})


def test_a_scheduler_says_which_node_it_is_and_a_run_takes_the_gpus_of_all(monkeypatch, tmp_path):
    gpu = {**CPU, "cuda_usable": True, "cuda_problem": None, "gpu_count": 4, "gpu": "NVIDIA H200", "gpu_uuid": "u",
           "gpu_memory_mib": 143_771, "compute_capability": "9.0", "triton": "3.6"}  # fmt: skip
    monkeypatch.setattr(environment, "torch_facts", lambda: gpu)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    found = plan("several_gpus", {"out_dir": str(tmp_path), "profile": "checklist", "nodes": 2, "rendezvous": "n:1"})
    assert (found["gpus"], found["node_rank"]) == (8, 1)
    assert {(case.ranks, case.nodes) for case in found.cases} == {(1, 1), (8, 2)}
    assert found.custom == ()
