"""What is asked of a fleet: which members, who starts them, and how many must be healthy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nsa_lib.runs.parameters import Parameter
from nsa_lib.runs.request import Request
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.profiles import RUN

LOCAL, SLURM, NOBODY = "local", "slurm", "nobody"

LAUNCHERS = (LOCAL, SLURM, NOBODY)

MEMBERS_RUN = "smoke"
"""The notebook that a launcher runs on every GPU."""

LAPTOP_GPUS = 2
"""Members on a machine without a GPU, a process each."""

REQUEST = Request(
    notebook="fleet",
    parameters={
        "fleet": Parameter(str, "name of the fleet; local makes one up if it has none", ""),
        "launcher": Parameter(
            str, "local: on this machine; slurm: on a cluster; nobody: judge the runs that are there", LOCAL, LAUNCHERS
        ),
        "gpus": Parameter(int, "members that local starts; all visible GPUs, two on a laptop", above=0),
        "nodes": Parameter(int, "nodes that Slurm is asked for", 1, above=0),
        "gpus_per_node": Parameter(int, "members on each node, one a GPU", 8, above=0),
        "partition": Parameter(str, "of Slurm; its default"),
        "time_min": Parameter(int, "minutes after which Slurm ends the members", 30, above=0),
        "profile": Parameter(
            str, "of the members, as in smoke.ipynb", "auto", ("auto", "checklist", "laptop", "prolog")
        ),
        "parameters": Parameter(dict, "further parameters of every member, as in smoke.ipynb"),
        "faults": Parameter(dict, "seeded faults by member, to test the workbook itself"),
        "expected": Parameter(str, "members that must be there, a number, host:gpus pairs, or a file of such lines"),
        "quorum": Parameter(int, "healthy members that are enough for a GO of the rest; all", above=0),
        **{name: RUN[name] for name in ("out_dir", "tag", "accept_review")},
    },
)


@dataclass(frozen=True)
class Expected:
    """Which members must be there: so many, numbered from 0, or so many on each host; nothing if nobody says."""

    count: int | None = None
    hosts: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int | None:
        """How many members must be there, or None if nobody says."""
        return sum(self.hosts.values()) if self.hosts else self.count

    def missing(self, members: list) -> list[str]:
        """Return the names of those that are not there, given the members that are."""
        if self.hosts:
            there = {host: sum(member.host == host for member in members) for host in self.hosts}
            short = {host: count - there[host] for host, count in self.hosts.items() if there[host] < count}
            return [f"{host} ({lacks} of {self.hosts[host]})" for host, lacks in short.items()]
        if self.count is None:
            return []
        ranks = {member.rank for member in members}
        if None in ranks:
            return [f"{self.count - len(members)} of {self.count}"] if len(members) < self.count else []
        return [f"member {rank}" for rank in range(self.count) if rank not in ranks]


def expected_members(asked: str | None, launched: int | None) -> Expected:
    """Return which members must be there: those that are asked for, or else as many as were started.

    Raises ConfigError for a text that is neither a number, nor hosts with their number of GPUs, nor a file of those.
    """
    if not asked:
        return Expected(launched)
    if asked.strip().isdecimal():
        return Expected(int(asked))
    path = Path(asked).expanduser()
    words = path.read_text().split() if path.is_file() else [word.strip() for word in asked.split(",")]
    hosts: dict[str, int] = {}
    for word in filter(None, words):
        host, colon, count = word.rpartition(":")
        if colon and not count.isdecimal():
            raise ConfigError(f"expected={word!r}: accepts a number, host:gpus pairs separated by commas, or a file")
        hosts[host or word] = hosts.get(host or word, 0) + int(count if colon else 1)
    return Expected(hosts=hosts)
