"""Which collectives a rank has entered, from torch's flight recorder: it tells who waits for whom in a hang."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

from torch import distributed
from torch._C import _distributed_c10d

from nsa_lib.contract.files import write_json

SCHEMA = 1

KEPT = 200
"""Entries of a rank, the newest, that are kept."""

FIELDS = ("process_group", "collective_seq_id", "profiling_name", "input_sizes", "input_dtypes", "state")

RECORDERS = {"nccl": "_dump_nccl_trace_json", "gloo": "_dump_fr_trace_json"}
"""Private names, but torch has no other access; one without them records nothing."""


def write_when_asked(path: Path, number: signal.Signals) -> None:
    """Write the record whenever the signal comes, which this thread and all others must block.

    A thread of its own waits for it: the main thread may be in a collective that never returns.
    """

    def wait() -> None:
        while True:
            signal.sigwait({number})
            write(path)

    threading.Thread(target=wait, daemon=True).start()


def write(path: Path) -> None:
    """Write the collectives that this rank has entered, the newest last."""
    write_json(path, {"schema": SCHEMA, **recorded()})


def recorded() -> dict[str, object]:
    """Return `entries`, with FIELDS each, or the reason why there are none."""
    name = RECORDERS[distributed.get_backend()]
    dump = getattr(_distributed_c10d, name, None)
    if dump is None:
        return {"entries": [], "reason": f"this torch has no {name}"}
    entries = json.loads(dump(True, False)).get("entries", [])[-KEPT:]
    return {"entries": [{field: entry.get(field) for field in FIELDS} for entry in entries]}
