"""What a rule finds in a fleet: things that are wrong with members, and what was compared."""

from __future__ import annotations

from dataclasses import dataclass, field

from nsa_lib.workbook.fleet.members import Member


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


def finding(rule: str, member: Member, outcome: str, why: str) -> Finding:
    """Return what is wrong with a member that is there."""
    return Finding(rule, member, member.name, outcome, why)
