"""Run folders: how they are named, and those that are found, the newest first, as far as their run.json tells."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from difflib import get_close_matches
from pathlib import Path

from nsa_lib.contract.lines import say
from nsa_lib.runs.recorded import INTERRUPTED, read_info
from nsa_lib.subject.config import ConfigError

NEWEST = "newest"
"""What stands in place of a run's name; `newest:smoke` is the newest of that notebook."""


CLOCK_S = 600
"""By how much the clock of the machine that made a run may be ahead of ours."""


@dataclass(frozen=True)
class Found:
    """A run folder that was found."""

    folder: Path
    created: datetime
    """When the run began; if run.json does not tell, or a time that is yet to come, when that was written."""
    info: Mapping[str, object] = field(default_factory=dict)
    """run.json; empty if it cannot be read."""
    problem: str = ""
    """Why run.json cannot be read or believed, or ""."""

    @property
    def custom(self) -> tuple[str, ...]:
        """How the run differs from its profile; none for a run that readiness counts."""
        return tuple(map(str, self.info.get("custom", ())))

    @property
    def stopped(self) -> bool:
        """Whether the user stopped it, so that some of its cases did not come to their end."""
        return INTERRUPTED in self._endings()

    @property
    def killed(self) -> bool:
        """Whether some of its cases have no end on record: the notebook was killed, or is still running."""
        return None in self._endings()

    def _endings(self) -> list[str | None]:
        return [_ended(self.folder / "cases" / str(case_id)) for case_id in self.info.get("case_ids", ())]


def _ended(case_folder: Path) -> str | None:
    """Return how a case ended, or None if that is not known."""
    try:
        return str(json.loads((case_folder / "result.json").read_text())["status"])
    except (OSError, KeyError, TypeError, ValueError):
        return None


def find(which: str | Path, out_dir: Path) -> Path:
    """Return a run folder.

    Where a newer run stands before one that readiness would count, a line on stderr says so.

    Args:
        which: a run folder, also one copied from another machine; the name of one in runs/; `newest` or
            `newest:NOTEBOOK`.
        out_dir: the folder that holds runs/.

    Raises:
        FileNotFoundError: in one line, which names the runs whose names are the nearest.
    """
    asked, runs = str(which), out_dir / "runs"
    word, _, notebook = asked.partition(":")
    if word == NEWEST:
        return _newest(notebook, out_dir)
    for folder in (Path(asked).expanduser(), runs / asked):
        if (folder / "run.json").is_file():
            return folder
    if asked and Path(asked).expanduser().is_dir():
        raise FileNotFoundError(f"{asked}: not a run folder, it has no run.json")
    near = get_close_matches(Path(asked).name, [path.parent.name for path in runs.glob("*/run.json")])
    said = f"{asked!r}: accepts a run folder, the name of one in {runs}, {NEWEST}, or {NEWEST}:NOTEBOOK"
    raise FileNotFoundError(f"{said}; the nearest: {', '.join(near)}" if near else said)


def _newest(notebook: str, out_dir: Path) -> Path:
    found = [one for one in runs_in(out_dir) if notebook in ("", one.info.get("notebook"))]
    if not found:
        known = {str(one.info.get("notebook")) for one in runs_in(out_dir)}
        near = get_close_matches(notebook, known, n=1)
        meant = f"; did you mean {NEWEST}:{near[0]}?" if near else ""
        raise FileNotFoundError(f"no run{f' of {notebook}' if notebook else ''} in {out_dir / 'runs'}{meant}")
    newest, *older = found
    why = "custom" if newest.custom else "stopped" if newest.stopped else ""
    alike = (one for one in older if one.info.get("notebook") == newest.info.get("notebook"))
    counts = next((one for one in alike if why and not one.custom and not one.stopped), None)
    if counts:
        say(f"{newest.folder.name} is {why}; before it ran {counts.folder.name}, which counts", to=sys.stderr)
    return newest.folder


def runs_in(out_dir: Path) -> list[Found]:
    """Return the runs of the folder that holds runs/, the newest first."""
    return newest_first(path.parent for path in (out_dir / "runs").glob("*/run.json"))


def newest_first(folders: Iterable[Path]) -> list[Found]:
    """Return what is found in folders, the newest run first."""
    return sorted(map(_look, folders), key=lambda found: (found.created, found.folder.name), reverse=True)


def _look(folder: Path) -> Found:
    try:
        info = read_info(folder)
        _ = (str(info["notebook"]), tuple(info["custom"]))
        is_future = _is_future(_as_utc(info["created"]))
        problem = f"{folder}: it is dated in the future, {info['created']}" if is_future else ""
        return Found(folder, _created(folder), info, problem)
    except FileNotFoundError:
        problem = f"{folder}: it has no run.json"
    except ConfigError as error:
        problem = str(error)
    except (OSError, KeyError, TypeError, ValueError) as error:
        problem = f"{folder / 'run.json'}: cannot be read ({type(error).__name__}: {error})"
    return Found(folder, _created(folder), problem=problem)


def _created(folder: Path) -> datetime:
    """Return when a run began, also if a newer library made it; where that cannot be, when run.json was written.

    Where that cannot be either, because the clock was set back during the run, it is when its last file was added, or
    else long ago: a run of which nobody knows when it was must not stand before those made since.
    """
    path = folder / "run.json"
    moments = []
    with suppress(OSError, KeyError, TypeError, ValueError):
        moments.append(_as_utc(json.loads(path.read_text())["created"]))
    moments += [
        datetime.fromtimestamp(place.stat().st_mtime, timezone.utc) for place in (path, folder) if place.exists()
    ]
    return next((moment for moment in moments if not _is_future(moment)), datetime.fromtimestamp(0, timezone.utc))


def _is_future(moment: datetime) -> bool:
    return moment > datetime.now(timezone.utc) + timedelta(seconds=CLOCK_S)


def _as_utc(iso: str) -> datetime:
    return datetime.fromisoformat(iso).astimezone(timezone.utc)
