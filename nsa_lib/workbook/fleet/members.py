"""The members of a fleet as its run folder keeps them: a row a GPU, with what its own run recorded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nsa_lib.contract.files import write_json
from nsa_lib.runs.recorded import Recorded, measured_once
from nsa_lib.workbook.fleet.parameters import Expected

FILE = "members.json"

SCHEMA = 1

NOT_COMPARED = "not compared, "
"""How the reason begins why a member's bits need not be those of another."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One GPU of a fleet: who it is, what its run came to, and the figures by which it is compared."""

    run_id: str
    folder: str
    report: str | None = None
    created: str = ""
    host: str | None = None
    gpu_uuid: str | None = None
    rank: int | None = None
    """Its number in the fleet, or None if nobody counts."""
    kind: str | None = None
    """Name of the GPU, or of the processor: members of one kind are compared."""
    verdict: str = "INCOMPLETE"
    reasons: list[str] = field(default_factory=list)
    gates: Mapping[str, str] = field(default_factory=dict)
    """Outcome of each gate."""
    configuration: Mapping[str, object] = field(default_factory=dict)
    """Parameters, versions and source, in which all members must agree."""
    fingerprint: str | None = None
    no_fingerprint: str = ""
    """Why there is none, or why it is not compared."""
    step_ms: float | None = None
    """Median step after the warm-up."""
    step_error_ms: float | None = None
    """Standard error of that median."""
    peak_alloc_bytes: int | None = None
    health: Mapping[str, object] | None = None
    """`start` and `end` as nvidia-smi told, each None if it told nothing; None without a GPU."""

    @property
    def name(self) -> str:
        """Who it is, in a few words: host, GPU, number."""
        gpu = str(self.gpu_uuid).removeprefix("GPU-")[:8] if self.gpu_uuid else "CPU"
        number = "" if self.rank is None else f" (member {self.rank})"
        return f"{self.host or 'unknown host'} {gpu}{number}"

    @property
    def key(self) -> tuple[object, ...]:
        """What two runs of the same member have in common."""
        return (self.host, self.gpu_uuid, self.rank)


def newest_of_each(members: Iterable[Member]) -> list[Member]:
    """Return the newest run of each member, by their numbers, then hosts."""
    found: dict[tuple, Member] = {}
    for member in sorted(members, key=lambda member: (member.created, member.run_id)):
        found[member.key] = member
    return sorted(found.values(), key=lambda m: (m.rank is None, m.rank or 0, str(m.host), str(m.gpu_uuid), m.run_id))


def write_members(folder: Path, members: Iterable[Member]) -> None:
    """Write the members into the folder of a fleet's run."""
    write_json(folder / FILE, {"schema": SCHEMA, "members": [asdict(member) for member in members]})


@dataclass(frozen=True)
class Fleet:
    """The members that are there, and those that must be."""

    members: list[Member]
    expected: Expected
    quorum: int | None = None

    def by_kind(self) -> dict[str, list[Member]]:
        """Return the members of each kind of GPU."""
        found: dict[str, list[Member]] = {}
        for member in self.members:
            found.setdefault(str(member.kind), []).append(member)
        return found

    def alike(self) -> list[tuple[str, list[Member]]]:
        """Return the members that must agree, and their kind: of one kind of GPU and one configuration each.

        Another source or driver makes other bits, and its GPU is not to blame.
        """
        found: dict[tuple[str, str], list[Member]] = {}
        for member in self.members:
            found.setdefault((str(member.kind), repr(sorted(member.configuration.items()))), []).append(member)
        return [(kind, members) for (kind, _), members in found.items()]


@measured_once
def fleet_of(run: Recorded) -> Fleet:
    """Return the fleet of its run."""
    members = [Member(**row) for row in json.loads((run.folder / FILE).read_text())["members"]]
    return Fleet(members, Expected(**run.info["expected"]), run.parameter("quorum"))


def majority(members: Iterable[Member], value: Callable[[Member], Hashable]) -> tuple[Hashable, int, int] | None:
    """Return the value that more than half of the members have, of how many and of how many in all; None without one.

    Members whose value is None do not count.
    """
    counts = Counter(found for member in members if (found := value(member)) is not None)
    if not counts:
        return None
    (most, count), *_ = counts.most_common(1)
    return (most, count, counts.total()) if 2 * count > counts.total() else None
