"""The gates over fingerprints: whether the same steps gave the same bits twice here, and those that were kept.

A GPU that computes wrongly rarely says so: most of its errors are no NaN. Bits see them all. Where they differ, three
causes are told apart by what further takes of the same steps gave, here and at another GPU (of a CPU, core):
`transient`: once; `persistent`: this GPU, again and again; `software`: wherever the code runs.

An error that is the same in every take on a GPU agrees with itself: only a kept fingerprint, or other GPUs, show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nsa_lib.contract.figures import counted
from nsa_lib.contract.fingerprint import KEPT, first_difference
from nsa_lib.judgement.gate import (
    FAIL,
    NOT_RUN,
    PASS,
    GateResult,
    ended_well,
    how_it_ended,
    outcome_of,
    unless_cut_short,
)
from nsa_lib.runs.fingerprints import comparable, kept_in
from nsa_lib.runs.recorded import Recorded
from nsa_lib.subject.config import ConfigError

TRANSIENT, PERSISTENT, SOFTWARE = "transient", "persistent", "software"


def same_bits_gate(run: Recorded, case_id: str, repeated: str) -> GateResult:
    """Judge that the first steps of a training gave the same bits when a second case took them again."""
    gate, first, again = (
        GateResult("same_bits", True, NOT_RUN, limit=0, unit="differences"),
        *(run.case(name) for name in (case_id, repeated)),
    )
    found = None if first is None else first["fingerprint"]
    if again is None:
        why = found["why_not"] if found and found["why_not"] else f"no case {repeated} was planned"
        return replace(gate, required=False, detail=f"not compared, {why}")
    if not ended_well(again):
        return replace(gate, outcome=outcome_of(again), detail=f"{repeated}: {how_it_ended(again)}")
    if not found or not again["fingerprint"]:
        return replace(gate, detail=f"the case {case_id if not found else repeated} left no fingerprint")
    steps, due = len(again["fingerprint"]["losses"]), again["asked"]["steps"]
    if steps < due:
        return replace(gate, detail=f"{counted(steps, 'step')} taken again, {due} are due")
    if says_nothing(found):
        return replace(gate, detail="what differs has the same hash: nothing would be noticed")
    if where := first_difference(found, again["fingerprint"]):
        cause, why = cause_of(found, again["fingerprint"])
        said = f"{cause}: {where} has other bits in {repeated} than in {case_id}; {why}"
        return replace(gate, outcome=FAIL, measured=1, detail=said)
    detail = f"steps 1 to {steps} taken again, when the training had run: losses, outputs, choices, gradients, "
    return replace(gate, outcome=PASS, measured=0, detail=detail + "parameters the same")


def says_nothing(fingerprint: Mapping[str, object]) -> bool:
    """Return whether things of one step that are never the same have one hash: outputs of layers, and parameters."""
    told = [
        [step["parameters"], *(layer["output"] for layer in step["layers"].values() if "output" in layer)]
        for step in fingerprint["steps"].values()
    ]
    return any(len({*hashes}) < len(hashes) for hashes in told)


def cause_of(first: Mapping[str, object], again: Mapping[str, object]) -> tuple[str, str]:
    """Return what caused a difference between two takes, by what further ones gave, and why, in words.

    Args:
        first: the fingerprint of the case that came first.
        again: that of the second, with further takes in `again`, three at each place.
    """
    takes = [(str(take["where"]), take) for take in again["again"]]
    names = list(dict.fromkeys(place for place, _ in takes))
    if not names:
        return f"{PERSISTENT} or {TRANSIENT} or {SOFTWARE}", "the steps were not taken again"
    here, *elsewhere = ([take for place, take in takes if place == name] for name in names)
    other = elsewhere[0] if elsewhere else []
    if other and not _alike(other):
        return SOFTWARE, f"{len(other)} takes at {names[1]} differ too"
    if not _alike(here):
        if not other:
            return (
                f"{PERSISTENT} or {SOFTWARE}",
                f"{len(here)} more takes at {names[0]} differ; there is no other place",
            )
        return PERSISTENT, f"{len(here)} more takes at {names[0]} differ, {len(other)} at {names[1]} agree"
    if other and first_difference(here[0], other[0]):
        return PERSISTENT, f"takes at {names[0]} agree, and so do those at {names[1]}, with other bits"
    odd = [name for name, take in (("the first", first), ("the second", again)) if first_difference(take, here[0])]
    if len(odd) == 1:
        return TRANSIENT, f"{odd[0]} case was wrong once, {len(takes)} more takes agree with the other"
    return PERSISTENT, f"{len(takes)} more takes agree with neither: it went wrong twice"


def _alike(takes: Sequence[Mapping[str, object]]) -> bool:
    return not any(first_difference(takes[0], take) for take in takes[1:])


def kept_bits_gate(run: Recorded, case_id: str, repeated: str) -> GateResult:
    """Judge that a training gave the bits that were kept of such a device, driver, torch, Triton and source.

    The run has copies of those in its folder: what is kept elsewhere may change.
    """
    gate, case, again = (
        GateResult("kept_bits", True, NOT_RUN, limit=0, unit="differences"),
        *(run.case(name) for name in (case_id, repeated)),
    )
    found = None if case is None else case["fingerprint"]
    if not found or not found["losses"]:
        return replace(gate, detail=f"the case {case_id} left no fingerprint")
    try:
        kept, why_none = comparable(found, kept_in(run.folder / KEPT))
    except ConfigError as error:
        return replace(gate, detail=str(error))
    if not kept:
        return replace(gate, detail=f"not compared, {why_none}")
    for name, one in kept.items():
        if where := first_difference(found, one):
            takes = again["again"] if (again := again and again["fingerprint"]) else []
            cause, why = cause_beside_kept(one, takes)
            said = f"{cause}: {where} has other bits than {name}, kept of such a device with this source; {why}"
            return replace(gate, outcome=FAIL, measured=1, detail=said)
    steps = min(len(found["losses"]), *(len(one["losses"]) for one in kept.values()))
    if not steps:
        return replace(gate, detail=f"not compared, {', '.join(kept)} has no step")
    gate = replace(gate, outcome=PASS, measured=0, detail=f"{counted(steps, 'step')}, the bits of {', '.join(kept)}")
    return unless_cut_short(gate, case)


def cause_beside_kept(kept: Mapping[str, object], takes: Sequence[Mapping[str, object]]) -> tuple[str, str]:
    """Return what caused a difference from a kept fingerprint, by what further takes gave, and why, in words.

    Args:
        kept: the fingerprint that was kept.
        takes: of the same steps, later, three at each place; up to the step that differs.
    """
    names = list(dict.fromkeys(str(take["where"]) for take in takes))
    if not names:
        return f"{PERSISTENT} or {TRANSIENT} or {SOFTWARE}", "the steps were not taken again"
    here, *elsewhere = ([take for take in takes if str(take["where"]) == name] for name in names)
    other = elsewhere[0] if elsewhere else []
    here_said = f"{counted(len(here), 'more take')} at {names[0]}"
    if other and not _alike(other):
        return SOFTWARE, f"{len(other)} takes at {names[1]} differ among themselves"
    if not _alike(here):
        cause = PERSISTENT if other else f"{PERSISTENT} or {SOFTWARE}"
        return cause, f"{here_said} differ among themselves"
    if not first_difference(here[0], kept):
        return TRANSIENT, f"{here_said} agree with what was kept"
    if not other:
        return f"{PERSISTENT} or {SOFTWARE}", f"{here_said} differ from it too; there is no other place"
    if not first_difference(other[0], kept):
        return PERSISTENT, f"{here_said} differ from it too, {len(other)} at {names[1]} agree with it"
    return SOFTWARE, f"{here_said} and {len(other)} at {names[1]} differ from it too, or what was kept is wrong"
