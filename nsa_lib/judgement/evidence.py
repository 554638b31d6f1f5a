"""The gate over the evidence itself: whether run.json, case.json and what the workers found are of one run.

A worker writes into its first heartbeat what it ran from (`contract.origin`); the runner lists the sums of the files
that a case has left (`runs.sums`). A file that says otherwise has been changed since, or belongs to another run: then
nothing that is judged of it counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone

from nsa_lib.contract.figures import counted
from nsa_lib.contract.origin import MACHINE
from nsa_lib.judgement.gate import NOT_RUN, PASS, GateResult, ended_well
from nsa_lib.runs.found import CLOCK_S
from nsa_lib.runs.recorded import Recorded
from nsa_lib.runs.request import Request
from nsa_lib.runs.sums import SUMS
from nsa_lib.subject.config import ConfigError

AS_ASKED = (
    "layers", "dim", "heads", "groups", "d_k", "d_v", "l", "d", "l_sel", "n_sel", "w", "phi", "vocab", "seq_len",
    "batch", "steps", "dtype", "grad_checkpointing", "compile", "lr", "seed", "device", "alloc_conf",
    "device_budget_gib", "fault",
)  # fmt: skip
"""Parameters that cases have under the same names, one of them at least with the same value."""

SHOWN = 3
"""Contradictions that the gate's detail names."""


def evidence_gate(run: Recorded, request: Request) -> GateResult:
    """Judge that nothing that was recorded contradicts anything else that was."""
    gate = GateResult("evidence", True, NOT_RUN, limit=0, unit="contradictions")
    found = [*run.changed, *_of_cases(run), *_of_plan(run, request), *_of_parameters(run), *_of_time(run)]
    if found:
        more = f"; {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return replace(gate, measured=len(found), detail="; ".join(found[:SHOWN]) + more)
    told = sum(case["origin"] is not None for case in run.each_case())
    detail = f"{told} of {counted(len(run.cases), 'case')} ran what case.json and run.json say, where and when they say"
    detail += f"; no file differs from {SUMS}"
    return replace(gate, outcome=PASS, measured=0, detail=detail)


def _of_cases(run: Recorded) -> Iterator[str]:
    """Yield what the worker of a case found otherwise than run.json and case.json say."""
    facts = run.info["environment"]
    for case in run.each_case():
        case_id, origin = case["case_id"], case["origin"]
        if origin is None:
            if ended_well(case) or case["steps_done"]:
                yield f"{case_id}: its worker did not say what it ran"
            continue
        if origin["case_sha256"] != case["case_sha256"]:
            yield f"{case_id}: its case.json is not the one that its worker read"
        ran, tried = case["on_trial"], run.info.get("on_trial") or {}
        if ran is not None and ran["file_sha256"] != tried.get("file_sha256"):
            yield f"{case_id}: it ran another {ran['label']} than was tried before the run"
        for name in MACHINE:
            told, here = facts.get(name), origin.get(name)
            if here is not None and told != here:
                yield f"{case_id}: {name} {here}, in run.json {told}"


def _of_parameters(run: Recorded) -> Iterator[str]:
    """Yield the parameters whose value no case has.

    They are read here by their names: the code that makes cases of them would agree with itself.
    """
    asked = [case["asked"] for case in run.each_case() if case["asked"] is not None]
    cases = [{**(case["model"].get("nsa") or {}), **case["model"], **case} for case in asked]
    for row in run.info["parameters"]:
        name, value = row["name"], row["value"]
        told = [case[name] for case in cases if name in case]
        # A notebook may take more steps than it counts.
        is_there = max(told, default=value) >= value if name == "steps" else value in told
        if name in AS_ASKED and told and not is_there:
            yield f"{name}={value} is in run.json, no case has it"


def _of_plan(run: Recorded, request: Request) -> Iterator[str]:
    """Yield the cases that are not those which the parameters in run.json make."""
    try:
        values = request.recorded(run.info["parameters"], profile=str(run.info["profile"]))
        planned = {case.case_id: json.loads(case.to_json()) for case in request.cases(values, run.backends)}
    except ConfigError as error:
        yield f"the parameters in run.json make no run: {error}"
        return
    if {*planned} != {*run.info["case_ids"]}:
        yield f"run.json has the cases {', '.join(run.info['case_ids'])}, its parameters make {', '.join(planned)}"
    for case in run.each_case():
        if case["asked"] is not None and case["case_id"] in planned:
            yield from _differences(case["case_id"], planned[case["case_id"]], case["asked"])


def _differences(name: str, planned: Mapping[str, object], asked: Mapping[str, object]) -> Iterator[str]:
    """Yield the fields of a case that are not as its run's parameters make them.

    An older library's cases lack fields. A text file is named by its place, and a package looked
    for in places, which are others on another machine.
    """
    for field in (field for field in planned if field in asked):
        one, other = planned[field], asked[field]
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(f"{name} {field}", one, other)
        elif field == "places" or (field == "data" and "synthetic" not in (one, other)):
            continue
        elif one != other:
            yield f"{name}: {field}={other}, by the parameters in run.json {one}"


def _of_time(run: Recorded) -> Iterator[str]:
    """Yield it if the run began after its first sign of life, or later than now."""
    created = datetime.fromisoformat(str(run.info["created"])).timestamp()
    began = [case["began"] for case in run.each_case() if case["began"] is not None]
    if began and created > min(began) + CLOCK_S:
        yield f"run.json says {run.info['created']}, its workers ran before, or a clock was set back meanwhile"
    if max([created, *began]) > datetime.now(timezone.utc).timestamp() + CLOCK_S:
        yield f"it is dated in the future, {run.info['created']}"
