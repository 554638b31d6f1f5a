"""A run on several nodes, as each of them takes part in it.

On every node the same notebook is run, as `torchrun --nnodes` is: `nodes` of them meet at `rendezvous`, HOST:PORT of
node 0. Node 0 makes the run folder, on a disk that all nodes share, and comes to the verdict; ranks of other nodes
leave their files in it too. Another node keeps the logs of its torchrun in `<out_dir>/nodes/`, waits for the verdict of
node 0 and shows the same page.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.nodes import PLACE_FILE, failures_file
from nsa_lib.runs.folder import make_run_folder, new_folder
from nsa_lib.runs.plan import Plan
from nsa_lib.runs.ranks_watch import RanksWatch
from nsa_lib.runs.watch import Limits
from nsa_lib.subject.config import ConfigError

NODES = "nodes"

VERDICT_PATIENCE_S = 600.0
"""How long another node waits for the verdict of node 0, once its own part is done."""

POLL_S = 0.5


@dataclass(frozen=True)
class Node:
    """One node of a run."""

    number: int
    count: int
    rendezvous: str
    """HOST:PORT; the n-th launched case of a run meets at PORT + n."""

    def cases(self, cases: Sequence[CaseConfig]) -> tuple[CaseConfig, ...]:
        """Return the cases that this node has a part in: what runs in one process does so on node 0."""
        return tuple(case for case in cases if self.number == 0 or case.is_launched)

    def joins(self, cases: Sequence[CaseConfig]) -> dict[str, list[str]]:
        """Return what torchrun is told of the node in each case: where it meets the others, and its number."""
        if self.count == 1:
            return {case.case_id: [] for case in cases}
        host, _, port = self.rendezvous.rpartition(":")
        launched = [case.case_id for case in cases if case.is_launched]
        meetings = {case_id: [f"{host}:{int(port) + n}", str(self.number)] for n, case_id in enumerate(launched)}
        return {case.case_id: meetings.get(case.case_id, []) for case in cases}

    def make_folder(self, plan: Plan) -> Path:
        """Make the folder in which this node keeps its files."""
        if self.number == 0:
            return make_run_folder(plan)
        return new_folder(plan.out_dir / NODES, plan.notebook, f"node{self.number}")[0]

    def judged_folder(self, folder: Path, stopped: Callable[[], bool]) -> Path:
        """Return the folder of the run, once node 0 has judged it.

        Raises ConfigError, in one line, if node 0 was never met or leaves no verdict.
        """
        if self.number == 0:
            return folder
        shared = next(filter(None, map(shared_folder, sorted((folder / "cases").iterdir()))), None)
        who = f"node {self.number} of {self.count}"
        if shared is None:
            raise ConfigError(f"{who}: it met no other at rendezvous={self.rendezvous}; its logs: {folder}")
        run_folder, deadline = shared.parent.parent, time.monotonic() + VERDICT_PATIENCE_S
        while not is_judged(run_folder):
            if stopped() or time.monotonic() > deadline:
                raise ConfigError(f"{who}: node 0 has left no verdict in {run_folder}; its logs: {folder}")
            time.sleep(POLL_S)
        return run_folder


def node_of(plan: Plan) -> Node:
    """Return the node that a plan is for; of a run on one, the only one."""
    if "nodes" not in plan.values or plan["nodes"] == 1:
        return Node(0, 1, "")
    return Node(plan["node_rank"], plan["nodes"], plan["rendezvous"])


def shared_folder(case_folder: Path) -> Path | None:
    """Return node 0's folder of a case, as the ranks of another node have learnt it; None if they have not."""
    place = case_folder / PLACE_FILE
    return Path(json.loads(place.read_text())["folder"]) if place.exists() else None


def is_of_several_nodes(info: Mapping[str, object]) -> bool:
    """Return whether several nodes made the run that a run.json describes."""
    return any(row["name"] == "nodes" and row["value"] > 1 for row in info["parameters"])


def is_judged(run_folder: Path) -> bool:
    """Return whether a run has its verdict."""
    return (run_folder / "summary.json").exists()


def hand_over_failures(case_folder: Path, number: int) -> None:
    """Copy how the ranks of another node failed to node 0's folder of the case; node 0's are there."""
    own, shared = case_folder / failures_file(0), shared_folder(case_folder)
    if own.exists() and shared is not None:
        target = shared / failures_file(number)
        target.with_suffix(".tmp").write_text(own.read_text())
        target.with_suffix(".tmp").replace(target)


class GuestWatch:
    """What another node sees of a case: nothing until the nodes have met, then all ranks, as node 0 does."""

    def __init__(self, folder: Path, watching: Callable[[Path], RanksWatch]):
        self._folder, self._watching = folder, watching
        self._seen: RanksWatch | None = None
        self.began = time.monotonic()

    def look(self) -> None:
        """Read the beats that came, from where node 0 keeps them."""
        if self._seen is None and (shared := shared_folder(self._folder)):
            self._seen = self._watching(shared)
        if self._seen:
            self._seen.look()

    def overdue(self, limits: Limits) -> tuple[str, str] | None:
        """Return the status and reason with which this node's part must be ended, or None."""
        if self._seen is None:
            overtime = limits.overtime(time.monotonic() - self.began)
            return ("timeout", overtime) if overtime else None
        return self._seen.overdue(limits)

    phase = property(lambda self: self._seen.phase if self._seen else "start")
    steps_s = property(lambda self: self._seen.steps_s if self._seen else [])
    memory_mib = property(lambda self: self._seen.memory_mib if self._seen else [])
    reserved_mib = property(lambda self: self._seen.reserved_mib if self._seen else None)
    loss = property(lambda self: self._seen.loss if self._seen else None)
    notice = property(lambda self: self._seen.notice if self._seen else "")
