"""Measure attention on this machine's GPU: `python -m tests.bench_gpu [--quick] [--out FILE] [--baseline FILE] ...`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs import environment
from nsa_lib.runs.provenance import provenance
from nsa_lib.subject.config import NSAConfig
from nsa_lib.workbook.questions import QUESTIONS
from tests.bench_gpu import model
from tests.bench_gpu.by_selection import by_selection
from tests.bench_gpu.chart import over_dense_chart, write_chart
from tests.bench_gpu.measure import Heat
from tests.bench_gpu.problem import LAYOUTS, LENGTHS, Problem
from tests.bench_gpu.rows import (
    COMPILED,
    EAGER,
    GRAPH,
    GRAPH_LENGTH,
    GRAPHS_UP_TO,
    MODEL,
    Row,
    compared,
    judged_targets,
    tables,
    with_ratios,
)
from tests.bench_gpu.timing import Clock, CudaClock, WallClock, ceilings


@dataclass(frozen=True)
class Plan:
    """What one run measures, and with what."""

    layouts: dict[str, NSAConfig]
    lengths: Sequence[int]
    check_length: int
    """Tokens at which every query is compared with float64: past window and n_sel blocks, and no multiple of a tile."""
    dtype: torch.dtype
    copy_bytes: int
    matmul_side: int
    case: CaseConfig | None
    """The model in training; None measures none."""
    model_lengths: Sequence[int]
    others: bool = True
    """Whether the other backends of the selected branch are measured too."""


def plan(*, quick: bool, dry: bool) -> Plan:
    """Return what a run measures; a dry one goes the whole way on a CPU with tiny shapes."""
    if dry:
        tiny = NSAConfig(dim=64, heads=4, groups=2, d_k=16, d_v=16, l=16, d=8, l_sel=32, n_sel=5, w=48, phi="mean")
        case = model.checklist_case("laptop")
        case = replace(case, model=replace(case.model, layers=1, vocab=64))
        return Plan({"H=4 G=2 D=16": tiny}, (256, 512), 233, torch.float32, 2**20, 64, None if quick else case, (128,))
    wide = Plan(
        LAYOUTS, LENGTHS, 1500, torch.bfloat16, 4 * 2**30, 8192, model.checklist_case("checklist"), model.LENGTHS
    )
    if quick:
        first = next(iter(LAYOUTS))
        return replace(wide, layouts={first: LAYOUTS[first]}, lengths=(LENGTHS[0], LENGTHS[-1]), case=None)
    return wide


class Run:
    """One run: what it found so far, and when it must end."""

    def __init__(self, plan: Plan, clock: Clock, *, limit_s: float, out: Path):
        self.plan, self.clock, self._limit_s, self._out = plan, clock, limit_s, out
        self._began = time.monotonic()
        out.parent.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **environment.torch_facts(),
            **environment.machine_facts(),
            **provenance(QUESTIONS),
            "fla_core": _fla_core(),
        }
        self.rows: list[Row] = []
        self.ceilings = ceilings(clock, copy_bytes=plan.copy_bytes, side=plan.matmul_side, dtype=plan.dtype)
        self.heats = [
            Heat(name, c, clock, self.ceilings, plan.dtype, others=plan.others) for name, c in plan.layouts.items()
        ]

    @property
    def seconds(self) -> float:
        """How long the run has taken."""
        return time.monotonic() - self._began

    @property
    def machine(self) -> str:
        """Where the figures are from, in a line."""
        facts, dtype = self.environment, str(self.plan.dtype).removeprefix("torch.")
        measured = self.ceilings
        return (
            f"{facts.get('gpu', facts['cpu'])}, torch {facts['torch']}, {dtype}, B=1; "
            f"copies {measured.copy_gb_per_s:,.0f} GB/s, multiplies {measured.matmul_tflop_per_s:,.3g} Tflop/s"
        )

    def attention(self) -> None:
        """Measure every contestant on every layout and length."""
        for heat in self.heats:
            heat.check(self.plan.check_length)
            self._keep(
                f"{heat.layout}: {len(heat.checks)} contestants compared with float64 at S={self.plan.check_length:,}"
            )
        for heat in self.heats:
            for length in self.plan.lengths:
                problem = Problem.random(heat.config, length, dtype=self.plan.dtype, device=self.clock.device)
                for contestant in heat.field:
                    late = self._late()
                    self.rows += heat.skipped(contestant, length, late) if late else heat.measure(contestant, problem)
                if self._captures(length) and not self._late():
                    self.rows += heat.measure_graphs(problem)
                del problem
                self.clock.release()
                self._keep(f"{heat.layout}: S={length:,}")

    def _captures(self, length: int) -> bool:
        return length <= GRAPHS_UP_TO and self.clock.device == "cuda"

    def steps(self) -> None:
        """Measure the step of the model at every length."""
        for length in self.plan.model_lengths if self.plan.case else ():
            late = self._late()
            skipped = (Row(MODEL, length, "model", name, "step", EAGER, reason=late) for name in model.ATTENTION)
            modes = (*[COMPILED] * (length == GRAPH_LENGTH), *[GRAPH] * self._captures(length))
            self.rows += skipped if late else model.model_rows(self.plan.case, length, self.clock, other_modes=modes)
            self._keep(f"model: S={length:,}")

    def figures(self) -> dict:
        """Return all that is kept of the run."""
        return {
            "schema": 1,
            "command": shlex.join(["python", "-m", "tests.bench_gpu", *sys.argv[1:]]),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "dtype": str(self.plan.dtype),
            "ceilings": asdict(self.ceilings),
            "layouts": {name: asdict(config) for name, config in self.plan.layouts.items()},
            "checks": [check for heat in self.heats for check in heat.checks],
            "targets": judged_targets(self.rows),
            "rows": with_ratios(self.rows),
            "environment": self.environment,
        }

    def _late(self) -> str:
        return f"skipped: the run's {self._limit_s:,.0f} s were spent" if self.seconds > self._limit_s else ""

    def _keep(self, done: str) -> None:
        """Say what is done, and keep the figures so far: whatever comes next may take the process with it."""
        print(f"{self.seconds:6.1f} s  {done}", file=sys.stderr, flush=True)
        self._out.write_text(json.dumps(self.figures(), indent=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep the figures as JSON and chart, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=environment.PROJECT / "reports" / "bench_gpu.json",
                        help="where the figures go; the chart lies beside them")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="the first layout, shortest and longest, no model")
    parser.add_argument("--dry", action="store_true", help="the whole way with tiny shapes on a CPU; times say nothing")
    parser.add_argument(
        "--limit-s", type=float, default=300.0, help="what has not begun by then is skipped, and says so"
    )
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens, in place of those of the plan")
    parser.add_argument("--layouts", nargs="+", choices=[*LAYOUTS], help="of heads, in place of all")
    parser.add_argument(
        "--fused-only", action="store_true", help="dense attention and fused, no other backend, no model"
    )
    parser.add_argument("--baseline", type=Path, help="the JSON of another run, to be shown beside this one")
    given = parser.parse_args(arguments)
    before = json.loads(given.baseline.read_text())["rows"] if given.baseline else None
    if not given.dry and not torch.cuda.is_available():
        parser.exit(1, "bench-gpu: torch finds no CUDA device; --dry tries the benchmark itself on a CPU\n")
    clock = WallClock() if given.dry else CudaClock()
    asked = plan(quick=given.quick, dry=given.dry)
    layouts = {name: LAYOUTS[name] for name in given.layouts} if given.layouts else asked.layouts
    asked = replace(asked, lengths=given.lengths or asked.lengths, layouts=layouts)
    asked = replace(asked, others=False, case=None) if given.fused_only else asked
    run = Run(asked, clock, limit_s=given.limit_s, out=given.out)
    run.attention()
    chart = given.out.with_suffix(".html")
    write_chart(over_dense_chart(run.rows, run.machine), chart)
    run.steps()
    print(run.machine, tables(run.rows), by_selection(run.rows), given.out, chart, sep="\n\n")
    if before is not None:
        print("", f"Beside {given.baseline}:", compared(run.rows, before), sep="\n\n")


def _fla_core() -> str | None:
    """Return the version of fla-core, or None where it is not installed."""
    try:
        return version("fla-core")
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
