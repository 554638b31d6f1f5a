"""Who waits for whom: what the ranks' records of their collectives say together.

A rank that fails or hangs leaves the others in a collective that never ends. The record of each says which one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

DEFAULT_GROUP = "0"
"""Name of the group of all ranks."""


def who_waits(flights: Mapping[int, Sequence[Mapping]]) -> str:
    """Return in a sentence which rank differs from the others, and in what; "" if none does or nothing is known.

    Args:
        flights: of each rank the collectives that it entered, oldest first (`worker.ranks.flights.FIELDS`).
    """
    known = {rank: list(entries) for rank, entries in flights.items() if entries}
    if len(known) < 2:
        return ""
    return _mismatch(known) or _behind(known)


def _mismatch(flights: Mapping[int, list[Mapping]]) -> str:
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


def _behind(flights: Mapping[int, list[Mapping]]) -> str:
    """Return which rank is not in the collective in which the others are."""
    last = {rank: _waits_in(entries) for rank, entries in flights.items()}
    places = {rank: _place(entry) for rank, entry in last.items()}
    counts = Counter(places.values())
    common = max(counts, key=lambda place: (counts[place], place[0] == DEFAULT_GROUP, place[1]))
    odd = [rank for rank, place in places.items() if place != common]
    if not odd:
        return ""
    waiting = next(rank for rank, place in places.items() if place == common)
    where = f"{_what(last[waiting])}, collective {common[1]} of group {common[0]}"
    others = "; ".join(
        f"rank {rank} has not entered it, the last that it entered is {_what(last[rank])}, collective "
        f"{places[rank][1]} of group {places[rank][0]}"
        for rank in odd
    )
    return f"rank {waiting} is in {where}; {others}"


def _waits_in(entries: list[Mapping]) -> Mapping:
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
