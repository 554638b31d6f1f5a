"""Run folders that are found, the newest first, as far as their run.json tells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from nsa_lib.runs.recorded import read_info
from nsa_lib.subject.config import ConfigError

NEWEST = "newest"
"""What a parameter takes in place of a run's name."""


@dataclass(frozen=True)
class Found:
    """A run folder that was found."""

    folder: Path
    created: datetime
    """When the run began; if run.json does not tell, when that was written."""
    info: Mapping[str, object] = field(default_factory=dict)
    """run.json; empty if it cannot be read."""
    problem: str = ""
    """Why run.json cannot be read, or ""."""

    @property
    def custom(self) -> tuple[str, ...]:
        """How the run differs from its profile; none for a run that readiness counts."""
        return tuple(map(str, self.info.get("custom", ())))


def runs_in(out_dir: Path) -> list[Found]:
    """Return the runs of the folder that holds runs/, the newest first."""
    return newest_first(path.parent for path in (out_dir / "runs").glob("*/run.json"))


def newest_first(folders: Iterable[Path]) -> list[Found]:
    """Return what is found in folders, the newest run first."""
    return sorted(map(_look, folders), key=lambda found: (found.created, found.folder.name), reverse=True)


def _look(folder: Path) -> Found:
    try:
        info = read_info(folder)
        _ = (str(info["notebook"]), tuple(info["custom"]), _as_utc(info["created"]))
        return Found(folder, _created(folder), info)
    except FileNotFoundError:
        problem = f"{folder}: it has no run.json"
    except ConfigError as error:
        problem = str(error)
    except (OSError, KeyError, TypeError, ValueError) as error:
        problem = f"{folder / 'run.json'}: cannot be read ({type(error).__name__}: {error})"
    return Found(folder, _created(folder), problem=problem)


def _created(folder: Path) -> datetime:
    """Return when a run began, also if a newer library made it; where run.json does not tell, when that was written."""
    path = folder / "run.json"
    try:
        return _as_utc(json.loads(path.read_text())["created"])
    except (OSError, KeyError, TypeError, ValueError):
        written = (path if path.is_file() else folder).stat().st_mtime
        return datetime.fromtimestamp(written, timezone.utc)


def _as_utc(iso: str) -> datetime:
    return datetime.fromisoformat(iso).astimezone(timezone.utc)
