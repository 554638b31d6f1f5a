"""Run the trials: every seeded fault through papermill and the notebook that must catch it.

A trial is caught if its run ends with the expected verdict and exit status, and the expected gate is the reason. All
files of a trial are kept, so that a missed fault can be looked into.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import nbformat

from nsa_lib.contract.case import FEWEST_STEPS
from nsa_lib.contract.faults import FAULTS, FAULTS_AT, MOMENTS, RANK_FAULTS, RANK_FAULTS_AT, moments_said
from nsa_lib.contract.files import write_json, write_text
from nsa_lib.contract.lines import say
from nsa_lib.judgement.gate import FAIL, NOT_RUN, WARN
from nsa_lib.report.verdict import read_verdict
from nsa_lib.runs import papermill
from nsa_lib.runs.environment import notebook_path
from nsa_lib.runs.folder import stamp
from nsa_lib.runs.provenance import provenance
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import QUESTIONS
from nsa_lib.workbook.run import Run, open_run

SMALL = {"profile": "laptop", "layers": 2, "seq_len": 128, "vocab": 64}

SHORT = {**SMALL, "steps": 60, "anomaly": False, "profiler": False}
"""The smallest smoke that can be judged; what it leaves out is INCOMPLETE and cannot hide a NO-GO."""

CHECKED = {"profile": "laptop", "layers": 2, "seq_len": 128}
"""A small preflight; what it learns has sizes of its own."""

SCALED = {**SMALL, "seq_lens": [64, 128], "steps": 3}

CONTRASTED = {**SMALL, "seq_lens": [64, 128], "steps": FEWEST_STEPS, "rounds": 1}

ENDLESS = {**SHORT, "steps": 100_000, "stall_timeout_s": 2}
"""For faults that never end by themselves: the supervision ends them."""

HANGING = {**SHORT, "stall_timeout_s": 2}
"""The same for one that hangs in a step that must be reached."""

SHARED = {"profile": "laptop", "steps": 14, "strategies": "ddp"}
"""Two ranks that train together, for no longer than their operators need; their memory is not judged."""

SHARDED, WAITING = {**SHARED, "strategies": "fsdp2"}, {**SHARED, "stall_timeout_s": 10}

CHOOSING = {**SHORT, "seq_len": 512}
"""Long enough that blocks are chosen by score."""


@dataclass(frozen=True)
class Trial:
    """One run with a fault in it, and the verdict that it must come to."""

    fault: str
    verdict: str
    """The word that the run must end with."""
    gate: str
    """The required gate that must be the reason; "" for a trial that must be GO."""
    says: str = ""
    """What the gate's detail must hold, so that it is red for the right reason."""
    notebook: str = "smoke"
    parameters: Mapping[str, object] = field(default_factory=lambda: SHORT)

    @property
    def name(self) -> str:
        """A unique name: the fault, the notebook and, if given, the backend."""
        backend = self.parameters.get("backend")
        return "-".join(filter(None, [self.fault, self.notebook, backend]))


TRIALS = (
    Trial("none", "GO", "", parameters={**SMALL, "steps": 60}),
    Trial("none", "GO", "", notebook="preflight", parameters=CHECKED),
    Trial("none", "GO", "", notebook="backward_scaling", parameters=SCALED),
    Trial("none", "GO", "", notebook="backend_contrast", parameters=CONTRASTED),
    Trial("none", "GO", "", notebook="several_gpus", parameters={"profile": "laptop"}),
    Trial("leak_12", "NO-GO", "trend_peak_alloc", "rises steadily"),
    Trial("leak_30", "NO-GO", "trend_peak_alloc", "rises steadily"),
    Trial("pool_creep", "NO-GO", "trend_reserved", "rises steadily", parameters={**SHORT, "alloc_conf": ""}),
    Trial("nan_loss", "NO-GO", "finite", "loss is nan"),
    Trial("nan_loss", "NO-GO", "anomaly", "nan", parameters={**SHORT, "anomaly": True, "backend": "packed"}),
    Trial("inf_gradient", "NO-GO", "finite", "grad_norm is inf"),
    Trial("hang_forward", "NO-GO", "steps", "stalled", parameters=ENDLESS),
    Trial("hang_gil", "NO-GO", "steps", "stalled", parameters=ENDLESS),
    Trial("sigkill", "NO-GO", "steps", "SIGKILL"),
    Trial("segfault", "NO-GO", "steps", "SIGSEGV"),
    Trial("oom", "NO-GO", "steps", "oom"),
    Trial("operator_growth", "NO-GO", "operator_growth", "grew", parameters={**SHORT, "profiler": True}),
    Trial("growing_shapes", "NO-GO", "trend_peak_alloc", "rises steadily"),
    Trial("wrong_backend", "NO-GO", "route", parameters={**SHORT, "backend": "packed"}),
    Trial("first_key", "NO-GO", "attention", parameters={**SHORT, "backend": "packed"}),
    Trial("late_binding", "NO-GO", "steps", "no gradient reached"),
    Trial("silent_heartbeat", "NO-GO", "steps", "stalled", parameters=ENDLESS),
    Trial("torn_heartbeat", "NO-GO", "steps", "SIGKILL"),
    Trial("oom", "NO-GO", "backward_64", "oom", notebook="backward_scaling", parameters=SCALED),
    Trial("wrong_backend", "NO-GO", "route_packed", notebook="backend_contrast", parameters=CONTRASTED),
    Trial("first_key", "NO-GO", "attention_masked", notebook="preflight", parameters=CHECKED),
    Trial("future_leak", "NO-GO", "future_masked", notebook="preflight", parameters=CHECKED),
    Trial("late_binding", "NO-GO", "checkpointing", notebook="preflight", parameters=CHECKED),
    Trial("dead_parameter", "NO-GO", "gradients", "key_cmp.weight", notebook="preflight", parameters=CHECKED),
    Trial("unshifted_labels", "NO-GO", "loss_fresh_tokens", notebook="preflight", parameters=CHECKED),
    Trial("disk_full", "NO-GO", "steps", "OSError"),
    Trial("bit_once", "NO-GO", "same_bits", "transient"),
    Trial("stuck_bit", "NO-GO", "same_bits", "persistent"),
    Trial("unordered_sum", "NO-GO", "same_bits", "software"),
    *(
        Trial(f"{fault}@{moment}", "NO-GO", "steps", says, parameters=parameters)
        for moment in MOMENTS
        for fault, says, parameters in (
            ("hang_forward", "stalled", HANGING),
            ("hang_gil", "stalled", HANGING),
            ("sigkill", "SIGKILL", SHORT),
            ("segfault", "SIGSEGV", SHORT),
            ("oom", "oom", SHORT),
            ("silent_heartbeat", "", HANGING),
            ("torn_heartbeat", "SIGKILL", SHORT),
        )
    ),
    Trial("nan_loss@first", "NO-GO", "finite", "loss is nan at step 1"),
    Trial("nan_loss@last", "NO-GO", "finite", "loss is nan at step 60"),
    Trial("inf_gradient@first", "NO-GO", "finite", "grad_norm is inf at step 1"),
    Trial("inf_gradient@last", "NO-GO", "finite", "grad_norm is inf at step 60"),
    *(Trial(f"disk_full@{moment}", "NO-GO", "steps", "OSError") for moment in ("first", "last")),
    *(Trial(f"wrong_backend@{moment}", "NO-GO", "route") for moment in ("first", "last")),
    *(Trial(f"first_key@{moment}", "NO-GO", "attention") for moment in ("first", "last")),
    Trial("future_leak@first", "NO-GO", "choice", parameters=CHOOSING),
    Trial("future_leak@last", "NO-GO", "choice", parameters=CHOOSING),
    *(Trial(f"late_binding@{moment}", "NO-GO", "steps", "no gradient reached") for moment in ("first", "last")),
    *(Trial(f"dead_parameter@{moment}", "NO-GO", "gradients") for moment in ("first", "last")),
    *(Trial(f"unshifted_labels@{moment}", "NO-GO", "train_step") for moment in ("first", "last")),
    Trial("sigkill", "NO-GO", "steps_ddp", "rank 1: killed by SIGKILL", "several_gpus", SHARED),
    Trial("oom", "NO-GO", "steps_ddp", "oom: rank 1", "several_gpus", SHARED),
    *(
        Trial(fault, "NO-GO", "steps_ddp", "rank 1 has not entered it", "several_gpus", WAITING)
        for fault in ("hang_forward", "hang_forward@first", "hang_collective", "hang_collective@first")
    ),
    Trial("mismatched_shapes", "NO-GO", "steps_ddp", "rank 1", "several_gpus", SHARED),
    Trial("slow_rank", "REVIEW", "straggler_ddp", "rank 1", "several_gpus", {**SHARED, "steps": 60}),
    Trial("flipped_bit", "NO-GO", "gradients_fsdp2", "rank 1", "several_gpus", SHARDED),
    Trial("other_data", "NO-GO", "data_ddp", "rank 1", "several_gpus", SHARED),
    Trial("other_seed", "NO-GO", "start_fsdp2", "rank 1", "several_gpus", SHARDED),
)
"""What `make selftest` runs: for each notebook a run without a fault, which must be GO, and for each fault the
notebook, the gate and the verdict that catch it."""


SCHEMA = 1

AT_ONCE = 2
"""Trials that run side by side; a case is one thread."""

LIMIT_S = 300
"""A trial takes seconds. One that takes this long was not caught."""

RED = {"NO-GO": FAIL, "INCOMPLETE": NOT_RUN, "REVIEW": WARN}
"""The outcome of the gate that is the reason for a verdict."""

COLUMNS = ("fault", "notebook", "expected", "got", "gate", "seconds", "caught", "because")
"""Of the table in Markdown, which also says what was planted."""


@dataclass(frozen=True)
class Finding:
    """How one trial ended."""

    fault: str
    planted: str
    """What the fault is, with its size."""
    notebook: str
    expected: str
    """The verdict that it must come to."""
    got: str
    """The verdict that it came to."""
    gate: str
    """The gate that must be the reason."""
    seconds: float
    """From the start of papermill to the verdict."""
    caught: bool
    because: str
    """What that gate said, or what was found in its place."""
    parameters: dict[str, object]


def selftest(reports: Path, trials: Sequence[Trial]) -> int:
    """Run the trials, print each as it ends, write the table as JSON and Markdown, and return the exit status."""
    created, began = datetime.now(timezone.utc), time.monotonic()
    folder = reports / f"selftest-{stamp(created)}"
    folder.mkdir(parents=True)
    findings = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(attempt, trial, folder): trial for trial in trials}
        for ended in as_completed(running):
            findings[running[ended].name] = ended.result()
            say(_told(ended.result()))
    in_order = [findings[trial.name] for trial in trials]
    table = folder.with_suffix(".json")
    write_json(
        table,
        {
            "schema": SCHEMA,
            "created": created.isoformat(),
            "seconds": round(time.monotonic() - began, 1),
            "environment": provenance(QUESTIONS),
            "findings": [asdict(finding) for finding in in_order],
        },
    )
    write_text(folder.with_suffix(".md"), markdown(in_order))
    missed = [finding.fault for finding in in_order if not finding.caught]
    say(f"{len(in_order) - len(missed)} of {len(in_order)} as expected; {table}")
    return 1 if missed else 0


def attempt(trial: Trial, folder: Path) -> Finding:
    """Run one trial through papermill and compare its verdict and gates with what is expected."""
    own = folder / trial.name
    own.mkdir()
    began = time.monotonic()
    status = run_notebook(trial, own)
    seconds = time.monotonic() - began
    got, caught, because = judge(trial, own, status)
    return Finding(
        fault=trial.fault,
        planted={**FAULTS, **FAULTS_AT, **RANK_FAULTS, **RANK_FAULTS_AT}[trial.fault],
        notebook=trial.notebook,
        expected=trial.verdict,
        got=got,
        gate=trial.gate,
        seconds=round(seconds, 1),
        caught=caught,
        because=because,
        parameters=dict(trial.parameters),
    )


def run_notebook(trial: Trial, folder: Path) -> int | None:
    """Execute the trial's notebook as a user would; return papermill's exit status, or None if it took too long."""
    given = papermill.parameters({**trial.parameters, "fault": trial.fault, "out_dir": folder})
    command = papermill.command(notebook_path(trial.notebook), folder / "out.ipynb", *given)
    with (folder / "papermill.log").open("wb") as log:
        try:
            return subprocess.run(command, stdout=log, stderr=log, timeout=LIMIT_S, check=False).returncode
        except subprocess.TimeoutExpired:  # papermill is killed; the kernel and the case end with it
            return None


def judge(trial: Trial, folder: Path, status: int | None) -> tuple[str, bool, str]:
    """Return a trial's verdict, whether it is the one expected for the reason expected, and that reason."""
    if status is None:
        return "nothing", False, f"no end within {LIMIT_S} s"
    try:
        run = open_run("newest", out_dir=folder)
        got = read_verdict(nbformat.read(folder / "out.ipynb", as_version=4)).word
    except (FileNotFoundError, ConfigError) as error:
        return "nothing", False, str(error)
    as_expected = got == trial.verdict and (status == 0) == (got == "GO")
    if trial.verdict == "GO":
        return got, as_expected, "; ".join(run.summary["reasons"])
    gate = next((gate for gate in run.gates if gate.name == trial.gate), None)
    if gate is None:
        return got, False, f"no gate {trial.gate}"
    is_reason = gate.required and gate.outcome == RED[trial.verdict] and trial.says in gate.detail
    if as_expected and is_reason and _is_labelled(run, trial):
        return got, True, gate.detail or f"{gate.measured} instead of {gate.limit}"
    return got, False, f"{gate.outcome}: {gate.detail}; {'; '.join(run.summary['reasons'])}"


def _is_labelled(run: Run, trial: Trial) -> bool:
    """Whether the run says what was planted in it, so that readiness does not count it."""
    return any(said.startswith(f"fault={trial.fault}:") for said in run.info["custom"])


def _cells(finding: Finding, columns: Sequence[str]) -> tuple[str, ...]:
    figures = {**asdict(finding), "caught": "yes" if finding.caught else "NO", "seconds": f"{finding.seconds:.1f}"}
    return tuple(str(figures[name]) for name in columns)


def _told(finding: Finding) -> str:
    """Return a trial in a line, as it is printed when it ends."""
    asked = " by ".join(filter(None, (finding.expected, finding.gate)))
    sign, got = ("✔", "") if finding.caught else ("✘", f"{finding.got}, not ")
    said = f"{sign} {finding.fault}, {finding.notebook}: {got}{asked} ({finding.seconds:.0f} s)"
    return "; ".join(filter(None, (said, finding.because)))


def markdown(findings: Sequence[Finding]) -> str:
    """Return the table in Markdown."""
    columns = (COLUMNS[0], "planted", *COLUMNS[1:])
    rows = [columns, ["---"] * len(columns), *(_cells(finding, columns) for finding in findings)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", *moments_said()]) + "\n"
