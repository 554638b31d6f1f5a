"""Count false alarms of the checks of what a user brings: `python -m tests.bench_own_false_alarms [SEEDS]`.

Every attention, kernel and model of the tests that is right, over seeds, sizes and dtypes, through every check that is
required. Each trial is kept by a line as it ends: a count which was stopped goes on, one of other source begins anew.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import torch

from nsa_lib.contract.agenda import OWED
from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.files import write_text
from nsa_lib.contract.source import package_sha256
from nsa_lib.runs import environment
from nsa_lib.runs.environment import PROJECT
from tests.worker.preflight.own import blind_honest
from tests.worker.preflight.own.test_blind import those_of
from tests.worker.preflight.own.test_own import HONEST, case_of, look

SEEDS = 20

CHECKS = (*OWED, "copy_near")

LINES = PROJECT / "reports" / "own_false_alarms.jsonl"

TABLE = PROJECT / "reports" / "own_false_alarms.md"


def trials(seeds: int) -> Iterator[tuple[str, str, str, int]]:
    """Yield file, role, name and seed of each honest one, seed by seed."""
    known = [("honest", role, name) for role, name in HONEST]
    known += [("blind_honest", role, name) for name, role, _ in those_of(blind_honest)]
    for seed in range(seeds):
        for file, role, name in known:
            yield file, role, name, seed


def drawn(file: str, role: str, name: str, seed: int) -> CaseConfig:
    """Return a case of another seed, length, depth and dtype."""
    draw = random.Random(f"{name} {seed}")
    case = case_of(
        file,
        name,
        role=role,
        dtype=draw.choice(("float32", "float32", "bfloat16", "float64")),
        seq_len=draw.randrange(40, 330),
        layers=draw.choice((1, 2, 3)),
    )
    return replace(case, seed=seed, batch=draw.choice((1, 2)))


def rows() -> list[dict]:
    """Return the kept trials of this source."""
    lines = LINES.read_text().splitlines() if LINES.exists() else []
    return [row for row in map(json.loads, lines) if row["source"] == package_sha256()]


def judge(seeds: int) -> None:
    """Make every trial that is not kept yet."""
    done = {(row["name"], row["seed"]) for row in rows()}
    for file, role, name, seed in trials(seeds):
        if (name, seed) in done:
            continue
        case, found = drawn(file, role, name, seed), {}
        for check in CHECKS:
            finding = look(check, case)
            if finding.required:
                found[check] = [finding.holds, str(finding.measured), str(finding.limit), finding.detail]
        row = {"source": package_sha256(), "name": name, "seed": seed, "dtype": case.dtype, "length": case.seq_len}
        with LINES.open("a") as file_of_lines:
            file_of_lines.write(json.dumps(row | {"found": found}) + "\n")


def table(kept: list[dict]) -> str:
    """Return the counts in Markdown, with date and machine, and each false alarm."""
    judged, alarms, said = Counter(), Counter(), []
    for row in kept:
        for check, (holds, measured, limit, detail) in row["found"].items():
            judged[check] += 1
            if holds is not True:
                alarms[check] += 1
                where = f"{row['name']}, seed {row['seed']}, {row['dtype']}, {row['length']} tokens"
                said.append(f"- {check}: {where}: {measured}, limit {limit}; {detail}")
    machine = environment.machine_facts()["cpu"]
    lines = "\n".join(f"| {check} | {alarms[check]} | {judged[check]} |" for check in CHECKS)
    return (
        f"# False alarms of the checks of what a user brings\n\n`python -m tests.bench_own_false_alarms`, "
        f"{time.strftime('%Y-%m-%d')}, {machine}, torch {torch.__version__}, source {package_sha256()[:12]}.\n\n"
        f"| check | false alarms | honest trials |\n|---|---|---|\n{lines}\n\n" + "\n".join(said) + "\n"
    )


def main() -> int:
    """Make the trials that are missing, print and keep the counts; return 1 if there is a false alarm."""
    LINES.parent.mkdir(exist_ok=True)
    os.nice(10)
    judge(int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS)
    kept = rows()
    write_text(TABLE, table(kept))
    print(table(kept))
    return 1 if any(holds is not True for row in kept for holds, *_ in row["found"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
