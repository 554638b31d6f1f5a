"""Run every mutant, and honest runs between them: `python -m tests.mutation [NAME ...]`; exit status 1 if one lives."""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nsa_lib.contract.files import write_text
from nsa_lib.runs.environment import PROJECT
from tests.mutation import trial
from tests.mutation.mutants import MUTANTS, Mutant

AT_ONCE = 2
HONEST_EVERY = 12
"""Mutants between two honest runs, which must be GO."""


def main(names: list[str]) -> int:
    """Run the mutants of these names, or all; print a line each, write the table, and return the exit status."""
    chosen: list[Mutant | None] = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    for place in range(len(chosen), -1, -HONEST_EVERY):
        chosen.insert(place, None)
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(_attempt, chosen))
    lived = [outcome for outcome in outcomes if not outcome.caught]
    print(f"{len(outcomes) - len(lived)} of {len(outcomes)} as expected, {time.monotonic() - began:.0f} s")
    rows = [f"| {o.mutant} | {o.verdict} | {'yes' if o.caught else 'NO'} | {o.because} |" for o in outcomes]
    header = "| mutant | verdict | as expected | because |\n|---|---|---|---|\n"
    write_text(PROJECT / "reports" / "mutants.md", header + "\n".join(rows) + "\n")
    return 1 if lived else 0


def _attempt(mutant: Mutant | None) -> trial.Outcome:
    with tempfile.TemporaryDirectory() as folder:
        outcome = trial.run(mutant, Path(folder))
    mark = "caught" if outcome.caught else "LIVES "
    print(
        f"{mark} {outcome.verdict:<10} {outcome.seconds:4.0f} s  {outcome.mutant}: {outcome.because[:160]}", flush=True
    )
    return outcome


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
