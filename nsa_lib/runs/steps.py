"""The heartbeats of a run's cases as one frame, a row a step, in memory that a run of any length can have."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nsa_lib.contract.heartbeat import STEP_COLUMNS, HeartbeatReader

TEXTS = ("case_id", "phase", "subject", "branches", "backend", "collective")

LISTS = ("data", "part_norms", "routes")

COUNTS = ("rank", "step", "alloc_retries", "ooms", "device_allocs", "ops", "seq_len")
"""Whole numbers where every step has one."""


def read_steps(folder: Path, case_ids: Sequence[str]) -> tuple[pd.DataFrame, dict[str, bool]]:
    """Return the steps of some cases, and of each case whether its heartbeats end in the middle of a line.

    Raises ValueError or TypeError for a heartbeat that is not one.
    """
    # Eight bytes a figure: as Python objects, the figures of 200,000 steps take a gigabyte.
    columns = {name: [] if name in (*TEXTS, *LISTS) else array("d") for name in STEP_COLUMNS}
    torn = {}
    for case_id in case_ids:
        readers = readers_of(folder / "cases" / case_id)
        for rank, reader in readers.items():
            _append(columns, case_id, rank, reader)
        torn[case_id] = any(reader.torn for reader in readers.values())
    return pd.DataFrame({name: _column(name, columns.pop(name)) for name in STEP_COLUMNS}), torn


def readers_of(case_folder: Path) -> dict[int, HeartbeatReader]:
    """Return what reads the heartbeats of each rank of a case; a process by itself is rank 0."""
    folders = {int(path.name.removeprefix("rank")): path for path in case_folder.glob("rank[0-9]*")}
    found = dict(sorted(folders.items())) or {0: case_folder}
    return {rank: HeartbeatReader(path / "heartbeat.jsonl") for rank, path in found.items()}


def _append(columns: Mapping[str, list | array], case_id: str, rank: int, reader: HeartbeatReader) -> None:
    """Append the steps of a rank to the columns."""
    texts = [(name, columns[name].append) for name in TEXTS if name != "case_id"]
    lists = [(name, columns[name].append) for name in LISTS]
    told = (*TEXTS, *LISTS, "rank")
    figures = [(name, column.append) for name, column in columns.items() if name not in told]
    for beat in reader.beats():
        if beat["step"] is None:
            continue
        columns["case_id"].append(case_id)
        columns["rank"].append(rank)
        for name, append in texts:
            text = beat.get(name)
            append(sys.intern(text) if isinstance(text, str) else None)
        for name, append in lists:
            append(beat.get(name))
        for name, append in figures:
            value = beat.get(name)
            append(math.nan if value is None else value)


def _column(name: str, values: list | array) -> np.ndarray:
    if name in TEXTS:
        return np.array(values, dtype=object)
    if name in LISTS:  # NumPy would make a table of lists that are equally long
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    figures = np.frombuffer(values) if values else np.empty(0)
    return figures.astype(int) if name in COUNTS and not np.isnan(figures).any() else figures
