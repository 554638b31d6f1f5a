"""Count false alarms of the checks of what a user brings.

`python -m tests.bench_own_false_alarms [--seeds 20] [--processes 2] [--limit-s SECONDS]`

Every attention, kernel and model of the tests that is right, over seeds, sizes and dtypes, through every check that is
required. Each trial is kept by a line as it ends: a count which was stopped goes on, one of other source begins anew.
Seed by seed, so that one that the limit ends has tried each as often as any other.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

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

ONE_DTYPE = ("Float32Only",)
"""What takes float32 alone, and is refused in another dtype before any check."""

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
        dtype="float32" if name in ONE_DTYPE else draw.choice(("float32", "float32", "bfloat16", "float64")),
        seq_len=draw.randrange(40, 330),
        layers=draw.choice((1, 2, 3)),
    )
    return replace(case, seed=seed, batch=draw.choice((1, 2)))


def rows() -> list[dict]:
    """Return the kept trials of this source."""
    lines = LINES.read_text().splitlines() if LINES.exists() else []
    return [row for row in map(json.loads, lines) if row["source"] == package_sha256()]


def prepare() -> None:
    """Make a process of the count one that takes one core and says nothing of what the tests know of."""
    os.nice(10)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def trial(file: str, role: str, name: str, seed: int, deadline: float) -> dict | None:
    """Return what each check says of one trial, or None where the time is over."""
    case, found = drawn(file, role, name, seed), {}
    for check in CHECKS:
        if time.time() > deadline:
            return None
        finding = look(check, case)
        if finding.required:
            found[check] = [finding.holds, str(finding.measured), str(finding.limit), finding.detail]
    row = {"source": package_sha256(), "name": name, "seed": seed, "dtype": case.dtype, "length": case.seq_len}
    return row | {"found": found}


def judge(seeds: int, processes: int, limit_s: float) -> None:
    """Make every trial that is not kept yet, until the time is over."""
    done = {(row["name"], row["seed"]) for row in rows()}
    wanted = [one for one in trials(seeds) if one[2:] not in done]
    deadline = time.time() + limit_s
    workers = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=prepare)
    with workers, LINES.open("a") as lines:
        for row in workers.map(trial, *zip(*wanted, strict=True), [deadline] * len(wanted)) if wanted else ():
            if row is not None:
                lines.write(json.dumps(row) + "\n")
                lines.flush()


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
        f"{time.strftime('%Y-%m-%d')}, {machine}, torch {torch.__version__}, source {package_sha256()[:12]}; "
        f"{len(kept)} trials of {len({row['name'] for row in kept})} kinds.\n\n"
        f"| check | false alarms | honest trials |\n|---|---|---|\n{lines}\n\n" + "\n".join(said) + "\n"
    )


def main() -> int:
    """Make the trials that are missing, print and keep the counts; return 1 if there is a false alarm or no trial."""
    read = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    read.add_argument("--seeds", type=int, default=SEEDS)
    read.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    read.add_argument("--limit-s", type=float, default=float("inf"))
    asked = read.parse_args()
    LINES.parent.mkdir(exist_ok=True)
    judge(asked.seeds, asked.processes, asked.limit_s)
    kept = rows()
    write_text(TABLE, table(kept))
    print(table(kept))
    return 1 if not kept or any(holds is not True for row in kept for holds, *_ in row["found"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
