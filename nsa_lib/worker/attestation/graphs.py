"""What torch.compile made of a process's code so far, as torch itself counts it.

A frame is a call of Python code that torch tried to compile; one that it gave up is run eagerly from then on, as is
code that was compiled too often. Not seen here: code that nobody asked torch to compile. The profiler shows that: every
call of compiled code is an event of its own (`judgement.compiled`).
"""

from __future__ import annotations

from torch._dynamo.utils import counters, get_compilation_metrics


def compiled_graphs() -> dict[str, object]:
    """Return what was compiled since the process began, as what `json` can write.

    Returns:
        `graphs`: compiled; `frames`: tried; `eager_frames`: those given up; `graph_breaks`: {first line of the reason:
        times}; `recompilations`: for each frame that was compiled again, its function and the first line of the reason.
    """
    frames, breaks = counters["frames"], counters["graph_break"]
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "frames": frames["total"],
        "eager_frames": frames["total"] - frames["ok"],
        "graph_breaks": {_first_line(reason): times for reason, times in breaks.items()},
        "recompilations": [
            f"{made.co_name}: {_first_line(getattr(made, 'recompile_reason', None) or 'reason unknown')}"
            for made in get_compilation_metrics()
            # Compilations of a frame are numbered from 0; that of its backward has the same number and no name.
            if made.co_name and made.compile_id and not str(made.compile_id).endswith("/0")
        ],
    }


def _first_line(text: str) -> str:
    return " ".join((text.strip().splitlines() or [""])[0].split())
