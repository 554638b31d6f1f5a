"""What can be wrong with a member of a fleet: each rule names the members that break it, and why.

A rule compares members of one kind with what most of them have. Where no value has more than half of them, nobody knows
who is wrong, and all are named.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from nsa_lib.contract.figures import counted, written
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN
from nsa_lib.workbook.fleet.band import FEWEST, Band, learned_band
from nsa_lib.workbook.fleet.members import NOT_COMPARED, Fleet, Member, majority

OUTCOME_OF = {"REVIEW": WARN, "NO-GO": FAIL, "INCOMPLETE": NOT_RUN}
"""What a member's verdict is to the fleet."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one member."""

    rule: str
    member: Member | None
    """None for one that is not there."""
    name: str
    outcome: str
    why: str


@dataclass(frozen=True)
class Ruled:
    """What a rule found."""

    findings: list[Finding] = field(default_factory=list)
    said: str = ""
    """What was compared, or why nothing was."""
    judged: bool = True
    required: bool = True


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
    if fleet.members and all(len(of_kind) == 1 and _proven(of_kind[0]) for of_kind in fleet.by_kind().values()):
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
    """Name the members whose value is not that of most of their kind, or who have none."""
    findings, compared = [], 0
    for kind, members in fleet.by_kind().items():
        known = [member for member in members if value(member) is not None]
        findings += [_finding(rule, m, NOT_RUN, why_none(m)) for m in members if value(m) is None]
        right = {value(member) for member in known if proven(member)}
        wanted = right.pop() if len(right) == 1 else _of_most(known, value)
        if wanted is None:
            said = f"{differs} others of {kind}, and no value has more than half of the {len(known)}"
            findings += [_finding(rule, member, FAIL, said) for member in known]
            continue
        same = [member for member in known if value(member) == wanted]
        alone = len(same) == 1 and not proven(same[0])
        compared += 0 if len(same) == len(known) and alone else len(known)
        if alone:
            findings.append(_finding(rule, same[0], NOT_RUN, "nobody of its kind agrees with it"))
        said = f"{differs} {counted(len(same), 'other')} of {kind}"
        said += ", who computed what was kept" if any(map(proven, same)) else ""
        findings += [
            _finding(rule, m, FAIL, f"{said}: {_short(value(m))}, not {_short(wanted)}")
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


def verdicts(fleet: Fleet) -> Ruled:
    """Judge that every member is GO by itself."""
    findings = [
        _finding("verdicts", member, OUTCOME_OF[member.verdict], _own_verdict(member))
        for member in fleet.members
        if member.verdict != "GO"
    ]
    return Ruled(findings, f"{len(fleet.members) - len(findings)} of {len(fleet.members)} GO", bool(fleet.members))


def _own_verdict(member: Member) -> str:
    reasons = member.reasons[0] if member.reasons else "it left no verdict"
    more = f" and {len(member.reasons) - 1} more" if len(member.reasons) > 1 else ""
    return f"{member.verdict}: {reasons}{more}"


def there(fleet: Fleet) -> Ruled:
    """Judge that every member that is expected is there."""
    total = fleet.expected.total
    if total is None:
        return Ruled(said="expected is not given, and nobody was started: who is missing is not known", judged=False)
    missing = fleet.expected.missing(fleet.members)
    findings = [Finding("members", None, name, NOT_RUN, "left no run") for name in missing]
    return Ruled(findings, f"{len(fleet.members)} of {total} are there")


def pinned(fleet: Fleet) -> Ruled:
    """Judge that each member ran on a GPU of its own."""
    of_gpu: dict[str, list[Member]] = {}
    for member in fleet.members:
        if member.gpu_uuid is not None:
            of_gpu.setdefault(member.gpu_uuid, []).append(member)
    shared = [members for members in of_gpu.values() if len(members) > 1]
    findings = [
        _finding("pinned", member, FAIL, f"{counted(len(members), 'member')} ran on this GPU: {_numbers(members)}")
        for members in shared
        for member in members
    ]
    if not of_gpu:
        return Ruled(said="no member has a GPU", judged=False, required=False)
    return Ruled(findings, f"{len(of_gpu)} GPUs")


def _numbers(members: list[Member]) -> str:
    return ", ".join(str(member.rank) for member in members)


def configuration(fleet: Fleet) -> Ruled:
    """Judge that all members ran the same parameters, versions and source."""
    names = dict.fromkeys(name for member in fleet.members for name in member.configuration)
    different: dict[int, list[str]] = {}
    for name in names:
        most = majority(fleet.members, lambda member, name=name: _told(member, name))
        for place, member in enumerate(fleet.members):
            if member.configuration and (most is None or _told(member, name) != most[0]):
                asked = "nothing that most have" if most is None else most[0]
                different.setdefault(place, []).append(f"{name} {_told(member, name)}, not {asked}")
    findings = [
        _finding("configuration", fleet.members[place], NOT_RUN, "; ".join(said)) for place, said in different.items()
    ]
    return Ruled(findings, "parameters, torch, driver and source", judged=any(m.configuration for m in fleet.members))


def _told(member: Member, name: str) -> str | None:
    return repr(member.configuration.get(name)) if member.configuration else None


def bands(fleet: Fleet) -> dict[str, Band]:
    """Return the band of each kind of GPU of which enough members were timed."""
    found = {}
    for kind, members in fleet.by_kind().items():
        timed = [member for member in members if member.step_ms is not None]
        band = learned_band([m.step_ms for m in timed], [m.step_error_ms or 0.0 for m in timed])
        found |= {kind: band} if band else {}
    return found


def speed(fleet: Fleet) -> Ruled:
    """Judge that no member is slower than its kind: above the band that the fleet itself shows."""
    known, findings = bands(fleet), []
    for kind, band in known.items():
        for member in fleet.by_kind()[kind]:
            if member.step_ms is None:
                findings.append(_finding("speed", member, NOT_RUN, "recorded too few steps"))
            elif member.step_ms > band.limit_ms:
                slower = f"{member.step_ms / band.median_ms:.2f} times the median step of its kind"
                figures = f"{written(member.step_ms)} ms, limit {written(band.limit_ms)} ms"
                findings.append(_finding("speed", member, WARN, f"{slower} ({figures})"))
    if not known:
        said = f"fewer than {FEWEST} members of a kind: no spread can be learned; their times are shown"
        return Ruled(said=said, judged=False, required=False)
    said = [f"{kind}: median {written(b.median_ms)} ms, up to {written(b.limit_ms)}" for kind, b in known.items()]
    return Ruled(findings, "; ".join(said))


def health(fleet: Fleet) -> Ruled:
    """Judge ECC errors, retired memory and slowdowns, as the driver told at start and end of each run."""
    told = [member for member in fleet.members if member.health and any(_ends(member))]
    if not told:
        return Ruled(said="unknown: no member has a driver that tells", judged=False, required=False)
    findings = []
    for member in fleet.members:
        if member not in told:
            findings.append(_finding("health", member, NOT_RUN, "unknown: its driver told nothing"))
            continue
        findings += [_finding("health", member, outcome, why) for outcome, why in _ills(member)]
    return Ruled(findings, f"nvidia-smi told of {counted(len(told), 'member')}")


def _ends(member: Member) -> tuple[Mapping, Mapping]:
    found = member.health or {}
    return found.get("start") or {}, found.get("end") or {}


def _ills(member: Member) -> Iterator[tuple[str, str]]:
    start, end = _ends(member)
    last = end or start
    if errors := last.get("ecc_uncorrectable"):
        yield FAIL, f"{errors:.0f} uncorrectable ECC errors since the driver was loaded"
    if last.get("remap_failure"):
        yield FAIL, "a row of its memory could not be remapped"
    if last.get("remap_pending") or last.get("retirement_pending"):
        yield WARN, "memory waits for a reset to be remapped or retired"
    rows, before = last.get("remapped_rows"), start.get("remapped_rows")
    if rows and before is not None and rows > before:
        yield FAIL, f"{rows - before:.0f} rows of its memory were remapped during the run"
    if slowed := [name for found in (start, end) for name in found.get("slowdowns") or ()]:
        yield WARN, f"throttled: {', '.join(dict.fromkeys(slowed))}"
    counted = {
        name: us - start["slowdown_us"][name]
        for name, us in (end.get("slowdown_us") or {}).items()
        if us is not None and (start.get("slowdown_us") or {}).get(name) is not None
    }
    for name, us in counted.items():
        if us > 0:
            yield WARN, f"throttled for {us / 1e6:.3g} s of the run: {name}"


def clocks(fleet: Fleet) -> Ruled:
    """Judge that GPUs of a kind have the same highest clock, power limit and ECC mode: a cap is set, not broken."""
    names = {"max_sm_clock_mhz": "highest clock in MHz", "power_limit_w": "power limit in W", "ecc_mode": "ECC"}
    findings, seen = [], 0
    for members in fleet.by_kind().values():
        for name, what in names.items():
            most = majority(members, lambda member, name=name: _ends(member)[0].get(name))
            seen += most is not None
            for member in members if most else ():
                own = _ends(member)[0].get(name)
                if own is not None and own != most[0]:
                    said = f"{what} {written(own)}, {written(most[0])} on {most[1]} others"
                    findings.append(_finding("clocks", member, WARN, said))
    if not seen:
        return Ruled(said="unknown: no member has a driver that tells", judged=False, required=False)
    return Ruled(findings, ", ".join(names.values()))


def _finding(rule: str, member: Member, outcome: str, why: str) -> Finding:
    return Finding(rule, member, member.name, outcome, why)


RULES: dict[str, Callable[[Fleet], Ruled]] = {
    "fingerprints": fingerprints,
    "health": health,
    "verdicts": verdicts,
    "memory": memory,
    "pinned": pinned,
    "members": there,
    "configuration": configuration,
    "speed": speed,
    "clocks": clocks,
}
"""The rules, those first that are most certain that a GPU must be taken out."""
