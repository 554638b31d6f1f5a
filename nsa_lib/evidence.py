"""What a run recorded, as gates and charts read it: its description and two frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import TypeVar

import pandas as pd

from nsa_lib.runnable import runnable_backends


@dataclass(frozen=True)
class Evidence:
    """What a run recorded, as the gates read it."""

    info: Mapping[str, object]
    """run.json."""
    cases: pd.DataFrame
    """A row a case: its result."""
    steps: pd.DataFrame
    """A row a step: its heartbeat."""
    measured: dict[Callable, object] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What functions of the run alone found in it; see `measured_once`."""

    def case(self, case_id: str) -> Mapping[str, object] | None:
        """Return a case's result, or None if the run has no such case."""
        rows = self.cases[self.cases["case_id"] == case_id]
        return None if rows.empty else rows.iloc[0].to_dict()

    def of(self, case_id: str) -> pd.DataFrame:
        """Return a case's steps in order."""
        return self.steps[self.steps["case_id"] == case_id].sort_values("step")

    @property
    def main_case(self) -> str | None:
        """The case to show first: the training, else the one with most steps of known memory; None without any."""
        counts = self.steps.loc[self.steps["peak_alloc_mib"].notna(), "case_id"].value_counts()
        if counts.empty:
            return None
        return "training" if "training" in counts.index else str(counts.idxmax())

    def parameter(self, name: str) -> object:
        """Return a parameter's effective value."""
        return next(p["value"] for p in self.info["parameters"] if p["name"] == name)

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that a preflight or a contrast goes through on the machine that this run was made on."""
        return runnable_backends(self.parameter, self.info["environment"])


T = TypeVar("T")


def measured_once(measure: Callable[[Evidence], T]) -> Callable[[Evidence], T]:
    """Return a function that measures a run the first time and then gives the same answer, which nobody may change.

    A run that is read is over, and its gates, charts, tables and advice all ask for the same figures.
    """

    @wraps(measure)
    def kept(run: Evidence) -> T:
        if measure not in run.measured:
            run.measured[measure] = measure(run)
        return run.measured[measure]

    return kept


def from_json(case: Mapping[str, object] | None, field: str) -> object:
    """Return a field of a case that the frame keeps as JSON text, or None where it is missing."""
    text = None if case is None else case.get(field)
    return json.loads(text) if isinstance(text, str) else None
