"""Count how often each gate is false on honest runs: `python -m tests.bench_false_alarms`, a part of `make bench`.

Small laptop runs of all notebooks over seeds, sizes, dtypes and backends, judged by the notebooks' own gates. A gate
that fails, warns or did not run is a false alarm. Some processes share the runs; every one is kept by a line as it
ends, so that a count which was stopped goes on where it was, and one of other source begins anew. The end of it, or
`--lines FILE.jsonl` with the lines of a count made elsewhere, writes the table and the file that the reports read
their rates from.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import count as numbers
from itertools import cycle, islice
from pathlib import Path

import torch

from nsa_lib.contract.files import write_text
from nsa_lib.contract.source import package_sha256
from nsa_lib.judgement.false_alarms import COUNTED, Count, Rate, gate_kind, write_count
from nsa_lib.judgement.gate import PASS
from nsa_lib.runs import environment
from nsa_lib.runs.environment import PROJECT
from nsa_lib.runs.folder import make_run_folder
from nsa_lib.runs.sums import case_files, seal
from nsa_lib.workbook.questions import plan
from nsa_lib.workbook.run import Run
from nsa_lib.worker import memory
from nsa_lib.worker.loop import run_to_result

RUNS = 200

AT_ONCE = 2

LINES = PROJECT / "reports" / "false_alarms.jsonl"

TABLE = PROJECT / "reports" / "false_alarms.md"

GOAL = 1 / 200

OF_NOTEBOOK = {
    "smoke": {"steps": 60},
    "backend_contrast": {"steps": 17, "rounds": 1},
    "backward_scaling": {"steps": 3},
    "preflight": {},
}

TURNS = ("smoke", "backend_contrast", "smoke", "backward_scaling", "preflight")
"""Notebooks in the order in which they are run: the smoke twice as often, for it has most of the gates."""


def given(notebook: str, number: int) -> dict[str, object]:
    """Return the parameters of an honest run: another seed, other sizes, another dtype and backend each."""
    draw = random.Random(f"{notebook} {number}")
    l_sel, seq_len = draw.choice((32, 64)), draw.randrange(128, 449)
    sizes = {
        "seed": draw.randrange(10**6), "layers": draw.choice((1, 2, 3)), "dim": draw.choice((32, 48, 64, 128)),
        "heads": 4, "groups": draw.choice((1, 2, 4)), "d_k": draw.choice((16, 32)), "d_v": draw.choice((16, 32)),
        "d": draw.choice((8, 16)), "l_sel": l_sel, "n_sel": draw.choice((3, 4, 5)), "w": draw.choice((32, 50, 128)),
        "seq_len": seq_len, "batch": draw.choice((1, 1, 2, 3)), "vocab": draw.choice((64, 256, 512)),
        "dtype": draw.choice(("float32", "float32", "bfloat16", "float64")), "lr": draw.choice((3e-4, 1e-3)),
    }  # fmt: skip
    if notebook in ("smoke", "backward_scaling"):
        sizes["backend"] = draw.choice(("masked", "gather", "packed"))
    if notebook in ("backend_contrast", "backward_scaling"):
        sizes["seq_lens"] = [64, 128]
    return {"profile": "laptop", **sizes, **OF_NOTEBOOK[notebook]}


def in_turn(runs: int) -> Iterator[tuple[str, int]]:
    """Yield so many runs by notebook and number."""
    told = {notebook: numbers() for notebook in OF_NOTEBOOK}
    yield from ((notebook, next(told[notebook])) for notebook in islice(cycle(TURNS), runs))


def outcomes(notebook: str, parameters: Mapping[str, object]) -> list[dict[str, object]]:
    """Make a run in this process and return its required gates: name, outcome, measured, limit, detail."""
    with tempfile.TemporaryDirectory() as out_dir:
        planned = plan(notebook, {**parameters, "out_dir": out_dir, "In": []})
        folder = make_run_folder(planned)
        for case in planned.cases:
            own = folder / "cases" / case.case_id / "case.json"
            own.parent.mkdir(parents=True)
            own.write_text(case.to_json())
            set_allocator(case.alloc_conf)
            run_to_result(own)
            seal(folder, case_files(own.parent))
        gates = Run.read(folder).gates
    told = ("name", "outcome", "measured", "limit", "detail")
    return [{name: getattr(gate, name) for name in told} for gate in gates if gate.required]


def set_allocator(alloc_conf: str) -> None:
    """Have a meter read a setting, as it does in a process that was started with it."""
    memory._setting_that_torch_read = lambda: {"setting": alloc_conf}


def begin_process() -> None:
    """Prepare a process that makes runs."""
    os.nice(10)
    torch.set_num_threads(1)
    environment.torch_facts = cache(environment.torch_facts)


def attempt(notebook: str, number: int, until: float) -> dict[str, object] | None:
    """Make a run and return its line; None if the time is over."""
    if time.time() > until:
        return None
    parameters, began = given(notebook, number), time.perf_counter()
    row = {"source": package_sha256(), "notebook": notebook, "number": number, "given": parameters}
    row |= {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "gates": outcomes(notebook, parameters)}
    return {**row, "seconds": round(time.perf_counter() - began, 1)}


def machine() -> str:
    """Return processor and torch."""
    return f"{environment.machine_facts()['cpu']}, torch {torch.__version__}"


def make(runs: int, at_once: int, limit_s: float) -> int:
    """Make the runs that are not kept yet, as many as the time allows; return how many are missing."""
    LINES.parent.mkdir(exist_ok=True)
    until, done = time.time() + limit_s, {(row["notebook"], row["number"]) for row in rows(LINES, package_sha256())}
    wanted, missing = [run for run in in_turn(runs) if run not in done], 0
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, spawned, begin_process) as pool, LINES.open("a") as file:
        for future in as_completed([pool.submit(attempt, *run, until) for run in wanted]):
            row = future.result()
            missing += row is None
            if row is not None:
                file.write(json.dumps(row) + "\n")
                file.flush()
    return missing


def rows(lines: Path, source: str | None = None) -> list[dict]:
    """Return the kept runs of a source, or of the last one that there is."""
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    source = source or (found[-1]["source"] if found else None)
    return [row for row in found if row["source"] == source]


def count(found: list[dict]) -> dict[str, Rate]:
    """Return how often each kind of gate was false in some runs."""
    runs, alarms = Counter(), Counter()
    for row in found:
        runs.update({gate_kind(gate["name"]) for gate in row["gates"]})
        alarms.update({gate_kind(gate["name"]) for gate in row["gates"] if gate["outcome"] != PASS})
    return {kind: Rate(alarms[kind], runs[kind]) for kind in sorted(runs)}


def table(counted: Count, made: Mapping[str, int], false: list[str]) -> str:
    """Return the counts in Markdown, with date, machine and what every false gate said."""
    lines = [f"| {kind} | {rate.alarms} | {rate.runs} |" for kind, rate in counted.rates.items()]
    runs = ", ".join(f"{number} of {notebook}" for notebook, number in made.items())
    return (
        f"# False alarms of every gate on honest runs\n\n`python -m tests.bench_false_alarms`, {counted.date}, "
        f"{counted.machine}, source {counted.source_sha256[:12]}: {runs}, over\nseeds, sizes, dtypes and backends. "
        "None of n means a rate below 3 / n, with a confidence of 95 %.\n\n"
        "| gate | false alarms | honest runs |\n|---|---|---|\n" + "\n".join(lines) + "\n" + "".join(false)
    )


def publish(found: list[dict]) -> list[str]:
    """Print the counts of some runs, write the table and the file of the reports; return the gates above the goal."""
    last = found[-1]
    counted = Count(count(found), last["source"], last["date"], last["machine"])
    for kind, rate in counted.rates.items():
        print(f"{kind:24} {rate.alarms:4} of {rate.runs:4}")
    false = [
        f"\n{row['notebook']} {row['number']}: {gate['name']} {gate['outcome']}: {gate['detail']}\n"
        for row in found for gate in row["gates"] if gate["outcome"] != PASS
    ]  # fmt: skip
    print("".join(false))
    write_text(TABLE, table(counted, Counter(row["notebook"] for row in found), false))
    write_count(counted)
    print(f"{TABLE}; {COUNTED}")
    return [kind for kind, rate in counted.rates.items() if rate.alarms > GOAL * rate.runs]


def main(arguments: list[str]) -> int:
    """Make the runs that are missing, or take those of a file; publish the counts, return 1 if one is too high."""
    parser = argparse.ArgumentParser("python -m tests.bench_false_alarms")
    parser.add_argument("--runs", type=int, default=RUNS, help="in all")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="processes")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="seconds after which no run is begun")
    parser.add_argument("--lines", type=Path, help="publish the last count in this file, and make no run")
    asked = parser.parse_args(arguments)
    missing = 0 if asked.lines else make(asked.runs, asked.at_once, asked.limit_s)
    above = publish(rows(asked.lines) if asked.lines else rows(LINES, package_sha256()))
    print(f"above 1 in {1 / GOAL:.0f}: {', '.join(above) or 'none'}; {missing} runs not made")
    return 1 if missing or above else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
