"""A case on several ranks, as its runner sees it: their heartbeats, how each ended, and one result of it all."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.heartbeat import SCHEMA, HeartbeatReader, rank_folder
from nsa_lib.contract.nodes import failures_file
from nsa_lib.contract.source import OTHER_SOURCE
from nsa_lib.contract.step_kinds import step_kinds
from nsa_lib.runs.flights import who_waits
from nsa_lib.runs.nodes import shared_folder
from nsa_lib.runs.ranks_watch import RanksWatch
from nsa_lib.runs.waits import Waits, named, read_flights
from nsa_lib.runs.watch import Watch

FLIGHTS_PATIENCE_S = 10.0
"""How long ranks that hang may take to say which collectives they entered."""

NODES_PATIENCE_S = 5.0
"""How long node 0 waits for what ranks of other nodes left."""

FOLLOWS = 2
"""From here on a rank's end only follows from that of another."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""What a rank says that failed because another one did."""


def watching(case: CaseConfig, folder: Path, torchrun_pid: int) -> RanksWatch:
    """Return what sees the heartbeats of all ranks of a case."""
    kinds, places = step_kinds(case), folders(case, folder)
    watches = [Watch(HeartbeatReader(path / "heartbeat.jsonl"), kinds) for path in places]
    return RanksWatch(watches, Waits(places, torchrun_pid))


def folders(case: CaseConfig, folder: Path) -> list[Path]:
    """Return where each rank leaves its files."""
    return [rank_folder(folder, rank) for rank in range(case.ranks)]


def ask_for_flights(case: CaseConfig, folder: Path, torchrun_pid: int) -> None:
    """Have every rank write which collectives it has entered, and wait a little for it."""
    waits = Waits(folders(case, shared_folder(folder) or folder), torchrun_pid)
    waits.ask()
    deadline = time.monotonic() + FLIGHTS_PATIENCE_S
    paths = [path / "flight.json" for path in waits.folders]
    while time.monotonic() < deadline and not all(
        p.exists() and p.stat().st_mtime >= waits.asked_at - 1 for p in paths
    ):
        time.sleep(0.1)


def merged(
    case: CaseConfig, folder: Path, ending: tuple[str, str] | None, exit_code: int | None, *, killed_for_memory: bool
) -> dict[str, object]:
    """Return one result of a case: the facts of rank 0, those of all ranks in `ranks`, status and reason.

    Args:
        case: the case.
        folder: its folder.
        ending: status and reason with which the supervision ended it, or None if it ended by itself.
        exit_code: of torchrun.
        killed_for_memory: whether the kernel killed a process for memory meanwhile.
    """
    folder = shared_folder(folder) or folder
    results, failures = _ends(case, folder)
    status, reason = _status(folder, results, failures, ending, exit_code)
    if killed_for_memory and reason.endswith("SIGKILL"):
        status, reason = "oom", f"{reason} for lack of memory"
    waits = (
        ""
        if status in ("ok", "interrupted")
        else who_waits({rank: flight["entries"] for rank, flight in read_flights(folders(case, folder)).items()})
    )
    first = results[0] if results and results[0] else {}
    said = "; ".join(filter(None, [reason, waits]))
    own = {"schema": SCHEMA, "case_id": case.case_id, "status": status, "reason": said}
    return {**first, **own, "ranks": [result or {} for result in results]}


def _ends(case: CaseConfig, folder: Path) -> tuple[list[dict], dict[int, Mapping]]:
    """Return the results of all ranks, {} where there is none, and the failures of those that failed.

    What ranks of other nodes leave may come a little later.
    """
    deadline = time.monotonic() + (NODES_PATIENCE_S if case.nodes > 1 else 0)
    while True:
        results = [_read(path / "result.json") for path in folders(case, folder)]
        told = [_read(folder / failures_file(node)).get("failures", {}) for node in range(case.nodes)]
        failures = {int(rank): failure for of_node in told for rank, failure in of_node.items()}
        silent = [rank for rank, result in enumerate(results) if not result and rank not in failures]
        if not silent or time.monotonic() >= deadline:
            return results, failures
        time.sleep(0.1)


def _status(
    folder: Path,
    results: list[dict],
    failures: Mapping[int, Mapping],
    ending: tuple[str, str] | None,
    exit_code: int | None,
) -> tuple[str, str]:
    """Return status and reason, which names the rank that is the cause: the others fail only because it did."""
    if ending is not None:
        return ending
    failed = [(rank, result) for rank, result in enumerate(results) if result and result["status"] != "ok"]
    if failed:
        rank, result = min(failed, key=lambda one: (rank_folder(folder, one[0]) / "result.json").stat().st_mtime)
        return str(result["status"]), f"rank {rank}: {result['reason']}"
    if failures:
        follows, _, status, reason = min(_end(folder, rank, failure) for rank, failure in failures.items())
        silent = [rank for rank, result in enumerate(results) if not result and rank not in failures]
        if silent and follows >= FOLLOWS:
            return "crashed", f"{named(silent)}: lost without a word, with its node or its connection; {reason}"
        return status, reason
    if exit_code is None or exit_code < 0:
        died = "could not be killed" if exit_code is None else f"killed by {signal.Signals(-exit_code).name}"
        return "crashed", f"torchrun: {died}"
    if exit_code:
        return "failed", f"torchrun: {_last_line(folder / 'stderr.log') or f'exit status {exit_code}'}"
    return ("ok", "") if all(results) else ("failed", f"rank {results.index({})}: ended without a result")


def _end(folder: Path, rank: int, failure: Mapping) -> tuple[int, float, str, str]:
    """Return how a rank ended: first how little it can be the cause and when, then status and reason.

    A signal that torchrun did not send is a cause. So is an error, unless it says that another rank has gone; of two
    that abort, the one that says why.
    """
    code, at, log = int(failure["exit_code"]), float(failure["at"]), rank_folder(folder, rank) / "stderr.log"
    if code < 0:
        said = _thrown(log)
        reason = f"rank {rank}: killed by {signal.Signals(-code).name}" + (f" ({said})" if said else "")
        follows = code == -signal.SIGABRT and (not said or any(word in said for word in LOST))
        return 3 if code == -signal.SIGTERM else FOLLOWS if follows else 0, at, "crashed", reason
    if code == OTHER_SOURCE:  # before it had a log of its own
        return 0, at, "interrupted", _last_line(folder / "stderr.log")
    said = _last_line(log) or f"exit status {code}"
    return FOLLOWS if any(word in said for word in LOST) else 1, at, "failed", f"rank {rank}: {said}"


def _thrown(log: Path) -> str:
    """Return what C++ said of an exception that nobody caught, or ""."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.partition("what():")[2].strip() for line in lines if "what():" in line), "")


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return re.sub(r"^\[rank\d+\]: ", "", lines[-1]) if lines else ""


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def logs(case: CaseConfig, folder: Path) -> dict[str, Path]:
    """Return what stderr was sent to, by the name of the process."""
    ranks = {f"rank {rank}": path / "stderr.log" for rank, path in enumerate(folders(case, folder))}
    return {"torchrun": folder / "stderr.log", **ranks}
