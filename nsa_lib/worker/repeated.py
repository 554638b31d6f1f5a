"""Take the first steps of another case again, and compare their bits; if they differ, find out whose fault it is.

The other case began when the GPU was cold, this one begins when it is hot. If the fingerprints differ, or that of the
other case and one that was kept, the steps are taken more often at the same place, and at another one if there is one,
up to the step that differs. The cause that this speaks for is judged from what is written (`judgement.fingerprint`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.fingerprint import FILE, KEPT, parting
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.subject import training
from nsa_lib.subject.attention.tables import own_tables
from nsa_lib.worker import data
from nsa_lib.worker.building import built
from nsa_lib.worker.fingerprint import FingerprintRecorder
from nsa_lib.worker.places import at, here, places

MORE_TIMES = 3
"""How often the steps are taken again at each place where they differ: of two values by chance one is seen twice."""

Seen = Callable[[int, training.StepResult, float], None]


def repeat(case: CaseConfig, heartbeat: Heartbeat) -> Iterator[dict[str, object]]:
    """Take the steps of a case, a heartbeat each, and yield its fingerprint with those of further takes.

    If the other case left no fingerprint, there is nothing to compare.
    """
    cases = heartbeat.folder.parent
    other = cases / case.repeats / FILE
    expected = json.loads(other.read_text()) if other.exists() else None

    def beat(step: int, result: training.StepResult, seconds: float) -> None:
        figures = {"loss": result.loss.item(), "grad_norm": result.grad_norm.item()}
        heartbeat.beat("step", step, **figures, step_ms=1000 * seconds)

    found = taken(case, beat)
    again: list[dict[str, object]] = []
    if expected and (differing := _differing_steps(found, expected, cases.parent / KEPT)):
        longer = replace(case, steps=max(case.steps, *differing))
        for place in places(case.device)[:2]:
            for _ in range(MORE_TIMES):
                with at(place):
                    again.append({"where": here(case.device), **taken(longer, lambda *_: heartbeat.beat("step"))})
    yield {"fingerprint": {**found, "again": again}}


def _differing_steps(found: Mapping, expected: Mapping, kept: Path) -> list[int]:
    """Return the first steps in which the other case differs: from what was found now, and from what was kept."""
    comparable = (one for one in map(_read, sorted(kept.glob("*.json"))) if one["of"] == expected["of"])
    parted = [parting(expected, found), *(parting(expected, one) for one in comparable)]
    return [where[0] for where in parted if where]


def _read(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def taken(case: CaseConfig, seen: Seen) -> dict[str, object]:
    """Take the steps of a case from the start, and return `losses` and `steps` of their fingerprint."""
    model, batches = built(case), data.batches(case)
    optimizer, prints = training.make_optimizer(model, case.lr), FingerprintRecorder(model, case)
    with own_tables():
        for step in range(1, case.steps + 1):
            began, tokens = time.perf_counter(), next(batches).to(case.device)
            with prints.watching(step):
                result = training.train_step(model, optimizer, tokens, loss_chunk=case.loss_chunk)
            prints.after(step, result.loss.item())
            seen(step, result, time.perf_counter() - began)
    return prints.found
