"""Run every mutant, and honest runs between them: `python -m tests.mutation [NAME ...]`; exit status 1 if one lives.

What was found is kept line by line with the hash of the source, so that a run that was stopped goes on where it was.
`--lines FILE.jsonl` makes the table of what was kept elsewhere.
"""

from __future__ import annotations

import argparse
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
from nsa_lib.runs.environment import PROJECT, machine_facts, torch_facts
from tests.mutation import trial
from tests.mutation.mutants import MUTANTS, Mutant

AT_ONCE = 2
HONEST_EVERY = 12
"""Mutants between two honest runs, which must be GO."""

KEPT = PROJECT / "reports" / "mutants.jsonl"
TABLE = PROJECT / "reports" / "mutants.md"


def main(arguments: list[str]) -> int:
    """Run mutants, print a line each, write the table; return 1 if one lives or was not run."""
    parser = argparse.ArgumentParser("python -m tests.mutation")
    parser.add_argument("names", nargs="*", help="texts, of which one must stand in a mutant's name; all if none")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of these each N-th alone")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="runs at a time")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="seconds after which no run is begun")
    parser.add_argument("--lines", type=Path, help="make the table of the last outcomes in this file, and no run")
    asked = parser.parse_args(arguments)
    named = [m for m in MUTANTS if not asked.names or any(name in m.name for name in asked.names)]
    chosen = in_turn(named[:: asked.every])
    if not asked.lines:
        run(chosen, asked.at_once, asked.limit_s)
    kept = kept_rows(asked.lines) if asked.lines else kept_rows(KEPT, _source())
    rows = {place: kept[place] for place in chosen if place in kept}
    unrun = [place for place in chosen if place not in rows]
    lived = [row for row in rows.values() if not row["outcome"]["caught"]]
    said = f"{len(rows) - len(lived)} of {len(rows)} as expected"
    said += f"; not run: {', '.join(unrun)}" if unrun else ""
    print(f"{said}; {TABLE}")
    if rows:
        write_text(TABLE, table(list(rows.values()), said))
    return 1 if lived or unrun else 0


def in_turn(mutants: Iterable[Mutant]) -> dict[str, Mutant | None]:
    """Return mutants by name, and an honest run every so many and at both ends."""
    chosen: list[Mutant | None] = list(mutants)
    for place in range(len(chosen), -1, -HONEST_EVERY):
        chosen.insert(place, None)
    return {mutant.name if mutant else f"honest {number}": mutant for number, mutant in enumerate(chosen)}


def run(chosen: dict[str, Mutant | None], at_once: int, limit_s: float) -> None:
    """Run mutants whose outcome is not kept yet, while there is time, and keep each outcome."""
    KEPT.parent.mkdir(exist_ok=True)
    source, until = _source(), time.monotonic() + limit_s
    told = {"source": source, "package": package_sha256(), "date": time.strftime("%Y-%m-%d"), "machine": _machine()}
    kept = kept_rows(KEPT, source)

    def attempt(place: str) -> None:
        if place not in kept and time.monotonic() < until:
            row = {**told, "place": place, "outcome": asdict(_attempt(chosen[place]))}
            with KEPT.open("a") as file:
                file.write(json.dumps(row) + "\n")

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(attempt, chosen))


def kept_rows(lines: Path, source: str | None = None) -> dict[str, dict]:
    """Return the kept outcomes of a source, or of the last one that there is, by place."""
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    source = source or (found[-1]["source"] if found else None)
    return {row["place"]: row for row in found if row["source"] == source}


def _source() -> str:
    """Return a hash of the library and of the mutants."""
    own = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(package_sha256().encode() + own).hexdigest()


def _machine() -> str:
    return f"{machine_facts()['cpu']}, torch {torch_facts()['torch']}, Python {platform.python_version()}"


def table(rows: list[dict], said: str) -> str:
    """Return the table in Markdown, with the machine that made it."""
    outcomes = [trial.Outcome(**row["outcome"]) for row in rows]
    last, seconds = rows[-1], sum(outcome.seconds for outcome in outcomes)
    header = (
        "# Mutants, each through the real notebook\n\n"
        f"`make mutants` on {last['date']}, {last['machine']}, source {last['package'][:12]}: {said};\n"
        f"{seconds:,.0f} s of runs. Honest runs stand between them and must be GO. *because* is what the\n"
        "gate that must notice said.\n\n"
        "| mutant | verdict | as expected | seconds | because |\n|---|---|---|---|---|\n"
    )
    cells = [
        f"| {o.mutant} | {o.verdict} | {'yes' if o.caught else 'NO'} | {o.seconds:.0f} | {_cell(o.because)} |"
        for o in outcomes
    ]
    return header + "\n".join(cells) + "\n"


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
