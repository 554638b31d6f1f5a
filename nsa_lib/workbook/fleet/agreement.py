"""The rules by which members must agree to the last bit or byte: fingerprints and memory.

Members of one kind and configuration are compared with what most of them have. Where no value has more than half of
them, nobody knows who is wrong, and all are named. Who gave the bits that were kept of the kind is right against any
majority.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import replace

from nsa_lib.contract.figures import counted
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS
from nsa_lib.workbook.fleet.finding import Ruled, finding
from nsa_lib.workbook.fleet.members import NOT_COMPARED, Fleet, Member, majority

SHARES = 4
"""Groups of members that agree, the sizes of which are told where no group has more than half."""


def fingerprints(fleet: Fleet) -> Ruled:
    """Judge that all GPUs of a kind computed the same bits; only shown where no backend gives the same bits twice.

    Members that gave the bits which were kept are right, however many others agree on other ones.
    """
    if fleet.members and all(member.no_fingerprint.startswith(NOT_COMPARED) for member in fleet.members):
        return Ruled(said=fleet.members[0].no_fingerprint, judged=False, required=False)
    found = _same(
        fleet, "fingerprints", lambda member: member.fingerprint, "computed other bits than", _no_fingerprint, _proven
    )
    shared = "" if any(map(_proven, fleet.members)) else "; none with kept bits: an error that all share is not seen"
    return replace(found, said=found.said + shared)


def _proven(member: Member) -> bool:
    """Return whether a member gave the bits that were kept of its kind (`fingerprint=` of its smoke)."""
    return member.gates.get("kept_bits") == PASS


def memory(fleet: Fleet) -> Ruled:
    """Judge that the peak of allocated memory is the same to the byte on all GPUs of a kind."""
    if fleet.members and all(len(alike) == 1 and _proven(alike[0]) for _, alike in fleet.alike()):
        return Ruled(said="one member of a kind: there is nobody to compare with", judged=False, required=False)
    return _same(
        fleet, "memory", lambda member: member.peak_alloc_bytes, "allocated other bytes than", _no_memory, _proven
    )


def _no_fingerprint(member: Member) -> str:
    return member.no_fingerprint or "left no fingerprint"


def _no_memory(member: Member) -> str:
    return "recorded no step"


def _same(
    fleet: Fleet,
    rule: str,
    value: Callable[[Member], Hashable],
    differs: str,
    why_none: Callable[[Member], str],
    proven: Callable[[Member], bool],
) -> Ruled:
    """Name the members whose value is not that of most of their kind and configuration, or who have none."""
    findings, compared, kinds = [], 0, fleet.by_kind()
    for kind, members in fleet.alike():
        known = [member for member in members if value(member) is not None]
        findings += [finding(rule, m, NOT_RUN, why_none(m)) for m in members if value(m) is None]
        right = {value(member) for member in known if proven(member)}
        wanted = right.pop() if len(right) == 1 else _of_most(known, value)
        if wanted is None:
            shares = sorted(Counter(map(value, known)).values(), reverse=True)
            split = ", ".join(map(str, shares[:SHARES])) + (", ..." if len(shares) > SHARES else "")
            said = f"{differs} others of {kind}, and nobody knows who is right: {split} of {len(known)} agree"
            findings += [finding(rule, member, FAIL, said) for member in known]
            continue
        same = [member for member in known if value(member) == wanted]
        alone = len(same) == 1 and not proven(same[0])
        compared += 0 if len(same) == len(known) and alone else len(known)
        of_other_configuration = len(members) == 1 and len(kinds[kind]) > 1
        if alone and not of_other_configuration:  # which is named for that
            findings.append(finding(rule, same[0], NOT_RUN, "nobody of its kind agrees with it"))
        said = f"{differs} {counted(len(same), 'other')} of {kind}"
        said += ", who computed what was kept" if any(map(proven, same)) else ""
        findings += [
            finding(rule, m, FAIL, f"{said}: {_short(value(m))}, not {_short(wanted)}")
            for m in known
            if value(m) != wanted
        ]
    return Ruled(findings, f"{counted(compared, 'member')} compared", judged=compared > 0)


def _of_most(known: list[Member], value: Callable[[Member], Hashable]) -> Hashable | None:
    """Return the value of most, or where they are split, of most of those that are GO by themselves; None without."""
    most = majority(known, value) or majority([member for member in known if member.verdict == "GO"], value)
    return most and most[0]


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else f"{value:,}"
