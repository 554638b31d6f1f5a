"""Questions to a finished run, for a notebook that explores: `run, other = open_runs(globals())`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from nsa_lib.judgement.gate import FAIL
from nsa_lib.report.charts.chart import Chart, nothing
from nsa_lib.report.charts.overlay import overlay
from nsa_lib.runs import environment
from nsa_lib.runs.found import NEWEST, find, runs_in
from nsa_lib.runs.recorded import machine_name
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.comparison import NO_SECOND
from nsa_lib.workbook.explore.parameters import REQUEST
from nsa_lib.workbook.explore.rerun import RERUN
from nsa_lib.workbook.run import Run, compare, judged_run

SLOW_MADS = 5
"""A step is slow from this many median absolute deviations above the median."""

TIMED_ALIKE = ["case_id", "subject", "branches", "backend", "seq_len"]
"""Steps that agree in these did the same work; all but the case are those of a timing."""


def open_runs(namespace: Mapping[str, object]) -> tuple[Run, Run | None]:
    """Return the run that a notebook asks for, and the second one or None.

    Args:
        namespace: the notebook's globals, parameters and IPython's `In` among them.

    Raises:
        ConfigError: in one line, for a parameter that is not accepted, a run that does not exist or cannot be read.
    """
    read = REQUEST.read(namespace)
    out_dir, other = environment.out_dir_of(read["out_dir"]), str(read["other"])
    return _opened("run", str(read["run"]), out_dir), _opened("other", other, out_dir) if other else None


def _opened(parameter: str, which: str, out_dir: Path) -> Run:
    if which == NEWEST:
        return judged_run(_newest(parameter, out_dir))
    try:
        folder = find(which, out_dir)
    except FileNotFoundError as error:
        raise ConfigError(f"{parameter}={error}") from None
    return judged_run(folder)


def _newest(parameter: str, out_dir: Path) -> Path:
    """Return the newest run that has cases and is no rerun: opening it again after a rerun gives the same one."""
    for found in runs_in(out_dir):  # one that cannot be read has no cases
        if found.info.get("case_ids") and not any(said.startswith(RERUN) for said in found.custom):
            return found.folder
    if problem := next((found.problem for found in runs_in(out_dir) if found.problem), ""):
        raise ConfigError(problem)
    raise ConfigError(f"{parameter}={NEWEST}: no run in {out_dir / 'runs'}; accepts also the path of a run folder")


def overview(run: Run) -> dict[str, object]:
    """Return what a run was and what it said."""
    facts = run.info["environment"]
    return {
        "run": run.info["run_id"],
        "notebook": run.info["notebook"],
        "on trial": run.summary["on_trial"] or None,
        "profile": run.info["profile"],
        "custom": "; ".join(run.info["custom"]) or None,
        "verdict": run.verdict,
        "headline": run.summary["headline"],
        "reasons": "; ".join(run.summary["reasons"]) or None,
        "made at (UTC)": str(run.info["created"])[:19].replace("T", " "),
        "machine": machine_name(run.info),
        "torch": facts.get("torch"),
        "git commit": facts.get("git_commit"),
        "folder": str(run.folder),
    }


def closest_gates(run: Run) -> pd.DataFrame:
    """Return the gates that measured a number against one, the closest to its limit first.

    `distance_percent` is what is left to the limit, of the limit; negative beyond it. A gate without one, because its
    limit is 0 or must be met exactly, comes last.
    """
    rows = [
        {**asdict(gate), "distance_percent": _distance_percent(asdict(gate))}
        for gate in run.gates
        if _is_number(gate.measured) and _is_number(gate.limit)
    ]
    columns = ["name", "outcome", "required", "measured", "limit", "unit", "distance_percent"]
    return pd.DataFrame(rows, columns=columns).sort_values("distance_percent", ignore_index=True)


def _distance_percent(gate: Mapping[str, object]) -> float:
    if gate["limit"] == 0 or (gate["margin"] is None and gate["measured"] == gate["limit"]):
        return math.nan
    sign = -1 if gate["outcome"] == FAIL else 1
    left = sign * abs(gate["limit"] - gate["measured"]) if gate["margin"] is None else gate["margin"]
    return 100 * left / abs(gate["limit"])


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def slow_steps(run: Run) -> pd.DataFrame:
    """Return the steps after warm-up that took more than the median of their like and 5 median absolute deviations."""
    steps = run.steps[run.steps["phase"] == "step"]
    alike = steps.groupby(TIMED_ALIKE, sort=False, dropna=False)["step_ms"]
    median_ms = alike.transform("median")
    off_ms = (steps["step_ms"] - median_ms).abs()
    mad_ms = off_ms.groupby([steps[name] for name in TIMED_ALIKE], sort=False, dropna=False).transform("median")
    found = steps[["case_id", "step", "step_ms"]].assign(
        median_ms=median_ms, limit_ms=median_ms + SLOW_MADS * mad_ms, times=steps["step_ms"] / median_ms
    )
    return found[found["step_ms"] > found["limit_ms"]].reset_index(drop=True)


def differences(run: Run, other: Run | None) -> pd.DataFrame:
    """Return what differs between two runs (`run.compare`), without a row where there is no second run."""
    if other is None:
        return pd.DataFrame(columns=["kind", "name", run.info["run_id"], NO_SECOND])
    return compare(run, other)


def overlaid(run: Run, other: Run | None, column: str, title: str, unit: str) -> Chart:
    """Draw a column of the steps of two runs over each other (`overlay`)."""
    if other is None:
        return nothing(title, unit, f'{NO_SECOND}; name one with the parameter "other"')
    return overlay(run, other, column, title, unit)
