"""Run every mutant, and honest runs between them: `python -m tests.mutation [NAME ...]`; exit status 1 if one lives.

What was found is kept line by line with the hash of the source, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from nsa_lib.contract.files import write_text
from nsa_lib.contract.source import package_sha256
from nsa_lib.runs.environment import PROJECT, torch_facts
from tests.mutation import trial
from tests.mutation.mutants import MUTANTS, Mutant

AT_ONCE = 2
HONEST_EVERY = 12
"""Mutants between two honest runs, which must be GO."""

KEPT = PROJECT / "reports" / "mutants.jsonl"
TABLE = PROJECT / "reports" / "mutants.md"


def main(names: list[str]) -> int:
    """Run the mutants of these names, or all, print a line each, write the table, and return the exit status."""
    outcomes = run([m for m in MUTANTS if not names or any(name in m.name for name in names)])
    lived = [outcome for outcome in outcomes if not outcome.caught]
    said = f"{len(outcomes) - len(lived)} of {len(outcomes)} as expected"
    print(f"{said}; {TABLE}")
    write_text(TABLE, table(outcomes, said))
    return 1 if lived else 0


def run(mutants: Iterable[Mutant]) -> list[trial.Outcome]:
    """Run mutants, an honest run every so many and at both ends, but for those whose outcome is kept."""
    chosen: list[Mutant | None] = list(mutants)
    for place in range(len(chosen), -1, -HONEST_EVERY):
        chosen.insert(place, None)
    source = _source()
    kept = {(row["source"], row["place"]): trial.Outcome(**row["outcome"]) for row in _rows()}

    def attempt(numbered: tuple[int, Mutant | None]) -> trial.Outcome:
        number, mutant = numbered
        place = f"honest {number}" if mutant is None else mutant.name
        if (source, place) not in kept:
            kept[source, place] = _attempt(mutant)
            row = {"source": source, "place": place, "outcome": asdict(kept[source, place])}
            with KEPT.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return kept[source, place]

    KEPT.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(attempt, enumerate(chosen)))


def _source() -> str:
    """Return a hash of the library and of the mutants."""
    own = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(package_sha256().encode() + own).hexdigest()


def _rows() -> list[dict]:
    return [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []


def table(outcomes: list[trial.Outcome], said: str) -> str:
    """Return the table in Markdown, with the machine that made it."""
    seconds = sum(outcome.seconds for outcome in outcomes)
    header = (
        "# Mutants, each through the real smoke\n\n"
        f"`make mutants` on {time.strftime('%Y-%m-%d')}, {platform.machine()}, torch {torch_facts()['torch']}, Python "
        f"{platform.python_version()}, source {package_sha256()[:12]}: {said}, {AT_ONCE} at once, {seconds:,.0f} s of\n"
        "runs. Honest runs stand between them and must be GO. *because* is what the gate that must notice said.\n\n"
        "| mutant | verdict | as expected | seconds | because |\n|---|---|---|---|---|\n"
    )
    rows = [
        f"| {o.mutant} | {o.verdict} | {'yes' if o.caught else 'NO'} | {o.seconds:.0f} | {_cell(o.because)} |"
        for o in outcomes
    ]
    return header + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


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
