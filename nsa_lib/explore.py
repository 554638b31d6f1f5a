"""Questions to a finished run, for a notebook to explore in; and one of its cases again with something changed.

run, other = open_runs(globals())
again = rerun(run, "training", steps=20, w=256)

Nothing here needs torch until a case is run again, and that runs in a process of its own.
"""

from __future__ import annotations

import math
import numbers
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pandas as pd

from nsa_lib import charts, environment
from nsa_lib.allocator import AllocatorSettings
from nsa_lib.config import CaseConfig, ConfigError, ModelConfig, NSAConfig
from nsa_lib.gates import FAIL
from nsa_lib.parameters import PARAMETERS, Parameter, read_parameters, read_value
from nsa_lib.plan import Plan, require_data
from nsa_lib.profiles import Value
from nsa_lib.readiness import out_dir_of
from nsa_lib.runnable import why_not_fused_here
from nsa_lib.runner import execute
from nsa_lib.store import Run, compare, judged_run, machine_name, record

NEWEST = "newest"
RERUN = "rerun of "
"""How the `custom` of a run begins that repeats a case of another."""

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
    read = read_parameters("explore", namespace, namespace.get("In", ()))
    runs = out_dir_of(read) / "runs"
    other = str(read["other"])
    return _opened("run", str(read["run"]), runs), _opened("other", other, runs) if other else None


def _opened(parameter: str, which: str, runs: Path) -> Run:
    if which == NEWEST:
        return judged_run(_newest(parameter, runs))
    for folder in (Path(which).expanduser(), runs / which):
        if (folder / "run.json").exists():
            return judged_run(folder)
    raise ConfigError(f"{parameter}={which!r}: accepts a run folder, the name of one in {runs}, or {NEWEST}")


def _newest(parameter: str, runs: Path) -> Path:
    """Return the newest run that has cases and is no rerun: opening it again after a rerun gives the same one."""
    found = {}
    for path in runs.glob("*/run.json"):
        try:
            info = Run(path.parent).info
        except ConfigError:  # a broken run is in nobody's way
            continue
        if info.get("case_ids") and not any(str(said).startswith(RERUN) for said in info.get("custom", ())):
            found[path.parent] = str(info.get("created", ""))
    if not found:
        raise ConfigError(f"{parameter}={NEWEST}: no run in {runs}; accepts also the path of a run folder")
    return max(found, key=found.get)


def overview(run: Run) -> dict[str, object]:
    """Return what a run was and what it said."""
    facts = run.info["environment"]
    return {
        "run": run.info["run_id"],
        "notebook": run.info["notebook"],
        "profile": run.info["profile"],
        "custom": "; ".join(run.info["custom"]) or None,
        "verdict": run.verdict,
        "headline": run.summary["headline"],
        "reasons": "; ".join(run.summary["reasons"]) or None,
        "made at (UTC)": run.info["created"],
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
    """Return what differs between two runs (`store.compare`), without a row where there is no second run."""
    if other is None:
        return pd.DataFrame(columns=["kind", "name", run.info["run_id"], "no second run"])
    return compare(run, other)


def overlaid(run: Run, other: Run | None, column: str, title: str, unit: str) -> charts.Chart:
    """Draw a column of the steps of two runs over each other (`charts.overlay`)."""
    if other is None:
        return charts.nothing(title, unit, 'no second run; name one with the parameter "other"')
    return charts.overlay(run, other, column, title, unit)


@dataclass(frozen=True)
class Rerun(Plan):
    """The plan of one case again; `values` are the first run's, where the case took its own from them."""

    call: str = ""
    """The Python that asks for it again."""

    @property
    def reproduce(self) -> str:
        """The command that repeats this run."""
        lines = "from nsa_lib.explore import rerun; from nsa_lib.store import open_run; "
        return shlex.join(["python", "-c", lines + self.call])

    @property
    def notices(self) -> list[str]:
        """What a user should know before the run starts, a sentence each."""
        return [f"{self.custom[0]}. One case is no whole run: its verdict is INCOMPLETE or worse, and never counts."]


def rerun(run: Run, case_id: str | None, /, *, out_dir: str | Path | None = None, **changes: object) -> Run:
    """Run one case of a run again with some fields changed, supervised as ever, and return the new run.

    Args:
        run: keeps the case as it was run.
        case_id: one of its cases.
        out_dir: where runs/ is kept; beside the run by default, or the project's if the run is not in such a folder.
        changes: fields of CaseConfig, ModelConfig and NSAConfig by name.

    Raises:
        ConfigError: in one line, before any work, for a name or value that is not accepted, or a missing device.
    """
    environment.refuse_many_processes()
    before = recorded_case(run, case_id)
    case = changed_case(before, changes)
    facts = environment.torch_facts()
    _require_runnable(case, facts)
    where = Path(out_dir or _reports_of(run)).expanduser().resolve()
    environment.require_room(where)
    given = {name: _field(case, name) for name in changes}
    said = ", ".join(f"{name}={value}" for name, value in given.items()) or "unchanged"
    asked = "".join(f", {name}={value!r}" for name, value in given.items())
    plan = Rerun(
        notebook=str(run.info["notebook"]),
        profile=str(run.info["profile"]),
        values=_values(run, before, given),
        custom=(f"{RERUN}{run.info['run_id']}: case {case_id}, {said}", *run.info["custom"]),
        cases=(case,),
        environment={**facts, **environment.machine_facts(), **environment.provenance()},
        out_dir=where,
        call=f"rerun(open_run({str(run.folder.resolve())!r}), {case_id!r}{asked})",
    )
    return record(execute(plan))


def _reports_of(run: Run) -> Path:
    runs = run.folder.resolve().parent
    return runs.parent if runs.name == "runs" else environment.PROJECT / "reports"


def recorded_case(run: Run, case_id: str | None) -> CaseConfig:
    """Return a case as it was run. Raises ConfigError if the run has none of that name, or its file is not one."""
    if case_id not in run.info["case_ids"]:
        names = ", ".join(run.info["case_ids"]) or "none: this run has no cases"
        raise ConfigError(f"case_id={case_id!r}: accepts {names}")
    path = run.folder / "cases" / case_id / "case.json"
    try:
        return CaseConfig.from_json(path.read_text())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{path}: not a case that this library can run ({type(error).__name__}: {said})") from None


NOT_TO_CHANGE = ("case_id", "model", "nsa")


def changed_case(case: CaseConfig, changes: Mapping[str, object]) -> CaseConfig:
    """Return a case with fields of it, its model or its attention changed. Raises ConfigError for what is refused."""
    owners = _owners(case)
    for name in changes:
        if name not in owners:
            raise ConfigError(f"{name}: no such field of a case; accepts {', '.join(owners)}")
    read = {name: _read_field(name, value, getattr(owners[name], name)) for name, value in changes.items()}

    def with_own(config, **parts):
        return replace(config, **{name: read[name] for name in read if owners[name] is config}, **parts)

    return with_own(case, model=with_own(case.model, nsa=with_own(case.model.nsa)))


def _owners(case: CaseConfig) -> dict[str, CaseConfig | ModelConfig | NSAConfig]:
    """Return the part of a case that each field belongs to."""
    parts = (case, case.model, case.model.nsa)
    return {field.name: part for part in parts for field in fields(part) if field.name not in NOT_TO_CHANGE}


def _field(case: CaseConfig, name: str) -> object:
    return getattr(_owners(case)[name], name)


def _read_field(name: str, value: object, before: object) -> object:
    """Return a field's value, read as strictly as a parameter."""
    if name in ("branches", "backends"):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name}={value!r}: accepts a list of names")
        return tuple(map(str, value))
    kind = list if isinstance(before, tuple) else type(before)
    declared = PARAMETERS["smoke"].get(name) or Parameter(kind, "")
    read = read_value({name: replace(declared, default=before)}, name, value)
    return str(Path(read).expanduser().resolve()) if name == "data" and read != "synthetic" else read


def _require_runnable(case: CaseConfig, facts: Mapping[str, object]) -> None:
    if case.device == "cuda" and not facts["cuda_usable"]:
        raise ConfigError(f"device=cuda: needs a CUDA device ({facts['cuda_problem']}); here accepts cpu")
    if case.needs_fused and (problem := why_not_fused_here(facts)):
        raise ConfigError(problem)
    if case.device == "cpu":
        AllocatorSettings.parse(case.alloc_conf)
    require_data(case)


def _values(run: Run, before: CaseConfig, given: Mapping[str, object]) -> dict[str, Value]:
    """Return the first run's parameters, changed where the case took its value from them.

    The steps of a scaling's length, say, are other than the parameter `steps`, and stay out of it.
    """
    rows = {row["name"]: row for row in run.info["parameters"]}
    values = {name: Value(name, row["value"], row["origin"], row["checklist"]) for name, row in rows.items()}
    for name, value in given.items():
        if name in values and values[name].value == _field(before, name):
            values[name] = replace(values[name], value=value, origin="given")
    return {**values, "tag": Value("tag", "rerun", "given", None)}
