"""Tables of named facts: the machine that a run was made on, and what is known of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nsa_lib.report.table import Cell, Table
from nsa_lib.report.tables import format_value
from nsa_lib.runs.recorded import Recorded


def environment_table(environment: Mapping) -> Table:
    """Tabulate the facts of a machine; a nested fact is named by its path, `gpu.name`."""
    return facts_table("Environment", environment)


def machine_table(run: Recorded) -> Table:
    """Tabulate on what a run was made, where it lies, and the command that repeats it."""
    named = {"run_id": run.info["run_id"], "run_folder": run.folder, "reproduce": run.info["reproduce"]}
    return environment_table({**run.info["environment"], **named})


def facts_table(caption: str, facts: Mapping) -> Table:
    """Tabulate named facts; a nested one is named by its path."""
    return Table(caption, ("fact", "value"), [(Cell(k), Cell(format_value(v))) for k, v in _flatten(facts)])


def _flatten(facts: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
