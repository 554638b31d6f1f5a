"""Run one case of a finished run again, with something changed, supervised like any other."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from nsa_lib.contract.allocator import AllocatorSettings
from nsa_lib.contract.backends import why_not_fused_here
from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs import environment
from nsa_lib.runs.parameters import Parameter, Value, read_value
from nsa_lib.runs.plan import Plan, require_judgeable, tried
from nsa_lib.runs.provenance import provenance
from nsa_lib.runs.runner import execute
from nsa_lib.subject.config import ConfigError, ModelConfig, NSAConfig
from nsa_lib.workbook.questions import QUESTIONS, judged
from nsa_lib.workbook.run import Run, record

RERUN = "rerun of "
"""The first words of `custom` in a run that repeats a case of another run."""

NOT_TO_CHANGE = ("case_id", "model", "nsa")


@dataclass(frozen=True)
class Rerun(Plan):
    """The plan of one case again; `values` are the first run's, where the case took its own from them."""

    call: str = ""
    """The Python that asks for it again."""

    @property
    def reproduce(self) -> str:
        """The command that repeats this run."""
        lines = "from nsa_lib.workbook.explore.rerun import rerun; from nsa_lib.workbook.run import open_run; "
        return shlex.join(["python", "-c", lines + self.call])

    @property
    def notices(self) -> list[str]:
        """What a user should know before the run starts, a sentence each."""
        said = [f"on trial: {self.on_trial['label']}."] if self.on_trial else []
        return [*said, f"{self.custom[0]}. One case is no whole run: its verdict is INCOMPLETE or worse."]


def rerun(run: Run, case_id: str | None, /, *, out_dir: str | Path | None = None, **changes: object) -> Run:
    """Run one case of a run again with some fields changed, and return the new run.

    Args:
        run: keeps the case as it was run.
        case_id: one of its cases; None, as a run without steps has for its main case, is the first.
        out_dir: where runs/ is kept; beside the run by default, or the project's if the run is not in such a folder.
        changes: fields of CaseConfig, ModelConfig and NSAConfig by name.

    Raises:
        ConfigError: in one line, before any work, for a name or value that is not accepted, a missing device, or a
            user's code that is not there or cannot be used.
    """
    environment.refuse_many_processes()
    before = recorded_case(run, case_id or next(iter(run.info["case_ids"]), None))
    case = changed_case(before, changes)
    facts = environment.torch_facts()
    _require_runnable(case, facts)
    where = environment.out_dir_of(out_dir or _out_dir(run))
    environment.require_room(where)
    given = {name: _field(case, name) for name in changes}
    said = ", ".join(f"{name}={value}" for name, value in given.items()) or "unchanged"
    asked = "".join(f", {name}={value!r}" for name, value in given.items())
    plan = Rerun(
        request=QUESTIONS[str(run.info["notebook"])].request,
        profile=str(run.info["profile"]),
        values=_values(run, before, given),
        custom=(f"{RERUN}{run.info['run_id']}: case {case_id}, {said}", *run.info["custom"]),
        backends=run.backends,
        cases=(case,),
        environment={**facts, **environment.machine_facts(), **provenance(judged())},
        out_dir=where,
        on_trial=tried([case]),
        call=f"rerun(open_run({str(run.folder.resolve())!r}), {case_id!r}{asked})",
    )
    return record(execute(plan))


def _out_dir(run: Run) -> Path | None:
    """Return the folder that holds the run's runs/, or None if the run lies in no such folder."""
    return run.out_dir if run.folder.resolve().parent.name == "runs" else None


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
    declared = next((q.request.parameters[name] for q in QUESTIONS.values() if name in q.request.parameters), None)
    declared = declared or Parameter(kind, "")
    read = read_value({name: replace(declared, default=before)}, name, value)
    return str(Path(read).expanduser().resolve()) if name == "data" and read != "synthetic" else read


def _require_runnable(case: CaseConfig, facts: Mapping[str, object]) -> None:
    if case.device == "cuda" and not facts["cuda_usable"]:
        raise ConfigError(f"device=cuda: needs a CUDA device ({facts['cuda_problem']}); here accepts cpu")
    if case.needs_fused and (problem := why_not_fused_here(facts)):
        raise ConfigError(problem)
    if case.device == "cpu":
        AllocatorSettings.parse(case.alloc_conf)
    require_judgeable([case])


def _values(run: Run, before: CaseConfig, given: Mapping[str, object]) -> dict[str, Value]:
    """Return the first run's parameters, changed where the case took its value from them.

    A length of a scaling, say, has other steps than the parameter `steps`, which then stays as it was.
    """
    declared = QUESTIONS[str(run.info["notebook"])].request.parameters  # an older library's run may lack one
    values = {name: Value(name, parameter.default, "default", None) for name, parameter in declared.items()}
    rows = {row["name"]: row for row in run.info["parameters"]}
    values |= {name: Value(name, row["value"], row["origin"], row["checklist"]) for name, row in rows.items()}
    for name, value in given.items():
        if name in values and values[name].value == _field(before, name):
            values[name] = replace(values[name], value=value, origin="given")
    return {**values, "tag": Value("tag", "rerun", "given", None)}
