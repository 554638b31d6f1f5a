"""Cases of two ranks, run as a run does: torchrun, supervised, in a folder."""

from contextlib import contextmanager
from dataclasses import replace

from nsa_lib.runs.processes import adopt_orphans
from nsa_lib.runs.progress import Progress
from nsa_lib.runs.runner import run_case, start_worker
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.runs.watch import Limits
from tests.subject.test_config import CASE, MODEL

LIMITS = Limits(step_floor_s=8)

PAIR = replace(
    CASE, batch=2, ranks=2, strategy="ddp", steps=14, model=replace(MODEL, layers=2), digest_parts=2,
    profile_operators=True,
)  # fmt: skip


def run_pair(folder, *, limits=LIMITS, **changes):
    """Run a case of two ranks and return its result."""
    with started(folder, **changes) as (case, process), StopButton() as stop:
        progress = Progress({case.case_id: case.steps})
        return run_case(case, folder, process, limits=limits, progress=progress, stop=stop)


@contextmanager
def started(folder, **changes):
    """Start torchrun, which waits to be let go."""
    adopt_orphans()
    case = replace(PAIR, **changes)
    (folder / "case.json").write_text(case.to_json())
    yield case, start_worker(case, folder)
