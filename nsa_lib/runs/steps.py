"""The heartbeats of a run's cases as one frame, a row a step, in memory that a run of any length can have."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nsa_lib.contract.heartbeat import STEP_COLUMNS, HeartbeatReader

TEXTS = ("case_id", "phase", "subject", "branches", "backend")

COUNTS = ("step", "alloc_retries", "ooms", "device_allocs", "ops", "seq_len")
"""Whole numbers where every step has one."""


def read_steps(folder: Path, case_ids: Sequence[str]) -> tuple[pd.DataFrame, dict[str, bool]]:
    """Return the steps of some cases, and of each case whether its heartbeats end in the middle of a line.

    Raises ValueError or TypeError for a heartbeat that is not one.
    """
    # Eight bytes a figure: as Python objects, the figures of 200,000 steps take a gigabyte.
    columns = {name: [] if name in TEXTS else array("d") for name in STEP_COLUMNS}
    texts = [(name, columns[name].append) for name in TEXTS if name != "case_id"]
    figures = [(name, column.append) for name, column in columns.items() if name not in TEXTS]
    torn = {}
    for case_id in case_ids:
        reader = HeartbeatReader(folder / "cases" / case_id / "heartbeat.jsonl")
        for beat in reader.beats():
            if beat["step"] is None:
                continue
            columns["case_id"].append(case_id)
            for name, append in texts:
                text = beat.get(name)
                append(sys.intern(text) if isinstance(text, str) else None)
            for name, append in figures:
                value = beat.get(name)
                append(math.nan if value is None else value)
        torn[case_id] = reader.torn
    return pd.DataFrame({name: _column(name, columns.pop(name)) for name in STEP_COLUMNS}), torn


def _column(name: str, values: list | array) -> np.ndarray:
    if name in TEXTS:
        return np.array(values, dtype=object)
    figures = np.frombuffer(values) if values else np.empty(0)
    return figures.astype(int) if name in COUNTS and not np.isnan(figures).any() else figures
