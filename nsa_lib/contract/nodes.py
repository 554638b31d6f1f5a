"""What the processes of a case on several nodes leave for those who watch them."""

from __future__ import annotations

PLACE_FILE = "place.json"
"""In another node's folder of a case: `folder`, where node 0 keeps the case, on the disk that all share."""

MEETING_S = 170.0
"""How long node 0 waits for the others: a little less than its runner waits for the first sign of a case."""

ARRIVAL_S = 3600.0
"""How long another node waits for node 0, which first runs what one process does."""


def failures_file(node: int) -> str:
    """Return the file in which a node's torchrun says how its ranks failed."""
    return "failures.json" if node == 0 else f"failures-node{node}.json"
