"""Runs the cases of a plan, each in a process of its own, watches their heartbeats, and leaves one result for each.

The worker is met only through files and its command line. Slow is not hung: a case may take as long as it likes for a
step, as long as that is in proportion to the steps before it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

from nsa_lib import environment
from nsa_lib.config import CaseConfig
from nsa_lib.plan import Plan
from nsa_lib.predictor import Predictor
from nsa_lib.progress import Progress
from nsa_lib.telemetry import HeartbeatReader

SCHEMA = 1
WORKER = (sys.executable, "-m", "nsa_lib.worker")
POLL_S = 0.1
PREDICTED = ("smoke", "backward_scaling")
"""Notebooks whose cases' memory is predicted beside their run."""
PREDICTION_PATIENCE_S = 20.0
"""How long a run that is done waits for predictions that are not."""
STDERR_TAIL = 4000
"""Characters of a worker's stderr that its result keeps."""


@dataclass(frozen=True)
class Limits:
    """How long a case may be silent in each phase, in seconds."""

    start_s: float = 180.0
    """From spawn to the first beat: the import of torch, maybe from a network disk."""
    build_s: float = 300.0
    warmup_s: float = 900.0
    """The first step: kernels are loaded, compiled and tuned."""
    step_floor_s: float = 30.0
    step_factor: float = 10.0
    """Later steps: this many times the median of those measured, and never less than the floor."""
    total_s: float = 24 * 3600.0
    given_s: float | None = None
    """The user's `stall_timeout_s`, which replaces the limits on steps."""

    def silence_s(self, phase: str, steps_s: list[float]) -> float:
        """Return how long the case may be silent after a beat of a phase, given the steps measured so far."""
        if phase in ("start", "build"):
            return self.start_s if phase == "start" else self.build_s
        if self.given_s is not None:
            return self.given_s
        return max(self.step_floor_s, self.step_factor * median(steps_s)) if steps_s else self.warmup_s


@dataclass
class Watch:
    """What has been seen of a running case."""

    reader: HeartbeatReader
    began: float = field(default_factory=time.monotonic)
    phase: str = "start"
    beat_at: float = field(default_factory=time.monotonic)
    steps_s: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Read the beats that came."""
        for beat in self.reader.read():
            self.phase, self.beat_at = beat["phase"], time.monotonic()
            if beat["step"] is not None:
                self.steps_s.append(beat["step_ms"] / 1000)
                if "peak_alloc_mib" in beat:  # a timing measures no memory
                    self.memory_mib.append(beat["peak_alloc_mib"])

    def overdue(self, limits: Limits) -> tuple[str, str] | None:
        """Return the status and reason with which the case must be ended, or None."""
        now = time.monotonic()
        silence, allowed = now - self.beat_at, limits.silence_s(self.phase, self.steps_s)
        if silence > allowed:
            where = f"in phase {self.phase} after step {len(self.steps_s)}"
            return "stalled", f"no heartbeat for {silence:.0f} s {where} (limit {allowed:.0f} s)"
        if now - self.began > limits.total_s:
            return "timeout", f"still beating after {now - self.began:.0f} s (limit {limits.total_s:.0f} s)"
        return None


class StopButton:
    """Ctrl-C, which is also JupyterLab's stop button, as a flag for the supervising loop to read.

    As an exception it could strike between the start of a worker and the loop that watches it, and leave the worker
    running; or in the middle of a result. Python hears signals in the main thread only, where notebooks run.
    """

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> StopButton:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self.pressed = True


def execute(plan: Plan) -> Path:
    """Run every case of a plan and return the run folder.

    The stop button ends the case that runs; it and the ones not started are `interrupted`, and the notebook goes on
    with what was recorded.
    """
    for notice in plan.notices:
        print(notice, flush=True)
    progress = Progress({case.case_id: case.steps for case in plan.cases})
    limits = Limits(given_s=plan["stall_timeout_s"])
    with StopButton() as stop:
        folder = make_run_folder(plan)
        folders = {case.case_id: _make_case_folder(folder, case) for case in plan.cases}
        ahead: subprocess.Popen | None = None
        predicted = list(folders) if plan.notebook in PREDICTED else []
        predictor: Predictor | None = None
        try:
            for case, following in zip(plan.cases, (*plan.cases[1:], None)):
                case_folder = folders[case.case_id]
                if stop.pressed:
                    result = _result(case, "interrupted", "not started")
                    write_json(case_folder / "result.json", result)
                else:
                    process = ahead or start_worker(case, case_folder)
                    ahead = start_worker(following, folders[following.case_id]) if following else None
                    predictor = predictor or Predictor(folder, predicted, plan.environment)  # beside the first case
                    result = run_case(case, case_folder, process, limits=limits, progress=progress, stop=stop)
                progress.end(case.case_id, result["status"], result["reason"], result["seconds"])
            if predictor:
                predictor.wait(PREDICTION_PATIENCE_S, stopped=lambda: stop.pressed)
        finally:
            if predictor:
                predictor.end()
            if ahead:
                ahead.stdin.close()
                end_group(ahead)
    return folder


def _make_case_folder(folder: Path, case: CaseConfig) -> Path:
    case_folder = folder / "cases" / case.case_id
    case_folder.mkdir(parents=True)
    (case_folder / "case.json").write_text(case.to_json())
    return case_folder


def start_worker(case: CaseConfig, folder: Path) -> subprocess.Popen:
    """Start the process of a case, which imports torch and then waits for a line.

    It is started one case ahead: torch takes seconds to import, on some machines ten, and a run has many cases.
    """
    with (folder / "stderr.log").open("wb") as log:
        return subprocess.Popen(
            [*WORKER, str(folder / "case.json"), str(os.getpid())],
            env=environment.case_environment(case.alloc_conf),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def make_run_folder(plan: Plan) -> Path:
    """Make the run's folder, which is this run's alone, and write run.json into it."""
    folder, created = new_run_folder(plan.out_dir, plan.notebook, str(plan["tag"]))
    description = {
        "schema": SCHEMA,
        "run_id": folder.name,
        "notebook": plan.notebook,
        "profile": plan.profile,
        "custom": list(plan.custom),
        "created": created,
        "parameters": plan.parameter_rows,
        "environment": dict(plan.environment),
        "case_ids": [case.case_id for case in plan.cases],
        "reproduce": plan.reproduce,
        "report": environment.report_path(),
    }
    write_json(folder / "run.json", description)
    return folder


def new_run_folder(out_dir: Path, notebook: str, tag: str) -> tuple[Path, str]:
    """Make a folder for a run, which nobody else gets, and return it with the time of its making."""
    now = datetime.now(timezone.utc)
    stem = "-".join(filter(None, [notebook, now.strftime("%Y%m%dT%H%M%SZ"), tag]))
    folder, again = out_dir / "runs" / stem, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder, now.isoformat()
        except FileExistsError:
            again += 1
            folder = out_dir / "runs" / f"{stem}-{again}"


def run_case(
    case: CaseConfig, folder: Path, process: subprocess.Popen, *, limits: Limits, progress: Progress, stop: StopButton
) -> dict[str, object]:
    """Run one case in the process that waits for it, and return its result, which is written to its folder too."""
    kills = environment.oom_kills()
    _let_go(process)
    watch = Watch(HeartbeatReader(folder / "heartbeat.jsonl"))
    ending = None
    try:
        ending = _supervise(process, watch, limits, case, progress, stop)
    finally:  # also if the supervision itself fails: a worker that nobody watches must not live on
        end_group(process, dump_stacks=ending is not None and ending[0] in ("stalled", "timeout"))
    watch.look()
    stderr_tail = (folder / "stderr.log").read_text(errors="replace")[-STDERR_TAIL:]
    if ending is None and process.returncode == 0 and (folder / "result.json").exists():
        result = json.loads((folder / "result.json").read_text())
    else:
        killed_for_memory = environment.oom_kills() != kills
        result = _result(case, *(ending or _diagnose(process.returncode, stderr_tail, killed_for_memory)))
    result |= {
        "steps_done": len(watch.steps_s),
        "seconds": round(time.monotonic() - watch.began, 2),
        "exit_code": process.returncode,
        "stderr_tail": "" if result["status"] == "ok" else stderr_tail,
    }
    write_json(folder / "result.json", result)
    return result


def _let_go(process: subprocess.Popen) -> None:
    """Write the line that a worker waits for; one that is dead already is seen as such by who supervises it."""
    with suppress(BrokenPipeError):
        process.stdin.write(b"\n")
        process.stdin.close()


def _supervise(
    process: subprocess.Popen, watch: Watch, limits: Limits, case: CaseConfig, progress: Progress, stop: StopButton
) -> tuple[str, str] | None:
    """Watch a case until it ends by itself (None) or must be ended (its status and the reason)."""
    while process.poll() is None:
        if stop.pressed:
            return "interrupted", "stopped by the user"
        watch.look()
        step_s = median(watch.steps_s) if watch.steps_s else None
        progress.show(case.case_id, len(watch.steps_s), step_s, watch.memory_mib, phase=watch.phase)
        overdue = watch.overdue(limits)
        if overdue:
            return overdue
        time.sleep(POLL_S)
    return None


def end_group(process: subprocess.Popen, *, dump_stacks: bool = False) -> None:
    """End a case and every process of its group, with a dump of its stacks to stderr first if asked for.

    Also after a case that ended by itself: it may have left children. A process in the kernel's uninterruptible sleep
    survives even SIGKILL, so the last wait is bounded.
    """
    if dump_stacks and process.poll() is None:
        process.send_signal(signal.SIGUSR1)  # faulthandler writes the stacks, also from C code that holds the GIL
        time.sleep(1)
    for how, patience_s in ((signal.SIGTERM, 2), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
    process.poll()


def _diagnose(exit_code: int | None, stderr: str, killed_for_memory: bool) -> tuple[str, str]:
    """Return the status and reason of a case that died without a result of its own."""
    last_line = (stderr.strip().splitlines() or [""])[-1]
    if exit_code is None:
        return "crashed", "could not be killed"
    if exit_code == -signal.SIGKILL and killed_for_memory:
        return "oom", "killed by the kernel for lack of memory"
    if exit_code < 0:
        return "crashed", f"killed by {signal.Signals(-exit_code).name}"
    if exit_code == 0:
        return "failed", "ended without a result"
    return "failed", last_line or f"exit status {exit_code}"


def _result(case: CaseConfig, status: str, reason: str) -> dict[str, object]:
    named = {"schema": SCHEMA, "case_id": case.case_id, "status": status, "reason": reason}
    return {**named, "steps_done": 0, "seconds": 0.0}


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file, whole."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
