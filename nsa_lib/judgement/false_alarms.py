"""How often each gate was false on honest runs, as `tests/bench_false_alarms.py` counted it into a file beside this."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from nsa_lib.contract.files import write_json
from nsa_lib.contract.source import package_sha256
from nsa_lib.subject.config import BACKEND_NAMES

COUNTED = Path(__file__).with_suffix(".json")

OF_WHAT = re.compile(rf"(_({'|'.join(BACKEND_NAMES)}|\d+))+$")
"""What a gate's name ends with where one gate judges several backends or lengths."""


@dataclass(frozen=True)
class Rate:
    """The honest runs in which a kind of gate judged, and those among them in which it was false."""

    alarms: int
    runs: int

    @property
    def said(self) -> str:
        return f"{self.alarms} of {self.runs}"


@dataclass(frozen=True)
class Count:
    """What was counted, and where."""

    rates: Mapping[str, Rate]
    """By the kind of gate."""
    source_sha256: str = ""
    """Of the package that ran."""
    date: str = ""
    machine: str = ""

    @property
    def said(self) -> str:
        """Where and when it was counted, and whether that was another source than the one that runs."""
        said = f"False alarms are of honest laptop runs, {self.date}, {self.machine}, source {self.source_sha256[:12]}"
        return said if self.source_sha256 == package_sha256() else f"{said}: not the source that runs now"


def gate_kind(name: str) -> str:
    """Return the name of a gate without the backend or length that it judges."""
    return OF_WHAT.sub("", name)


@cache
def counted() -> Count:
    """Return what was counted; no rates if nothing was."""
    if not COUNTED.exists():
        return Count({})
    found = json.loads(COUNTED.read_text())
    return Count(**{**found, "rates": {kind: Rate(**rate) for kind, rate in found["rates"].items()}})


def write_count(count: Count) -> None:
    """Replace the file."""
    write_json(COUNTED, asdict(count))
