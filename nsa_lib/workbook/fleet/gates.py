"""The gates of a fleet, one a rule, and the quarantine: which members to take out, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, GateResult
from nsa_lib.runs.recorded import Recorded, measured_once
from nsa_lib.workbook.fleet.members import Fleet, Member, fleet_of
from nsa_lib.workbook.fleet.rules import RULES, Finding, Ruled

NAMED = 5
"""Members that a gate names; the table of the quarantine has all."""

WORST_FIRST = (FAIL, NOT_RUN, WARN)


@measured_once
def ruled(run: Recorded) -> dict[str, Ruled]:
    """Return what each rule found."""
    return judged_fleet(fleet_of(run))


def judged_fleet(fleet: Fleet) -> dict[str, Ruled]:
    """Return what each rule finds in a fleet."""
    return {name: rule(fleet) for name, rule in RULES.items()}


def fleet_gates(run: Recorded) -> list[GateResult]:
    """Return a gate for each rule, and one for the quorum.

    Where a quorum is asked for, it decides: members that break a rule are taken out, and the rest is judged by how many
    they are.
    """
    fleet, found = fleet_of(run), ruled(run)
    gates = [rule_gate(name, one) for name, one in found.items()]
    if fleet.quorum is not None:
        gates = [_taken_out(gate) for gate in gates]
    return [*gates, quorum_gate(fleet, quarantine(found))]


def rule_gate(name: str, found: Ruled) -> GateResult:
    """Return the gate of a rule: the worst outcome of its findings, and whom it names."""
    gate = GateResult(name, found.required, PASS, limit=0, unit="members")
    if not found.judged and not found.findings:
        return replace(gate, outcome=NOT_RUN, detail=found.said)
    if not found.findings:
        return replace(gate, measured=0, detail=found.said)
    worst = min((finding.outcome for finding in found.findings), key=WORST_FIRST.index)
    named = sorted(found.findings, key=lambda finding: WORST_FIRST.index(finding.outcome))
    said = [f"{finding.name}: {finding.why}" for finding in named[:NAMED]]
    said += [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
    count = len({finding.name for finding in named})
    return replace(gate, outcome=worst, measured=count, margin=-count, detail="; ".join(said))


def _taken_out(gate: GateResult) -> GateResult:
    """Return a gate as it is where a quorum decides: what warns names members that are taken out like the others."""
    return replace(gate, required=False, outcome=FAIL if gate.outcome == WARN else gate.outcome)


def quorum_gate(fleet: Fleet, taken_out: list[Quarantined]) -> GateResult:
    """Judge that enough members are healthy; without a quorum that is all, which the other gates judge."""
    names = {one.member.key for one in taken_out if one.member is not None}
    healthy = sum(member.key not in names for member in fleet.members)
    gate = GateResult("quorum", fleet.quorum is not None, PASS, measured=healthy, unit="healthy members")
    if fleet.quorum is None:
        return replace(gate, outcome=NOT_RUN, detail="none is asked for: all must be healthy")
    gate = replace(gate, limit=fleet.quorum, margin=healthy - fleet.quorum, detail="at least the limit is asked")
    return gate if healthy >= fleet.quorum else replace(gate, outcome=FAIL)


@dataclass(frozen=True)
class Quarantined:
    """A member to take out, with all that was found."""

    name: str
    member: Member | None
    findings: list[Finding]
    """The most certain one first."""

    @property
    def why(self) -> str:
        """Why it is taken out, in words."""
        return "; ".join(f"{finding.rule}: {finding.why}" for finding in self.findings)


def quarantine(found: dict[str, Ruled]) -> list[Quarantined]:
    """Return the members that break a rule, those first of whom it is most certain that something is wrong.

    What is broken is more certain than what warns or could not be judged; then the order of the rules decides.
    """
    places = list(found)
    of_member: dict[str, list[Finding]] = {}
    for finding in sorted(
        (finding for one in found.values() for finding in one.findings),
        key=lambda finding: (finding.outcome != FAIL, places.index(finding.rule)),
    ):
        of_member.setdefault(finding.name, []).append(finding)
    return [Quarantined(name, findings[0].member, findings) for name, findings in of_member.items()]


def fleet_advice(run: Recorded) -> list[str]:
    """Return what a user may want to do; it never decides."""
    taken_out = quarantine(ruled(run))
    certain = [one.name for one in taken_out if one.findings[0].outcome == FAIL]
    hosts = {one.member.host for one in taken_out if one.member and one.member.host and one.name in certain}
    said = [f"Take out, most certain first: {', '.join(certain[:NAMED])}."] if certain else []
    said += [f"Hosts with a member to take out: {','.join(sorted(map(str, hosts)))}."] if len(hosts) > 1 else []
    absent = [one.name for one in taken_out if one.member is None]
    said += [f"Look at why these left no run: {', '.join(absent[:NAMED])}."] if absent else []
    return said


def fleet_headline(run: Recorded) -> str:
    """Return the figures that a fleet's verdict is said with."""
    fleet, taken_out = fleet_of(run), quarantine(ruled(run))
    total = fleet.expected.total or len(fleet.members)
    there = [one for one in taken_out if one.member is not None]
    return f"{len(fleet.members) - len(there)} of {total} members healthy, {len(taken_out)} to take out or look at"
