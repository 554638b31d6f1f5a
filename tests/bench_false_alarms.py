"""Count how often each gate is false on honest runs: `python -m tests.bench_false_alarms`, a part of `make bench`.

Small laptop runs of all notebooks over seeds, sizes, dtypes and backends, judged by the notebooks' own gates. A gate
that fails or warns is a false alarm. Two processes share the runs; every one is kept by a line as it ends, so that a
count which was stopped goes on where it was, and one of other source begins anew. The end of it, or
`python -m tests.bench_false_alarms FILE.jsonl` with the lines of a count made elsewhere, writes the table and the file
that the reports read their rates from.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from nsa_lib.contract.files import write_text
from nsa_lib.contract.source import package_sha256
from nsa_lib.judgement.false_alarms import COUNTED, Count, Rate, gate_kind, write_count
from nsa_lib.judgement.gate import FAIL, NOT_RUN, WARN
from nsa_lib.runs import environment
from nsa_lib.runs.environment import PROJECT
from nsa_lib.runs.runner import make_run_folder
from nsa_lib.workbook.questions import plan
from nsa_lib.workbook.run import Run
from nsa_lib.worker.loop import run_to_result

RUNS = 200
"""Of each notebook."""

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


def in_turn() -> Iterator[tuple[str, int]]:
    """Yield the runs, a quarter of them of each notebook in turn."""
    for number in range(RUNS):
        for notebook in OF_NOTEBOOK:
            yield notebook, number


def outcomes(notebook: str, parameters: dict[str, object]) -> list[dict[str, object]]:
    """Make a run in this process and return its gates that judged something: name, outcome, required, detail."""
    with tempfile.TemporaryDirectory() as out_dir:
        planned = plan(notebook, {**parameters, "out_dir": out_dir, "In": []})
        folder = make_run_folder(planned)
        for case in planned.cases:
            own = folder / "cases" / case.case_id / "case.json"
            own.parent.mkdir(parents=True)
            own.write_text(case.to_json())
            set_allocator(case.alloc_conf)
            run_to_result(own)
        gates = Run.read(folder).gates
    return [
        {"name": g.name, "outcome": g.outcome, "required": g.required, "detail": g.detail}
        for g in gates
        if g.outcome != NOT_RUN
    ]


def set_allocator(alloc_conf: str) -> None:
    """Have torch say that it obeys a setting, as it does in a process that was started with it."""
    torch._C._accelerator_setAllocatorSettings(alloc_conf)


def work(worker: int) -> None:
    """Make every AT_ONCE-th run that is not kept yet."""
    environment.torch_facts = cache(environment.torch_facts)
    source, done = package_sha256(), {(row["notebook"], row["number"]) for row in rows(LINES, package_sha256())}
    for place, (notebook, number) in enumerate(in_turn()):
        if place % AT_ONCE != worker or (notebook, number) in done:
            continue
        parameters, began = given(notebook, number), time.perf_counter()
        row = {"source": source, "notebook": notebook, "number": number, "given": parameters}
        row |= {"gates": outcomes(notebook, parameters), "seconds": round(time.perf_counter() - began, 1)}
        with LINES.open("a") as file:
            file.write(json.dumps(row) + "\n")


def rows(lines: Path, source: str | None = None) -> list[dict]:
    """Return the kept runs of a source, or of the last one that there is."""
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    source = source or (found[-1]["source"] if found else None)
    return [row for row in found if row["source"] == source]


def count(found: list[dict]) -> dict[str, Rate]:
    """Return how often each kind of gate was false in some runs."""
    runs, alarms = Counter(), Counter()
    for row in found:
        judged = {gate_kind(gate["name"]) for gate in row["gates"]}
        false = {gate_kind(g["name"]) for g in row["gates"] if g["required"] and g["outcome"] in (FAIL, WARN)}
        runs.update(judged)
        alarms.update(false)
    return {kind: Rate(alarms[kind], runs[kind]) for kind in sorted(runs)}


def table(counted: Count) -> str:
    """Return the counts in Markdown, with date and machine."""
    lines = [f"| {kind} | {rate.alarms} | {rate.runs} |" for kind, rate in counted.rates.items()]
    return (
        f"# False alarms of every gate on honest runs\n\n`python -m tests.bench_false_alarms`, {counted.date}, "
        f"{counted.machine}, torch {torch.__version__}, source {counted.source_sha256[:12]}.\n\n"
        "| gate | false alarms | honest runs |\n|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def publish(found: list[dict]) -> list[str]:
    """Print the counts of some runs, write the table and the file of the reports; return the gates above the goal."""
    machine = str(environment.machine_facts()["cpu"])
    counted = Count(count(found), found[-1]["source"], time.strftime("%Y-%m-%d"), machine)
    for kind, rate in counted.rates.items():
        print(f"{kind:24} {rate.alarms:4} of {rate.runs:4}")
    write_text(TABLE, table(counted))
    write_count(counted)
    print(f"{TABLE}; {COUNTED}")
    return [kind for kind, rate in counted.rates.items() if rate.alarms > GOAL * rate.runs]


def main(lines: Path | None) -> int:
    """Make the runs that are missing, or take those of `lines`; publish the counts, return 1 if one is too high."""
    failed = False
    if lines is None:
        LINES.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.bench_false_alarms"]
        workers = [subprocess.Popen([*command, str(number)], cwd=PROJECT) for number in range(AT_ONCE)]
        try:
            failed = sum(process.wait() != 0 for process in workers) > 0
        finally:
            for process in workers:
                process.kill()
    above = publish(rows(LINES, package_sha256()) if lines is None else rows(lines))
    print(f"above 1 in {1 / GOAL:.0f}: {', '.join(above) or 'none'}")
    return 1 if failed or above else 0


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else None
    if given is not None and given.isdecimal():
        os.nice(10)
        work(int(given))
    else:
        sys.exit(main(given and Path(given)))
