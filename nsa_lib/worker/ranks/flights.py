"""Which collectives a rank has entered, from torch's flight recorder, and where its code is: who waits for whom."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from torch import distributed
from torch._C import _distributed_c10d

from nsa_lib.contract.files import write_json

SCHEMA = 1

KEPT = 200
"""Entries of a rank, the newest, that are kept."""

FIELDS = (
    "process_group", "collective_seq_id", "profiling_name", "input_sizes", "input_dtypes", "state", "time_created_ns",
)  # fmt: skip

COMPILERS = (
    "triton.compiler", "triton.runtime.autotuner", "torch._dynamo.convert_frame", "torch._inductor.compile_fx",
    "torch.utils.cpp_extension",
)  # fmt: skip
"""Modules that are on a thread's stack while it compiles or tunes, and not when it runs what was compiled."""

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
    """Write the collectives that this rank has entered, the newest last, with the time and where its code is."""
    main = sys._current_frames().get(threading.main_thread().ident)
    told = {"at": time.time(), "doing": _place(main), "compiles": compiles()}
    write_json(path, {"schema": SCHEMA, **told, **recorded()})


def compiles() -> bool:
    """Return whether a thread of this process compiles; autograd's compile what backward needs."""
    stacks = sys._current_frames().values()
    return any(str(frame.f_globals.get("__name__")).startswith(COMPILERS) for top in stacks for frame in _outwards(top))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frame: FrameType | None) -> str:
    """Return function and line that a thread is in, or ""."""
    return "" if frame is None else f"{frame.f_code.co_name}, {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def recorded() -> dict[str, object]:
    """Return `entries`, with FIELDS each, or the reason why there are none."""
    name = RECORDERS[distributed.get_backend()]
    dump = getattr(_distributed_c10d, name, None)
    if dump is None:
        return {"entries": [], "reason": f"this torch has no {name}"}
    entries = json.loads(dump(True, False)).get("entries", [])[-KEPT:]
    return {"entries": [{field: entry.get(field) for field in FIELDS} for entry in entries]}
