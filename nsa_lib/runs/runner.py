"""Run the cases of a plan, each in a process of its own; watch their heartbeats, and leave one result for each.

The runner meets the worker only in files and on its command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.files import write_json, write_text
from nsa_lib.contract.heartbeat import SCHEMA, HeartbeatReader
from nsa_lib.contract.lines import folded
from nsa_lib.contract.source import package_sha256, why_outdated
from nsa_lib.contract.step_kinds import step_kinds
from nsa_lib.runs import environment, gpu_health, ranks
from nsa_lib.runs.at_work import runs_at_work
from nsa_lib.runs.logs import diagnose, last_line, stderr_tail
from nsa_lib.runs.nodes import GuestWatch, hand_over_failures, node_of
from nsa_lib.runs.own import why_changed
from nsa_lib.runs.plan import Plan
from nsa_lib.runs.predictor import Predictor
from nsa_lib.runs.processes import adopt_orphans, children, end_tree
from nsa_lib.runs.progress import Progress
from nsa_lib.runs.ranks_watch import RanksWatch
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.runs.sums import case_files, seal
from nsa_lib.runs.watch import Limits, Watch
from nsa_lib.subject.config import ConfigError

WORKER = (sys.executable, "-m", "nsa_lib.worker")

TORCHRUN = (sys.executable, "-m", "nsa_lib.worker.ranks")

POLL_S = 0.1


PREDICTION_PATIENCE_S = 20.0
"""How long a run that is done waits for predictions that are not."""


def execute(plan: Plan) -> Path:
    """Run every case of a plan and return the run folder.

    The stop button ends the case that runs; it and the ones not started are `interrupted`, and the notebook goes on
    with what was recorded. So it does after `total_timeout_s`, with `timeout` for the case that ran. If the library has
    changed since this process imported it, ConfigError is raised before any work, and no further case is started.
    """
    others = _begin(plan)
    limits = Limits(given_s=plan["stall_timeout_s"], run_s=plan["total_timeout_s"])
    node = node_of(plan)
    cases = node.cases(plan.cases)
    with StopButton() as stop, _told_in_a_line(plan.out_dir), ExitStack() as around:
        folder = node.make_folder(plan)
        around.enter_context(gpu_health.recorded(folder, plan.environment.get("gpu_uuid")))
        progress = _progress(plan, folder, others)
        folders = {case.case_id: _make_case_folder(folder, case) for case in cases}
        joins = node.joins(cases)
        run_one = partial(run_case, progress=progress, stop=stop, node=node.number)
        started: list[subprocess.Popen] = []
        predicted = list(folders) if plan.request.predicted and node.number == 0 else []
        predictor: Predictor | None = None
        try:
            for case, following in zip(cases, (*cases[1:], None), strict=True):
                if why_not := _why_not_started(stop, limits, plan.on_trial):
                    result = _left_out(case, folders[case.case_id], why_not)
                else:
                    if not started:
                        started.append(start_worker(case, folders[case.case_id], joins[case.case_id]))
                    process = started[-1]
                    if following:
                        started.append(start_worker(following, folders[following.case_id], joins[following.case_id]))
                    predictor = predictor or Predictor(folder, predicted, plan.environment)  # beside the first case
                    result = run_one(case, folders[case.case_id], process, limits=limits)
                    limits = replace(limits, spent_s=limits.spent_s + result["seconds"])
                progress.end(case.case_id, result["status"], result["reason"], result["seconds"])
            if predictor:
                predictor.wait(PREDICTION_PATIENCE_S, stopped=lambda: stop.pressed or bool(limits.overtime(0)))
        finally:
            _end_all(started, predictor)
        return node.judged_folder(folder, stopped=lambda: stop.pressed)


def _begin(plan: Plan) -> list[str]:
    """Say what a user should know before a run; return what to go on saying of other runs at work."""
    environment.refuse_outdated()
    others = _others_at_work()
    print("".join(f"{folded(notice)}\n" for notice in (*plan.notices, *others)), end="", flush=True)
    adopt_orphans()
    return others


def _left_out(case: CaseConfig, folder: Path, why: str) -> dict[str, object]:
    result = _result(case, "interrupted", why)
    _leave(folder, result)
    return result


def _leave(case_folder: Path, result: Mapping[str, object]) -> None:
    """Write the result of a case, and list the sums of all that it leaves."""
    write_json(case_folder / "result.json", result)
    seal(case_folder.parents[1], case_files(case_folder))


@contextmanager
def _told_in_a_line(out_dir: Path) -> Iterator[None]:
    """Raise ConfigError, in one line, where the disk of the runs fails: it is full, say, or was taken away."""
    try:
        yield
    except OSError as error:
        ended = "nothing that the run started is left; `report` judges what was recorded until then"
        raise ConfigError(f"out_dir={out_dir}: {error.strerror or error}; {ended}") from None


def _progress(plan: Plan, folder: Path, others: Sequence[str]) -> Progress:
    limit = plan.values.get("reserved_limit_mib")
    steps = {case.case_id: case.steps for case in plan.cases}
    return Progress(steps, where=folder, limit_mib=limit and limit.value, notices=others)


def _others_at_work() -> list[str]:
    """Return what to say of other runs whose cases are running on this machine now."""
    names = [folder.name for folder in runs_at_work()]
    are = "is" if len(names) == 1 else "are"
    said = f"{', '.join(names)} {are} running on this machine too: all take longer, and share its memory."
    return [said] if names else []


def _end_all(started: list[subprocess.Popen], predictor: Predictor | None) -> None:
    """End what has not ended. The workers first: on a full disk the predictor cannot leave its reasons, and raises."""
    for process in started:
        if process.poll() is None:
            process.stdin.close()
            end_tree(process, spare=children(os.getpid()) - {process.pid})
    if predictor:
        predictor.end()


def _why_not_started(stop: StopButton, limits: Limits, on_trial: Mapping[str, object] | None) -> str:
    """Return why no further case is started, or ""."""
    if stop.pressed:
        return "not started"
    why = limits.overtime(0) or why_outdated() or why_changed(on_trial)
    return why and f"not started: {why}"


def _make_case_folder(folder: Path, case: CaseConfig) -> Path:
    case_folder = folder / "cases" / case.case_id
    case_folder.mkdir(parents=True)
    write_text(case_folder / "case.json", case.to_json())
    return case_folder


def start_worker(case: CaseConfig, folder: Path, joins: Sequence[str] = ()) -> subprocess.Popen:
    """Start the process of a case, which imports torch and then waits for a line: a worker, or torchrun.

    The runner starts it one case ahead: torch takes seconds to import, on some machines ten, and a run has many cases.
    """
    program = TORCHRUN if case.is_launched else WORKER
    with (folder / "stderr.log").open("wb") as log:
        return subprocess.Popen(
            [*program, str(folder.resolve() / "case.json"), package_sha256(), str(os.getpid()), *joins],
            env=environment.case_environment(case.alloc_conf, launched=case.is_launched),
            cwd=folder,  # a module in the user's working folder, torch.py say, must not take the place of the real one
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def run_case(
    case: CaseConfig,
    folder: Path,
    process: subprocess.Popen,
    *,
    limits: Limits,
    progress: Progress,
    stop: StopButton,
    node: int = 0,
) -> dict[str, object]:
    """Run one case in the process that waits for it, and return its result, which is written to its folder too."""
    others = children(os.getpid()) - {process.pid}  # whatever this process is given from now on, the case has left
    kills = environment.oom_kills()
    _release(process)
    watch = _watch(case, folder, process.pid, node)
    ending = None
    try:
        ending = _supervise(process, watch, limits, case, progress, stop, folder / "stderr.log")
        if case.is_launched and ending is not None:
            ranks.ask_for_flights(case, folder, process.pid)
    finally:  # also if the supervision itself fails: an unwatched worker must not live on
        end_tree(process, spare=others, dump_stacks=ending is not None and ending[0] in ("stalled", "timeout"))
    watch.look()
    hand_over_failures(folder, node)
    result = _how_it_ended(case, folder, ending, process.returncode, killed_for_memory=environment.oom_kills() != kills)
    if result["status"] == "failed" and watch.phase == "start" and (why := why_outdated()):
        reason = f"{why}. Its worker ended before the case began: {result['reason']}"
        result |= {"status": "interrupted", "reason": reason}
    said = "" if result["status"] == "ok" else stderr_tail(case, folder)
    seconds = round(time.monotonic() - watch.began, 2)
    result |= {
        "steps_done": len(watch.steps_s),
        "seconds": seconds,
        "exit_code": process.returncode,
        "stderr_tail": said,
    }
    _leave(folder, result)
    return result


def _how_it_ended(
    case: CaseConfig, folder: Path, ending: tuple[str, str] | None, exit_code: int | None, *, killed_for_memory: bool
) -> dict[str, object]:
    """Return the result that a case left, or one that says why it left none."""
    if case.is_launched:
        return ranks.merged(case, folder, ending, exit_code, killed_for_memory=killed_for_memory)
    if ending is None and exit_code == 0 and (folder / "result.json").exists():
        return json.loads((folder / "result.json").read_text())
    return _result(case, *(ending or diagnose(exit_code, stderr_tail(case, folder), killed_for_memory)))


def _watch(case: CaseConfig, folder: Path, pid: int, node: int) -> Watch | RanksWatch | GuestWatch:
    if node:
        return GuestWatch(folder, lambda shared: ranks.watching(case, shared, pid))
    if case.is_launched:
        return ranks.watching(case, folder, pid)
    return Watch(HeartbeatReader(folder / "heartbeat.jsonl"), step_kinds(case))


def _release(process: subprocess.Popen) -> None:
    """Release the waiting worker. If it has already died, `_supervise` notices."""
    with suppress(BrokenPipeError):
        process.stdin.write(b"\n")
        process.stdin.close()


def _supervise(
    process: subprocess.Popen,
    watch: Watch | RanksWatch | GuestWatch,
    limits: Limits,
    case: CaseConfig,
    progress: Progress,
    stop: StopButton,
    log: Path,
) -> tuple[str, str] | None:
    """Watch a case until it ends by itself (None) or must be ended (its status and the reason)."""
    while process.poll() is None:
        if stop.pressed:
            return "interrupted", "stopped by the user"
        watch.look()
        step_s = median(watch.steps_s) if watch.steps_s else None
        seen = {"loss": watch.loss, "reserved_mib": watch.reserved_mib, "said": watch.notice or last_line(log)}
        progress.tell(watch.notice)
        progress.show(case.case_id, len(watch.steps_s), step_s, watch.memory_mib, phase=watch.phase, **seen)
        overdue = watch.overdue(limits)
        if overdue:
            return overdue
        time.sleep(POLL_S)
    return None


def _result(case: CaseConfig, status: str, reason: str) -> dict[str, object]:
    named = {"schema": SCHEMA, "case_id": case.case_id, "status": status, "reason": reason}
    return {**named, "steps_done": 0, "seconds": 0.0}
