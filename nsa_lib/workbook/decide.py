"""Readiness: choose the runs that count, and leave one verdict over them in a run folder of its own.

It trains nothing. What each run says is judged again from its frames: editing a summary.json changes nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import asdict
from pathlib import Path

from nsa_lib.contract.files import write_json, write_text
from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.judgement.identity import configuration
from nsa_lib.runs import environment
from nsa_lib.runs.earlier import forget_earlier
from nsa_lib.runs.folder import new_run_folder
from nsa_lib.runs.found import NEWEST, Found, newest_first
from nsa_lib.runs.parameters import Read
from nsa_lib.runs.plan import reproduce
from nsa_lib.runs.provenance import provenance
from nsa_lib.runs.recorded import machine_name
from nsa_lib.runs.report_file import report_of, told_report
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import counted, judged
from nsa_lib.workbook.readiness import review
from nsa_lib.workbook.readiness.figures import packed_page
from nsa_lib.workbook.readiness.parameters import REQUEST
from nsa_lib.workbook.run import Run, judged_run


def decide(namespace: MutableMapping[str, object]) -> Run:
    """Choose the runs that count, judge them together, and leave a run folder with verdict, JUnit and archive.

    Args:
        namespace: the notebook's globals, parameters and IPython's `In` among them. They forget their earlier run.

    Raises:
        ConfigError: in one line, for a parameter that is not accepted or a run that is named and does not exist.
    """
    forget_earlier(namespace)
    environment.refuse_outdated()
    read = REQUEST.read(namespace)
    out_dir = environment.out_dir_of(read["out_dir"])
    environment.require_room(out_dir)
    chosen, left_out = choose(out_dir, str(read["runs"]))
    folder, created = new_run_folder(out_dir, REQUEST.notebook, str(read["tag"]))
    profiles = {str(run.info["profile"]) for run in chosen}
    description = {
        "schema": SCHEMA,
        "run_id": folder.name,
        "notebook": REQUEST.notebook,
        "profile": profiles.pop() if len(profiles) == 1 else "",
        "custom": [],
        "created": created,
        "parameters": _parameter_rows(read),
        "environment": _now(),
        "case_ids": [],
        "reproduce": _reproduce(out_dir, chosen),
        "report": told_report(),
        "judged": counted(),
        "on_trial": _shared_subject(chosen),
        "sources": [source_of(run) for run in chosen],
        "left_out": left_out,
    }
    with StopButton():  # a press now must not leave half of it
        write_json(folder / "run.json", description)
        return _write_results(Run.read(folder))


def _shared_subject(chosen: Iterable[Run]) -> Mapping[str, object] | None:
    """Return what a user brought for all the runs that count, or None: of several subjects none is judged."""
    found = [run.info.get("on_trial") or {} for run in chosen]
    named = {tuple(map(one.get, ("role", "spec", "sha256", "version", "judged"))) for one in found}
    return (found[0] or None) if len(named) == 1 else None


def _now() -> dict[str, object]:
    """Return the facts of machine and source as they are now; without those of torch, and why, if it cannot be used."""
    try:
        facts = environment.torch_facts()
    except ConfigError as error:
        facts = {"torch_problem": str(error)}
    return {**facts, **environment.machine_facts(), **provenance(judged())}


def foretell(given: Mapping[str, object]) -> Iterator[str]:
    """Yield what would count, what would not, and which notebooks have no run, a line each; nothing is written.

    Raises ConfigError as `decide` does.
    """
    read = REQUEST.read(given)
    chosen, left_out = choose(environment.out_dir_of(read["out_dir"]), str(read["runs"]))
    yield from (f"counts: {run.folder.name}, {run.verdict}" for run in chosen)
    yield from (f"left out: {one['run_id']}, {one['reason']}" for one in left_out)
    missing = [name for name in counted() if name not in {run.info["notebook"] for run in chosen}]
    yield f"missing: {', '.join(missing) or 'none'}"


def choose(out_dir: Path, asked: str) -> tuple[list[Run], list[dict[str, str]]]:
    """Return the run of each judged notebook that counts, the newest, and those that do not with the reason.

    In place of a custom run, or of one that the user stopped before it could fail, an older one counts. A run that
    cannot be read has no such stand-in: as the newest of its notebook it would have decided, and what it would have
    said is unknown.

    Args:
        out_dir: the folder that holds runs/.
        asked: "newest", or names, paths or globs of run folders, separated by commas; "" is no run.

    Raises:
        ConfigError: for a name that no run has.
    """
    named = asked != NEWEST
    candidates = newest_first(_named(out_dir, asked) if named else _all(out_dir))
    chosen, left_out = [], []
    for notebook in counted():
        own = [candidate for candidate in candidates if _notebook(candidate) == notebook]
        run, without = _newest_that_counts(own, tell_older=named)
        chosen += [run] if run else []
        left_out += without
    others = [candidate for candidate in candidates if _notebook(candidate) not in counted()]
    left_out += [_left_out(c, "unreadable", c.problem) for c in others if c.problem]
    if named:
        left_out += [_left_out(c, "other", f"{_notebook(c)} is not judged here") for c in others if not c.problem]
    return chosen, left_out


def _newest_that_counts(candidates: list[Found], *, tell_older: bool) -> tuple[Run | None, list[dict[str, str]]]:
    """Return the first of a notebook's runs, newest first, that counts, and those that do not."""
    left_out = []
    for place, candidate in enumerate(candidates):
        if candidate.custom:
            left_out.append(_custom(candidate, candidate.custom))
            continue
        try:
            run = _whole(candidate)
        except ConfigError as error:
            left_out.append(_left_out(candidate, "unreadable", str(error)))
            return None, left_out
        if run.info["custom"]:  # whatever its run.json says
            left_out.append(_custom(candidate, run.info["custom"]))
            continue
        if candidate.stopped and run.verdict == "INCOMPLETE":
            left_out.append(_left_out(candidate, "stopped", "stopped before its end, and nothing failed until then"))
            continue
        older = candidates[place + 1 :]
        if not tell_older:  # of one that was killed a reader must know what it stands before
            older = [c for c in older if candidate.killed and not c.custom]
        return run, left_out + [_left_out(c, "older", f"older than {candidate.folder.name}") for c in older]
    return None, left_out


def _left_out(found: Found, kind: str, reason: str) -> dict[str, str]:
    """Return a run that does not count, and why not, as run.json keeps it."""
    return {"run_id": found.folder.name, "notebook": _notebook(found), "kind": kind, "reason": reason}


def _custom(found: Found, said: Iterable[str]) -> dict[str, str]:
    return _left_out(found, "custom", f"custom: {'; '.join(said)}")


def _notebook(found: Found) -> str:
    """Return the notebook of a run; of one that cannot be read what the name of its folder says."""
    if found.info:
        return str(found.info["notebook"])
    return next((name for name in counted() if found.folder.name.startswith(f"{name}-")), "unknown")


def _whole(candidate: Found) -> Run:
    if candidate.problem:
        raise ConfigError(candidate.problem)
    return judged_run(candidate.folder)


def _all(out_dir: Path) -> list[Path]:
    return [path for path in (out_dir / "runs").glob("*") if path.is_dir()]


def _named(out_dir: Path, asked: str) -> list[Path]:
    folders: dict[Path, None] = {}
    for name in filter(None, (part.strip() for part in asked.split(","))):
        path = Path(name).expanduser()
        anchor, pattern = (Path(path.anchor), str(path.relative_to(path.anchor))) if path.anchor else (None, str(path))
        places = [anchor] if anchor else [out_dir / "runs", Path.cwd()]
        found = next(filter(None, (sorted(_folders(place, pattern)) for place in places)), None)
        if found is None:
            raise ConfigError(f"runs={name!r}: no such run in {out_dir / 'runs'}, and no such folder")
        folders |= dict.fromkeys(folder.resolve() for folder in found)
    return list(folders)


def _folders(place: Path, pattern: str) -> list[Path]:
    # A glob cannot hold "..", a plain path can.
    try:
        found = list(place.glob(pattern)) if any(sign in pattern for sign in "*?[") else [place / pattern]
    except ValueError:  # no glob, such as a**b: then nothing is called so
        return []
    return [path for path in found if path.is_dir()]


def source_of(run: Run) -> dict[str, object]:
    """Return what readiness keeps of a run: its verdict, judged now, its gates, and what it was made with."""
    summary = run.summary
    return {
        "run_id": run.info["run_id"],
        "notebook": run.info["notebook"],
        "folder": str(run.folder.resolve()),
        "report": report_of(run.folder, run.info.get("report")),
        "created": run.info["created"],
        "machine": machine_name(run.info),
        "configuration": configuration(run.info),
        "reproduce": run.info["reproduce"],
        **{name: summary[name] for name in ("verdict", "headline", "reasons", "gates")},
    }


def _parameter_rows(read: Mapping[str, Read]) -> list[dict[str, object]]:
    declared = REQUEST.parameters
    return [
        {
            "name": name,
            "value": value,
            "origin": "default" if value == declared[name].default else "given",
            "checklist": None,
            "differs": False,
        }
        for name, value in read.items()
    ]


def _reproduce(out_dir: Path, chosen: list[Run]) -> str:
    """Return the command that decides over the same runs again."""
    runs = ",".join(str(run.folder.resolve()) for run in chosen)
    return reproduce(REQUEST.notebook, {"runs": runs, "out_dir": str(out_dir)})


def _write_results(run: Run) -> Run:
    """Write summary.json, junit.xml and review.zip."""
    folder, sources = run.folder, run.info["sources"]
    write_json(folder / "summary.json", {**run.summary, "sources": sources, "left_out": run.info["left_out"]})
    suites = {source["notebook"]: (source["created"], source["gates"]) for source in sources}
    own = (run.info["created"], [asdict(gate) for gate in run.gates])
    write_text(folder / "junit.xml", review.junit({**suites, REQUEST.notebook: own}))
    runs = review.named_apart(Path(source["folder"]) for source in sources)
    there = [source for source in sources if source["report"]]
    reports = {Path(source["report"]): f"{runs[Path(source['folder'])]}.html" for source in there}
    review.pack(
        folder / "review.zip",
        runs=runs,
        reports=reports,
        files=[folder / name for name in ("run.json", "summary.json", "junit.xml")],
        page=packed_page(run, reports),
    )
    return run
