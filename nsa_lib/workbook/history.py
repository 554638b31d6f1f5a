"""All runs of a folder: a line each in history.jsonl, and index.html, which shows them and their trend.

A line is one write at the end of the file, so that several notebooks can end at once; the page is made from the lines
under a lock and replaced whole.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from nsa_lib.contract.figures import counted
from nsa_lib.contract.files import write_text
from nsa_lib.contract.lines import folded
from nsa_lib.report.charts.overlay import over_runs
from nsa_lib.report.page import Section, page
from nsa_lib.report.table import Cell, Table
from nsa_lib.report.tables import format_value, linked, verdict_cell
from nsa_lib.report.verdict import STYLES
from nsa_lib.runs.recorded import MALFORMED, machine_name, read_info, read_summary
from nsa_lib.runs.report_file import report_of
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.run import Run, key_figures

SCHEMA = 1

HISTORY = "history.jsonl"

MODE = 0o666
"""Who may write to it is decided by the umask alone: a team whose umask is 002 shares the folder of its runs."""

TRENDS = (
    ("peak_alloc_mib", "Peak allocated memory", "MiB"),
    ("peak_reserved_mib", "Peak reserved memory", "MiB"),
    ("tokens_per_s", "Tokens per second", "tokens/s"),
)
"""Figures whose trend is drawn: name, title, unit."""

TEXTS = ("run_id", "notebook", "created", "profile", "verdict", "headline")


def publish(run: Run) -> Path | None:
    """Append a run to the history of its folder and write the page of all runs; return the page's path.

    A member of a fleet has no line of its own: thousands end at once, and the page of their fleet lists them.
    """
    if run.info.get("member"):
        return None
    append(run.out_dir / HISTORY, history_line(run))
    return write_index(run.out_dir, promised=run.info.get("report"))


def history_line(run: Run) -> dict[str, object]:
    """Return what the history keeps of a run."""
    summary, facts = run.summary, run.info["environment"]
    figures = key_figures(run)
    return {
        "schema": SCHEMA,
        **{name: run.info[name] for name in ("run_id", "notebook", "created", "profile", "custom")},
        **{name: summary[name] for name in ("verdict", "headline")},
        **{name: figures[name] for name, *_ in TRENDS},
        "machine": _machine(run.info),
        "torch": facts.get("torch"),
        "source_sha256": facts.get("source_sha256"),
        "on_trial": summary["on_trial"],
        "report": run.info.get("report"),
    }


def append(path: Path, line: Mapping[str, object]) -> None:
    """Append a line to a file in one write; after a line that was torn, on a line of its own."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, MODE)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, ("\n" * torn + json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def read_history(path: Path) -> tuple[list[dict[str, object]], list[str]]:
    """Return the last line of every run, and what is wrong with the lines that cannot be read."""
    if not path.exists():
        return [], []
    lines, problems = {}, []
    for number, text in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            line = _checked(json.loads(text))
        except (ValueError, OverflowError) as error:
            problems.append(f"{path.name}, line {number}, was left out: {error}")
        else:
            lines[line["run_id"]] = line
    return list(lines.values()), problems


def _checked(line: object) -> dict[str, object]:
    """Return a line if it is what `history_line` makes. Raises ValueError."""
    if not isinstance(line, dict) or type(line.get("schema")) is not int:
        raise ValueError("it has no schema")
    if line["schema"] > SCHEMA:
        raise ValueError(f"its schema {line['schema']} is newer than this library reads ({SCHEMA})")
    wrong = [name for name in TEXTS if not isinstance(line.get(name), str)]
    wrong += [name for name, *_ in TRENDS if not isinstance(line.get(name), int | float | None)]
    wrong += [] if isinstance(line.get("custom"), list) else ["custom"]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: missing or of another type")
    if line["verdict"] not in STYLES:
        raise ValueError(f"its verdict is none of {', '.join(STYLES)}")
    created = datetime.fromisoformat(line["created"]).astimezone(timezone.utc)
    figures = {name: None if line[name] is None else float(line[name]) for name, *_ in TRENDS}
    return {**line, **figures, "created": created.isoformat()}


def write_index(out_dir: Path, *, promised: str | None = None) -> Path:
    """Write index.html from the history and the run folders that have no line in it; return its path.

    It links to the reports that are there, and to one that is `promised`: the engine writes it once the notebook ends.
    """
    path = out_dir / "index.html"
    with _locked(out_dir / HISTORY) as unlocked:
        lines, problems = read_history(out_dir / HISTORY)
        unrecorded, unreadable = _without_a_line(out_dir / "runs", {line["run_id"] for line in lines})
        there = [_with_its_report(line, out_dir / "runs", promised) for line in [*lines, *unrecorded]]
        write_text(path, index_page(out_dir, there, [*unlocked, *problems, *unreadable]))
    return path


def _with_its_report(line: Mapping[str, object], runs: Path, promised: str | None) -> dict[str, object]:
    report = line.get("report")
    found = report if report and report == promised else report_of(runs / str(line["run_id"]), report)
    return {**line, "report": found}


def index_page(out_dir: Path, lines: Sequence[Mapping], problems: Sequence[str]) -> str:
    """Return the page of all runs, newest first, with the trend of their memory and pace."""
    newest_first = sorted(lines, key=lambda line: (line["created"], line["run_id"]), reverse=True)
    regular = [line for line in newest_first if not line["custom"]]
    charts = [over_runs(regular, column, title, unit) for column, title, unit in TRENDS]
    sections = [
        Section(
            "Runs",
            [f"{counted(len(lines), 'run')}, newest first. Times are UTC."],
            [_runs_table(newest_first, out_dir)],
        ),
        Section(
            "Trend",
            ["One line for each notebook, profile and machine. Custom runs are left out: their sizes are their own."],
            charts=charts,
        ),
    ]
    if problems:
        header, rows = ("problem",), [(Cell(problem),) for problem in problems]
        sections.append(Section("What could not be read", tables=[Table("Left out", header, rows)]))
    return page("All runs", sections)


def _runs_table(lines: Sequence[Mapping], out_dir: Path) -> Table:
    rows = [
        (
            verdict_cell(str(line["verdict"])),
            linked(line["notebook"], line.get("report"), out_dir),
            Cell(line["profile"] + (" (custom)" if line["custom"] else "")),
            Cell(f"{line['on_trial']}: {line['headline']}" if line.get("on_trial") else line["headline"]),
            Cell(format_value(line["peak_reserved_mib"], "MiB"), numeric=True),
            Cell(format_value(line["tokens_per_s"]), numeric=True),
            Cell(format_value(line.get("machine"))),
            Cell(line["created"][:16].replace("T", " "), numeric=True),
        )
        for line in lines
    ]
    header = ("verdict", "notebook", "profile", "headline", "peak reserved", "tokens/s", "machine", "made")
    return Table("Runs, with their reports", header, rows, sorts=True)


def _without_a_line(runs: Path, known: set[object]) -> tuple[list[dict[str, object]], list[str]]:
    """Return a line for each run folder that the history does not know, and why others cannot be read."""
    lines, problems = [], []
    for folder in sorted(path for path in runs.glob("*") if path.is_dir() and path.name not in known):
        try:
            line = _unrecorded(folder, read_info(folder))
        except ConfigError as error:
            problems.append(str(error))
        except MALFORMED as error:
            problems.append(f"{folder}: run.json cannot be read ({type(error).__name__}: {error})")
        else:
            lines += [line] if line["run_id"] not in known else []
    return lines, problems


def _unrecorded(folder: Path, info: Mapping[str, object]) -> dict[str, object]:
    """Return a line as its summary.json tells: one user may not write into the history of another."""
    named = {"schema": SCHEMA} | {name: info[name] for name in ("run_id", "notebook", "created", "profile", "custom")}
    try:
        told = read_summary(folder)
    except FileNotFoundError:
        told = {"verdict": "INCOMPLETE", "headline": "no verdict recorded", "key_figures": {}}
    judged = {name: told.get(name) for name in ("verdict", "headline", "on_trial")}
    figures = {name: told["key_figures"].get(name) for name, *_ in TRENDS}
    return _checked({**named, **judged, **figures, "machine": _machine(info), "report": info.get("report")})


def _machine(info: Mapping[str, object]) -> str | None:
    """Return what a run was made on; of a readiness run what its runs were made on."""
    if "sources" not in info:
        return machine_name(info)
    return ", ".join(sorted({str(source["machine"]) for source in info["sources"]})) or None


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system says that has no locks, as some network disks do."""


@contextmanager
def _locked(path: Path) -> Iterator[list[str]]:
    """Hold a file's lock: a page made from fewer lines must not replace one made from more.

    Yields what is wrong with that: a disk without locks has its page all the same, which says so.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        unlocked = []
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        unlocked = [f"{path.name} cannot be locked ({error.strerror}): of two runs that end at once one may be missing"]
        print(*map(folded, unlocked))
    try:
        yield unlocked
    finally:
        os.close(descriptor)
