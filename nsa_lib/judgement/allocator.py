"""Judge that every case ran under the allocator setting that it was asked for: that decides what it reserves.

On CUDA torch tells what its allocator obeys. On the CPU the simulation tells its options, and torch the setting as
text; with torch 2.11 and older, the environment that the process was started with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from nsa_lib.contract.allocator import options_of
from nsa_lib.contract.figures import counted
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, GateResult, unless_cut_short
from nsa_lib.runs.recorded import Recorded

NO_SETTING = "none"


def allocator_gate(run: Recorded, case_ids: Iterable[str], name: str = "allocator") -> GateResult:
    """Judge the allocator setting in force in the recorded steps of some cases against the one each was asked for."""
    gate, cases = GateResult(name, True, NOT_RUN), {case_id: run.case(case_id) for case_id in case_ids}
    unseen = [name for name, case in cases.items() if case is None or case["asked"] is None or not case["executed"]]
    seen = [case for case_id, case in cases.items() if case_id not in unseen]
    asked = sorted({_said(case["asked"]["alloc_conf"]) for case in seen})
    readings = [(case, step.get("allocator") or {}) for case in seen for step in case["executed"]]
    found = sorted({_said(reading["setting"]) for _, reading in readings if "setting" in reading})
    gate = replace(gate, limit="; ".join(asked), measured="; ".join(found) or None)
    wrong = {f"{case['case_id']}: {said}" for case, reading in readings for said in _differences(case, reading)}
    if wrong:
        return replace(gate, outcome=FAIL, detail="; ".join(sorted(wrong)))
    if not cases or unseen:
        return replace(gate, detail=f"no step of {', '.join(unseen) or 'any case'} was recorded")
    if silent := sorted({case["case_id"] for case, reading in readings if "setting" not in reading}):
        return replace(gate, detail=f"which setting is in force was not told in {', '.join(silent)}")
    gate = replace(
        gate,
        outcome=PASS,
        detail=f"in force in {counted(len(readings), 'recorded step')} of {counted(len(seen), 'case')}",
    )
    return next((cut for case in seen if (cut := unless_cut_short(gate, case)) != gate), gate)


def _differences(case: Mapping, reading: Mapping[str, object]) -> Iterator[str]:
    """Yield, in words each, what of a reading is not what the case was asked for."""
    asked = options_of(case["asked"]["alloc_conf"])
    if "setting" in reading and options_of(reading["setting"]) != asked:
        yield f"the setting in force is {_said(reading['setting'])}"
    values = dict(option.partition(":")[::2] for option in asked)
    split = values.get("max_split_size_mb", "")
    wanted = {
        "expandable_segments": values.get("expandable_segments") == "True",
        "max_split_mib": int(split) if split.isdecimal() else None,
    }
    for option, value in wanted.items():
        if option in reading and reading[option] != value:
            yield f"{option} in force is {reading[option]}"


def _said(setting: str) -> str:
    return ",".join(options_of(setting)) or NO_SETTING
