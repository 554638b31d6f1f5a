"""One result of several ranks: the rank that is the cause is named, whatever the others say afterwards."""

import json
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.runs import ranks, waits
from nsa_lib.runs.ranks_watch import RanksWatch
from nsa_lib.runs.waits import Waits
from nsa_lib.runs.watch import Limits, Watch
from tests.subject.test_config import CASE

TWO = replace(CASE, batch=2, ranks=2, strategy="ddp")

LOST = "RuntimeError: [gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer."


@pytest.fixture
def left(tmp_path):
    """Leave what ranks left: their results, logs and failures; return the one result."""

    def leave(*results, logs=("", ""), failures=None, ending=None, exit_code=1, memory=False):
        for rank, (result, log) in enumerate(zip(results, logs, strict=True)):
            folder = tmp_path / f"rank{rank}"
            folder.mkdir()
            (folder / "stderr.log").write_text(log)
            if result:
                (folder / "result.json").write_text(json.dumps({"schema": 1, "reason": "", **result}))
        if failures:
            found = {rank: {"exit_code": code, "at": at} for rank, (code, at) in failures.items()}
            (tmp_path / "failures.json").write_text(json.dumps({"schema": 1, "failures": found}))
        return ranks.merged(TWO, tmp_path, ending, exit_code, killed_for_memory=memory)

    return leave


def test_a_case_is_ok_if_all_ranks_are_and_keeps_the_facts_of_each(left):
    result = left({"status": "ok", "state_mib": 1.0}, {"status": "ok", "state_mib": 2.0}, exit_code=0)
    assert (result["status"], result["state_mib"]) == ("ok", 1.0)
    assert [rank["state_mib"] for rank in result["ranks"]] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("ends", "status", "reason"),
    [
        ({"results": ({}, {"status": "oom", "reason": "no memory"}), "logs": (LOST, ""), "failures": {0: (1, 5)}},
         "oom", "rank 1: no memory"),
        ({"logs": (LOST, ""), "failures": {0: (1, 5), 1: (-9, 6)}}, "crashed", "rank 1: killed by SIGKILL"),
        ({"logs": (LOST, "ValueError: planted"), "failures": {0: (1, 5), 1: (1, 6)}}, "failed",
         "rank 1: ValueError: planted"),
        ({"logs": (LOST, "[rank1]: ValueError: planted"), "failures": {1: (1, 6), 0: (-15, 6)}}, "failed",
         "rank 1: ValueError: planted"),
        ({"logs": ("", "  what():  size mismatch\nFatal Python error: Aborted"), "failures": {1: (-6, 6)}},
         "crashed", "rank 1: killed by SIGABRT (size mismatch)"),
        ({"failures": {1: (-9, 6)}, "memory": True}, "oom", "rank 1: killed by SIGKILL for lack of memory"),
        ({"results": ({"status": "ok"}, {}), "exit_code": 0}, "failed", "rank 1: ended without a result"),
        ({"exit_code": -9}, "crashed", "torchrun: killed by SIGKILL"),
        ({"exit_code": 1}, "failed", "torchrun: exit status 1"),
        ({"exit_code": None}, "crashed", "torchrun: could not be killed"),
        ({"results": ({"status": "ok"}, {"status": "ok"}), "ending": ("interrupted", "stopped")},
         "interrupted", "stopped"),
    ],
)  # fmt: skip
def test_the_rank_that_is_the_cause_is_named(left, ends, status, reason):
    ends = {"results": ({}, {}), **ends}
    result = left(*ends.pop("results"), **ends)
    assert (result["schema"], result["status"], result["reason"]) == (SCHEMA, status, reason)


class Beats:
    def __init__(self, steps):
        self.steps = list(steps)

    def read(self):
        beats, self.steps = self.steps, []
        return [
            {"phase": "step", "ts": time.time(), "step": n, "step_ms": 100.0, "peak_alloc_mib": 10.0 * n} for n in beats
        ]


def test_the_slowest_rank_is_shown_and_the_silent_ones_are_named():
    both = [Watch(Beats(range(1, 6)), ["train"] * 9), Watch(Beats(range(1, 4)), ["train"] * 9)]
    watch = RanksWatch(both, Waits([], 0))
    watch.look()
    assert (len(watch.steps_s), watch.memory_mib[-1], watch.phase) == (3, 30.0, "step")
    assert watch.overdue(Limits()) is None
    watch.ranks[1].beat_at -= 31
    status, reason = watch.overdue(Limits())
    assert status == "stalled"
    assert reason.endswith(": rank 1")
    watch.ranks[0].beat_at -= 31
    assert watch.overdue(Limits())[1].endswith(": ranks 0, 1")


def test_ranks_are_asked_for_their_flights_once_and_not_waited_for_in_vain(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(waits, "children", lambda pid: {7, 8} if pid == 6 else set())
    monkeypatch.setattr(ranks, "FLIGHTS_PATIENCE_S", 0.2)
    monkeypatch.setattr(waits, "os", SimpleNamespace(kill=lambda *signalled: asked.append(signalled)))
    ranks.ask_for_flights(TWO, tmp_path, 6)
    assert sorted(asked) == [(7, signal.SIGUSR2), (8, signal.SIGUSR2)]
