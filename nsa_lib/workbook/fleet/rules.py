"""What can be wrong with a member of a fleet: each rule names the members that break it, and why.

What must be the same to the bit is in `agreement`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from nsa_lib.contract.figures import counted, written
from nsa_lib.judgement.gate import FAIL, NOT_RUN, WARN
from nsa_lib.workbook.fleet.agreement import fingerprints, memory
from nsa_lib.workbook.fleet.band import FEWEST, Band, learned_band
from nsa_lib.workbook.fleet.finding import Finding, Ruled, finding
from nsa_lib.workbook.fleet.members import Fleet, Member, majority

OUTCOME_OF = {"REVIEW": WARN, "NO-GO": FAIL, "INCOMPLETE": NOT_RUN}
"""What a member's verdict is to the fleet."""


def verdicts(fleet: Fleet) -> Ruled:
    """Judge that every member is GO by itself."""
    findings = [
        finding("verdicts", member, OUTCOME_OF[member.verdict], _own_verdict(member))
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
        finding("pinned", member, FAIL, f"{counted(len(members), 'member')} ran on this GPU: {_numbers(members)}")
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
        finding("configuration", fleet.members[place], NOT_RUN, "; ".join(said)) for place, said in different.items()
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
                findings.append(finding("speed", member, NOT_RUN, "recorded too few steps"))
            elif member.step_ms > band.limit_ms:
                slower = f"{member.step_ms / band.median_ms:.2f} times the median step of its kind"
                figures = f"{written(member.step_ms)} ms, limit {written(band.limit_ms)} ms"
                findings.append(finding("speed", member, WARN, f"{slower} ({figures})"))
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
            findings.append(finding("health", member, NOT_RUN, "unknown: its driver told nothing"))
            continue
        findings += [finding("health", member, outcome, why) for outcome, why in _ills(member)]
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
                    findings.append(finding("clocks", member, WARN, said))
    if not seen:
        return Ruled(said="unknown: no member has a driver that tells", judged=False, required=False)
    return Ruled(findings, ", ".join(names.values()))


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
