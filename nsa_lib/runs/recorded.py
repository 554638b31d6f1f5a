"""What a run recorded, as gates and charts read it: its description and two frames."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from nsa_lib.contract.files import replacing
from nsa_lib.contract.fingerprint import FILE as FINGERPRINT_FILE
from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.contract.origin import ORIGIN, case_sha256
from nsa_lib.runs.fingerprints import read_fingerprint
from nsa_lib.runs.steps import read_steps, readers_of
from nsa_lib.runs.sums import changes
from nsa_lib.subject.config import OWN, ConfigError

JSON_COLUMNS = (
    "asked", "routes", "attention_error", "selected_error", "operators", "effective", "attention_map", "checks",
    "prediction", "executed", "attestation", "fresh_tokens", "planted_nan", "meter", "replay", "on_trial", "origin",
    "ranks", "start", "digests", "fingerprint", "allocations",
)  # fmt: skip
"""Columns of the cases that hold lists and mappings, as they are in memory and as JSON in a file; None if missing."""

CASE_COLUMNS = (
    "case_id", "status", "reason", "steps_done", "seconds", "exit_code", "state_mib", "device_total_mib",
    *JSON_COLUMNS, "stderr_tail", "torn_heartbeat", "began", "case_sha256",
)  # fmt: skip

TEXT_COLUMNS = ("status", "reason", "stderr_tail")

INTERRUPTED = "interrupted"
"""The status of a case that the user stopped, or that nobody saw end."""

MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, StopIteration)
"""What reading a folder can raise whose files are not what they should be."""


T = TypeVar("T")
R = TypeVar("R", bound="Recorded")


@dataclass(frozen=True)
class Recorded:
    """A run folder, read: always from what the workers wrote, never from a file that was made of it."""

    folder: Path
    info: Mapping[str, object]
    """run.json."""
    cases: pd.DataFrame
    """A row a case: what it was asked, how it ended, and what only the worker knew."""
    steps: pd.DataFrame
    """A row a step of each case and rank: loss, times, memory in MiB."""
    changed: tuple[str, ...] = ()
    """Which files are not those that the run left (`runs.sums`)."""
    measured: dict[Callable, object] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What functions of the run alone found in it; see `measured_once`."""

    @classmethod
    def read(cls: type[R], folder: Path) -> R:
        """Read a folder. Raises ConfigError or one of MALFORMED for files that are not what they should be."""
        info = read_info(folder)
        steps, torn = read_steps(folder, info["case_ids"])
        cases = _cases(folder, info, steps.loc[steps["rank"] == 0, "case_id"].value_counts(), torn)
        return cls(folder, info, cases, steps, changes(folder) if info["case_ids"] else ())

    def case(self, case_id: str) -> Mapping[str, object] | None:
        """Return a case, or None if the run has none of that name."""
        rows = self.cases[self.cases["case_id"] == case_id]
        if rows.empty:
            return None
        case = rows.iloc[0].to_dict()
        return case | {name: _or_none(case[name]) for name in JSON_COLUMNS}

    def each_case(self) -> Iterator[Mapping[str, object]]:
        """Yield the cases, as `case` returns them."""
        yield from (self.case(case_id) for case_id in self.cases["case_id"])

    def fact(self, case_id: str, name: str) -> object:
        """Return one of JSON_COLUMNS of a case, or None if it was not recorded."""
        case = self.case(case_id)
        return None if case is None else case[name]

    def of(self, case_id: str, rank: int = 0) -> pd.DataFrame:
        """Return a case's steps in order; where several ranks ran, those of one."""
        own = ((self.steps["case_id"] == case_id) & (self.steps["rank"] == rank)).to_numpy()
        places = np.flatnonzero(own)
        # As they were read they lie together: a slice of a long run costs nothing, a copy 50 MB.
        together = len(places) and own[places[0] : places[-1] + 1].all()
        steps = self.steps.iloc[places[0] : places[-1] + 1] if together else self.steps[own]
        return steps if steps["step"].is_monotonic_increasing else steps.sort_values("step")

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

    def called(self, name: str) -> str:
        """Return what a reader is told a backend or a route is: ours by its name, a user's by what she brought."""
        found = self.info.get("on_trial")
        return str(found["label"]) if found and name == OWN else name

    def was_given(self, name: str) -> bool:
        """Return whether a parameter has a value; one that the run's library did not know has none."""
        return any(p["name"] == name and p["value"] is not None for p in self.info["parameters"])

    @property
    def out_dir(self) -> Path:
        """The folder that holds runs/."""
        return self.folder.resolve().parent.parent

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that the machine of this run could run; a preflight and a contrast go through all of them."""
        return tuple(self.info["backends"])


def measured_once(measure: Callable[[Recorded], T]) -> Callable[[Recorded], T]:
    """Return a function that measures a run the first time and then gives the same answer. Callers must not change it.

    A run that is read is over, and its gates, charts, tables and advice all ask for the same figures.
    """

    @wraps(measure)
    def kept(run: Recorded) -> T:
        if measure not in run.measured:
            run.measured[measure] = measure(run)
        return run.measured[measure]

    return kept


def machine_name(info: Mapping[str, object]) -> str | None:
    """Return the GPU, or else the processor, that a run was made on."""
    environment = info["environment"]
    return environment.get("gpu") or environment.get("cpu")


def read_info(folder: Path) -> dict[str, object]:
    """Return run.json. Raises ConfigError if it is not JSON, or of another schema."""
    info = _read_json(folder / "run.json")
    if info["schema"] < SCHEMA:
        raise ConfigError(f"{folder / 'run.json'}: {_too_old(info)}")
    return info


def _too_old(info: Mapping[str, object]) -> str:
    """Return who recorded a run of an older schema, and what to do."""
    facts = info.get("environment")
    facts = facts if isinstance(facts, Mapping) else {}
    told = {
        "schema": info["schema"],
        "source": facts.get("source_sha256"),
        "commit": facts.get("git_commit"),
        "host": facts.get("host"),
        "at": info.get("created"),
    }
    who = ", ".join(f"{what} {str(value)[:19]}" for what, value in told.items() if value)
    return (
        f"recorded by an older nsa_lib ({who}), without what is judged since schema {SCHEMA}: run "
        f"{info.get('notebook')} again, or open it with the nsa_lib that recorded it"
    )


def read_summary(folder: Path) -> dict[str, object]:
    """Return summary.json, which says how a run was judged when it ended.

    Raises FileNotFoundError if there is none, and ConfigError if it is not JSON or of a newer schema.
    """
    return _read_json(folder / "summary.json")


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # bytes that are no text among them
        raise ConfigError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or type(content.get("schema")) is not int:
        raise ConfigError(f"{path}: it has no schema")
    if content["schema"] > SCHEMA:
        raise ConfigError(f"{path}: schema {content['schema']} is newer than this library reads ({SCHEMA})")
    return content


def cases_frame(rows: list[Mapping[str, object]]) -> pd.DataFrame:
    """Return cases as a frame with all columns of one; what a row lacks is None in JSON_COLUMNS and in texts empty."""
    frame = pd.DataFrame(rows).reindex(columns=CASE_COLUMNS)
    objects = {name: frame[name].astype(object) for name in (*JSON_COLUMNS, *TEXT_COLUMNS)}
    texts = {name: objects[name].fillna("") for name in TEXT_COLUMNS}
    decoded = {name: pd.Series(map(_or_none, objects[name]), frame.index, dtype=object) for name in JSON_COLUMNS}
    return frame.assign(**texts, **decoded)


def _or_none(value: object) -> object:
    """Return a list or mapping as it is, and None for what a frame has in the place of a missing one."""
    return value if isinstance(value, list | dict) else None


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as CSV for other programs; it is never read again. Everything is quoted, lists are JSON."""
    encoded = {name: frame[name].map(json.dumps, na_action="ignore") for name in JSON_COLUMNS if name in frame}
    with replacing(path) as temporary:
        frame.assign(**encoded).to_csv(temporary, index=False, quoting=csv.QUOTE_ALL, errors="replace")


def _cases(
    folder: Path, info: Mapping[str, object], steps_done: Mapping[str, int], torn: Mapping[str, bool]
) -> pd.DataFrame:
    rows = []
    for case_id in torn:
        path = folder / "cases" / case_id / "result.json"
        result = _read_json(path) if path.exists() else {"status": INTERRUPTED, "reason": "no result was written"}
        row = {"case_id": case_id, "steps_done": steps_done.get(case_id, 0), **result, "torn_heartbeat": torn[case_id]}
        asked, prediction = path.with_name("case.json"), path.with_name("prediction.json")
        fingerprint = path.with_name(FINGERPRINT_FILE)
        first = _first_beat(path.parent, info["environment"])
        row |= {"began": first.get("ts"), ORIGIN: first.get(ORIGIN)}
        if asked.exists():
            row |= {"asked": json.loads(asked.read_text()), "case_sha256": case_sha256(asked.read_text())}
        if prediction.exists():
            row["prediction"] = _prediction(prediction)
        if fingerprint.exists():
            row["fingerprint"] = read_fingerprint(fingerprint)
        rows.append(row)
    return cases_frame(rows)


def _first_beat(case_folder: Path, facts: Mapping[str, object]) -> dict[str, object]:
    """Return the first heartbeat of a case: that of the first rank on the machine that made the run."""
    beats = [next(reader.beats(), {}) for reader in readers_of(case_folder).values()]
    here = (beat for beat in beats if (beat.get(ORIGIN) or {}).get("host") == facts.get("host"))
    return beats[0] if len(beats) == 1 else next(here, beats[0])


def _prediction(path: Path) -> dict[str, object]:
    """Return a prediction, or the reason why there is none: it is advice, and one that is torn stops no verdict."""
    try:
        return _read_json(path)
    except ConfigError as error:
        return {"reason": str(error)}
