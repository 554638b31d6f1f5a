"""The runs whose cases are running on this machine now, whoever started them."""

from __future__ import annotations

from pathlib import Path

from nsa_lib.runs.processes import processes_with

MODULES = ("nsa_lib.worker", "nsa_lib.worker.ranks")
"""What the process of a case runs."""


def runs_at_work() -> list[Path]:
    """Return their run folders, resolved."""
    cases = [Path(case) for module in MODULES for case in processes_with(module, "case.json")]
    # RUN/cases/CASE/case.json
    return sorted({case.resolve().parents[2] for case in cases if len(case.parents) > 2})
