"""The mark of a session: what one kernel shows carries it, so that outputs of two sessions are told apart.

Execution counts begin at 1 in each session: a notebook of which some cells ran again later, in another kernel and with
other parameters, has counts that rise from top to bottom all the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

SESSION = uuid.uuid4().hex
"""Of this process."""

KEY = "nsa"


def session_mark() -> dict[str, dict[str, str]]:
    """Return the metadata of an output that this session shows."""
    return {KEY: {"session": SESSION}}


def sessions(outputs: Iterable[Mapping]) -> set[str]:
    """Return the sessions that outputs of a notebook are marked with."""
    marks = (output.get("metadata", {}).get(KEY) for output in outputs)
    return {str(mark["session"]) for mark in marks if isinstance(mark, Mapping) and "session" in mark}
