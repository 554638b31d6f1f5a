"""Run folders: from what the worker and the runner left to two frames, a summary, figures; and back, on any machine.

from nsa_lib.store import open_run
run = open_run("newest")          # or the path of a run folder, also one copied from another machine
run.steps, run.figures["memory"], run.verdict
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from nsa_lib import charts, gates
from nsa_lib.config import WARMUP_STEPS, ConfigError
from nsa_lib.environment import PROJECT
from nsa_lib.evidence import Evidence
from nsa_lib.profiles import PROFILES
from nsa_lib.runner import StopButton, write_json, write_text
from nsa_lib.scaling import layer_rows
from nsa_lib.telemetry import HeartbeatReader

SCHEMA = 1

STEP_COLUMNS = (
    "case_id", "step", "phase", "ts", "loss", "grad_norm", "step_ms", "tokens_per_s", "alloc_mib", "reserved_mib",
    "active_mib", "peak_alloc_mib", "peak_reserved_mib", "peak_alloc_forward_mib", "peak_alloc_backward_mib",
    "peak_alloc_optimizer_mib", "peak_reserved_forward_mib", "peak_reserved_backward_mib",
    "peak_reserved_optimizer_mib", "forward_ms", "backward_ms", "alloc_retries", "ooms", "device_allocs", "ops",
    "subject", "branches", "backend", "seq_len",
)  # fmt: skip
CASE_COLUMNS = (
    "case_id", "status", "reason", "steps_done", "seconds", "exit_code", "state_mib", "device_total_mib", "routes",
    "attention_error", "selected_error", "operators", "effective", "attention_map", "checks", "prediction",
    "stderr_tail", "torn_heartbeat",
)  # fmt: skip
JSON_COLUMNS = (
    "routes", "attention_error", "selected_error", "operators", "effective", "attention_map", "checks", "prediction",
)  # fmt: skip
TEXT_COLUMNS = ("status", "reason", "stderr_tail")
STEP_TEXT_COLUMNS = ("subject", "branches", "backend")


@dataclass(frozen=True)
class Reading:
    """How the runs of one notebook are read."""

    gates: Callable[[Evidence], list[gates.GateResult]]
    advice: Callable[[Evidence], list[str]]
    headline: Callable[[Evidence], str]
    figures: Callable[[Evidence], dict[str, go.Figure]]


READINGS = {
    "preflight": Reading(
        gates.preflight_gates, gates.preflight_advice, gates.preflight_headline, charts.preflight_figures
    ),
    "backward_scaling": Reading(
        gates.scaling_gates, gates.scaling_advice, gates.scaling_headline, charts.scaling_figures
    ),
    "smoke": Reading(gates.smoke_gates, gates.smoke_advice, gates.smoke_headline, charts.smoke_figures),
    "backend_contrast": Reading(
        gates.contrast_gates, gates.contrast_advice, gates.contrast_headline, charts.contrast_figures
    ),
    "readiness": Reading(gates.readiness_gates, gates.readiness_advice, gates.readiness_headline, charts.no_figures),
}


class Run:
    """A run folder, read: `.info .cases .steps .verdict .summary .figures`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.info: Mapping[str, object] = _read_json(folder / "run.json")

    @cached_property
    def cases(self) -> pd.DataFrame:
        """A row a case: how it ended, and what only the worker knew."""
        path = self.folder / "cases.csv"
        frame = _read_csv(path) if path.exists() else _cases_frame(self.folder, self.info["case_ids"])
        frame = frame.reindex(columns=CASE_COLUMNS)  # an older library kept fewer of them
        texts = {name: frame[name].astype(object).fillna("") for name in TEXT_COLUMNS}
        return frame.assign(**texts)  # CSV does not tell an empty text from a missing one

    @cached_property
    def steps(self) -> pd.DataFrame:
        """A row a step of each case: loss, times, memory in MiB."""
        path = self.folder / "steps.csv"
        frame = _read_csv(path) if path.exists() else _steps_frame(self.folder, self.info["case_ids"])
        return frame.reindex(columns=STEP_COLUMNS)

    @cached_property
    def evidence(self) -> Evidence:
        """The run as the gates read it."""
        return Evidence(self.info, self.cases, self.steps)

    @cached_property
    def gates(self) -> list[gates.GateResult]:
        """The gates, judged."""
        return self._reading.gates(self.evidence)

    @property
    def verdict(self) -> str:
        """GO, REVIEW, NO-GO or INCOMPLETE."""
        return self.summary["verdict"]

    @cached_property
    def summary(self) -> dict[str, object]:
        """What summary.json holds, and the headline."""
        word, reasons = gates.verdict(self.gates)
        named = ("run_id", "notebook", "profile", "custom")
        return {
            "schema": SCHEMA,
            **{name: self.info[name] for name in named},
            "verdict": word,
            "headline": self._headline(word),
            "reasons": reasons,
            "gates": [asdict(gate) for gate in self.gates],
            "advice": self._reading.advice(self.evidence),
            "parameters": self.info["parameters"],
            "environment": self.info["environment"],
            "cases": json.loads(self.cases.drop(columns=[*JSON_COLUMNS]).to_json(orient="records")),
        }

    def _headline(self, word: str) -> str:
        outcome, said = {
            "GO": (gates.PASS, "passed"),
            "REVIEW": (gates.WARN, "warn"),
            "NO-GO": (gates.FAIL, "failed"),
            "INCOMPLETE": (gates.NOT_RUN, "did not run"),
        }[word]
        # A warning counts wherever it is; the rest is decided by the required gates.
        kind = "gates" if word == "REVIEW" else "required gates"
        outcomes = [gate.outcome for gate in self.gates if gate.required or word == "REVIEW"]
        said = f"{outcomes.count(outcome)} of {len(outcomes)} {kind} {said}"
        return f"{said}; {self._reading.headline(self.evidence)}"

    @cached_property
    def figures(self) -> dict[str, go.Figure]:
        """The notebook's charts, by name."""
        return self._reading.figures(self.evidence)

    @property
    def _reading(self) -> Reading:
        notebook = str(self.info["notebook"])
        if notebook not in READINGS:
            raise ConfigError(f"{self.folder}: a run of {notebook}, which this library does not know")
        return READINGS[notebook]


def open_run(which: str | Path = "newest", *, out_dir: str | Path | None = None) -> Run:
    """Return a run, without importing torch.

    Args:
        which: path of a run folder, or "newest".
        out_dir: where to look for the newest; the project's reports/ by default.

    Raises:
        FileNotFoundError: if there is no such run.
        ConfigError: naming the file, if it cannot be read; another run that is broken is in nobody's way.
    """
    if which == "newest":
        runs = Path(out_dir or PROJECT / "reports") / "runs"
        found = [path.parent for path in runs.glob("*/run.json")]
        if not found:
            raise FileNotFoundError(f"no run in {runs}")
        return Run(max(found, key=_created))
    folder = Path(which)
    if not (folder / "run.json").exists():
        raise FileNotFoundError(f"{folder}: not a run folder, it has no run.json")
    return Run(folder)


def _created(folder: Path) -> str:
    """Return when a run began, or, if its run.json is broken, when that was written."""
    path = folder / "run.json"
    try:
        return json.loads(path.read_text())["created"]
    except (json.JSONDecodeError, KeyError):
        return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat()


def counterpart(run: Run, notebook: str) -> Run | None:
    """Return the newest run of another notebook with the same sizes on the same machine, or None if there is none.

    Its layers, length, steps and checkpointing may be its own; a custom run is nobody's counterpart.
    """
    found = []
    for path in run.folder.parent.glob(f"{notebook}-*/run.json"):
        try:
            other = Run(path.parent)
        except ConfigError:  # a broken run is in nobody's way
            continue
        if not other.info["custom"] and _same_configuration(run, other):
            found.append(other)
    return max(found, key=lambda other: other.info["created"], default=None)


def smoke_prediction(run: Run) -> charts.Chart:
    """Draw what a scaling's train steps predict for the smoke's peak, beside the newest measured one."""
    smoke = counterpart(run, "smoke")
    measured = None if smoke is None else smoke.evidence.of("training")["peak_alloc_mib"].max()
    layers = int(PROFILES["smoke"][run.info["profile"]]["layers"])
    return charts.peak_against_layers(layer_rows(run.evidence), layers, measured)


SHARED_PARAMETERS = (
    "profile", "dim", "heads", "groups", "d_k", "d_v", "l", "d", "l_sel", "n_sel", "w", "phi", "vocab", "batch",
    "dtype", "device", "backend",
)  # fmt: skip
SHARED_FACTS = ("torch", "gpu")


def _same_configuration(run: Run, other: Run) -> bool:
    same_parameters = all(run.evidence.parameter(name) == other.evidence.parameter(name) for name in SHARED_PARAMETERS)
    return same_parameters and all(
        run.info["environment"].get(name) == other.info["environment"].get(name) for name in SHARED_FACTS
    )


MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, StopIteration)
"""What reading a folder can raise whose files are not what they should be."""


def judged_run(folder: str | Path) -> Run:
    """Return a run that was read to its end and judged; all that follows finds it whole.

    Raises:
        ConfigError: in one line, if a file of it is missing, newer than this library, or not what it should be.
    """
    try:
        run = open_run(folder)
        _ = (run.summary, _facts(run), machine_name(run.info))
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from None
    except MALFORMED as error:
        said = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{folder}: cannot be read ({type(error).__name__}: {said})") from error
    return run


def key_figures(run: Run) -> dict[str, float | None]:
    """Return the figures by which runs are compared: highest peaks in MiB, median pace and last loss of the training.

    A notebook that trains nothing has peaks alone, over all its cases.
    """
    training = run.evidence.of("training")
    settled = training[training["step"] > WARMUP_STEPS]
    everything = training if len(training) else run.steps
    figures = {
        "peak_alloc_mib": everything["peak_alloc_mib"].max(),
        "peak_reserved_mib": everything["peak_reserved_mib"].max(),
        "tokens_per_s": settled["tokens_per_s"].median(),
        "step_ms": settled["step_ms"].median(),
        "loss": training["loss"].iloc[-1] if len(training) else None,
    }
    finite = {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}
    return {name: float(finite[name]) if name in finite else None for name in figures}


def machine_name(info: Mapping[str, object]) -> str | None:
    """Return the GPU, or else the processor, that a run was made on."""
    environment = info["environment"]
    return environment.get("gpu") or environment.get("cpu")


def record(folder: Path) -> Run:
    """Write cases.csv, steps.csv and summary.json of a run that has ended, and return it."""
    run = Run(folder)
    with StopButton():  # a second press on the heels of the first must not stop what saves the run
        write_text(folder / "cases.csv", run.cases.to_csv(index=False))
        write_text(folder / "steps.csv", run.steps.to_csv(index=False))
        write_json(folder / "summary.json", run.summary)
    return run


def compare(run_a: Run, run_b: Run) -> pd.DataFrame:
    """Return what differs between two runs, a row each: parameters, environment, gates with their figures, figures."""
    rows = []
    for kind, facts_a, facts_b in zip(COMPARED, _facts(run_a), _facts(run_b)):
        for name in sorted({*facts_a, *facts_b}):
            if facts_a.get(name) != facts_b.get(name):
                rows.append((kind, name, facts_a.get(name), facts_b.get(name)))
    run_id_a, run_id_b = run_a.info["run_id"], run_b.info["run_id"]
    again = " (again)" if run_id_b == run_id_a else ""  # a run and a copy of it
    return pd.DataFrame(rows, columns=["kind", "name", run_id_a, f"{run_id_b}{again}"])


COMPARED = ("parameter", "environment", "gate", "figure")


def _facts(run: Run) -> tuple[dict[str, object], ...]:
    parameters = {p["name"]: p["value"] for p in run.info["parameters"]}
    # As text each: a frame would make of a missing fact a NaN, which differs from itself.
    environment = {k: str(v) for k, v in pd.json_normalize(run.info["environment"]).iloc[0].to_dict().items()}
    judged = {
        gate.name: gate.outcome if gate.measured is None else f"{gate.outcome} {gate.measured} {gate.unit}".rstrip()
        for gate in run.gates
    }
    return parameters, environment, judged, {"verdict": run.verdict, **key_figures(run)}


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # bytes that are no text among them
        raise ConfigError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or type(content.get("schema")) is not int:
        raise ConfigError(f"{path}: it has no schema")
    if content["schema"] > SCHEMA:
        raise ConfigError(f"{path}: schema {content['schema']} is newer than this library reads ({SCHEMA})")
    return content


def _read_csv(path: Path) -> pd.DataFrame:
    """Return a frame as it was written: the status `nan` is a text and no missing value, a reason `137` no number."""
    texts = dict.fromkeys((*TEXT_COLUMNS, *JSON_COLUMNS, *STEP_TEXT_COLUMNS), str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])


def _cases_frame(folder: Path, case_ids: list[str]) -> pd.DataFrame:
    rows = []
    for case_id in case_ids:
        path = folder / "cases" / case_id / "result.json"
        result = _read_json(path) if path.exists() else {"status": "interrupted", "reason": "no result was written"}
        reader = HeartbeatReader(path.with_name("heartbeat.jsonl"))
        done = sum(beat["step"] is not None for beat in reader.read())
        row = {"case_id": case_id, "steps_done": done, **result, "torn_heartbeat": reader.torn}
        prediction = path.with_name("prediction.json")
        if prediction.exists():
            row["prediction"] = _read_json(prediction)
        rows.append({k: json.dumps(v) if k in JSON_COLUMNS else v for k, v in row.items()})
    return pd.DataFrame(rows).reindex(columns=CASE_COLUMNS)


def _steps_frame(folder: Path, case_ids: list[str]) -> pd.DataFrame:
    rows = []
    for case_id in case_ids:
        beats = HeartbeatReader(folder / "cases" / case_id / "heartbeat.jsonl").read()
        rows += [{"case_id": case_id, **beat} for beat in beats if beat["step"] is not None]
    return pd.DataFrame(rows).reindex(columns=STEP_COLUMNS)
