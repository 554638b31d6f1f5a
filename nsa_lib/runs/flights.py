"""Who waits for whom: what the ranks' records of their collectives say together.

A rank that fails or hangs leaves the others in a collective that never ends. The record of each says which one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DEFAULT_GROUP = "0"
"""Name of the group of all ranks."""


def who_waits(flights: Mapping[int, Sequence[Mapping]]) -> str:
    """Return in a sentence which rank differs from the others, and in what; "" if none does or nothing is known.

    Args:
        flights: of each rank the collectives that it entered, oldest first (`worker.ranks.flights.FIELDS`). A rank of
            which nothing is known is left out.
    """
    if len(flights) < 2:
        return ""
    if said := _mismatch(flights):
        return said
    wait = find_wait(flights)
    return "" if wait is None else wait.said


@dataclass(frozen=True)
class Wait:
    """Ranks that are in a collective which others have not entered."""

    rank: int
    """One that waits."""
    entry: Mapping
    """The collective that it is in."""
    late: Mapping[int, Mapping | None]
    """Of those that have not entered it the last that they entered, None for none at all; empty if all are in it."""

    @property
    def said(self) -> str:
        """Who waits for whom, in a sentence."""
        group, number = _place(self.entry)
        where = f"rank {self.rank} is in {_what(self.entry)}, collective {number} of group {group}"
        if not self.late:
            return f"{where}, and so are all others; it does not end"
        return f"{where}; {'; '.join(f'rank {rank} {_last(entry)}' for rank, entry in self.late.items())}"


def _last(entry: Mapping | None) -> str:
    if entry is None:
        return "has not entered it, nor any other"
    group, number = _place(entry)
    return f"has not entered it, the last that it entered is {_what(entry)}, collective {number} of group {group}"


def _mismatch(flights: Mapping[int, Sequence[Mapping]]) -> str:
    """Return the first collective that ranks entered with different tensors, or entered different ones as the same."""
    entered: dict[tuple, dict[int, str]] = {}
    for rank, entries in flights.items():
        for entry in entries:
            entered.setdefault(_place(entry), {})[rank] = _what(entry)
    seen: Counter[str] = Counter()
    for place in sorted(entered):
        by_rank = entered[place]
        if len(set(by_rank.values())) > 1:
            # The rarer is the odd one; of two ranks the one that does what was never done before.
            kinds = Counter(by_rank.values())
            odd = min(by_rank, key=lambda rank: (kinds[by_rank[rank]], seen[by_rank[rank]]))
            other = next(rank for rank in by_rank if by_rank[rank] != by_rank[odd])
            return (
                f"rank {odd} entered {by_rank[odd]} as collective {place[1]} of group {place[0]}, "
                f"rank {other} {by_rank[other]}"
            )
        seen.update(by_rank.values())
    return ""


def find_wait(flights: Mapping[int, Sequence[Mapping]]) -> Wait | None:
    """Return the collective that most ranks are in and who is not in it, or None if nobody is known to wait."""
    last = {rank: _waits_in(entries) for rank, entries in flights.items() if entries}
    places = {rank: _place(entry) for rank, entry in last.items()}
    if not places:
        return None
    counts = Counter(places.values())
    common = max(counts, key=lambda place: (counts[place], place[0] == DEFAULT_GROUP, place[1]))
    late = {rank: last.get(rank) for rank in flights if places.get(rank) != common}
    waiting = next(rank for rank, place in places.items() if place == common)
    if not late and not _is_open(flights[waiting]):
        return None
    return Wait(waiting, last[waiting], late)


def _is_open(entries: Sequence[Mapping]) -> bool:
    """Return whether a rank is known to be in a collective: gloo does not tell which have ended."""
    states = {entry["state"] for entry in entries}
    return "completed" in states and len(states) > 1


def _waits_in(entries: Sequence[Mapping]) -> Mapping:
    """Return the collective that a rank waits in, or the last that it entered.

    On a GPU a rank goes on entering collectives while the device waits in an earlier one: the first that is not
    completed. Gloo does not tell which are; there a rank enters none before the one before it has ended.
    """
    tells = any(entry["state"] == "completed" for entry in entries)
    waiting = [entry for entry in entries if tells and entry["state"] != "completed"]
    return waiting[0] if waiting else entries[-1]


def _place(entry: Mapping) -> tuple[str, int]:
    """Return group and number of a collective: the same on all ranks that take part."""
    return str(entry["process_group"][0]), int(entry["collective_seq_id"])


def _what(entry: Mapping) -> str:
    return f"{entry['profiling_name']} of {entry['input_sizes']}"
