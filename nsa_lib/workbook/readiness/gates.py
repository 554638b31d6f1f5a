"""The gates of readiness: one for each notebook of the checklist, that their runs belong together, and to this day."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import starmap

from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, GateResult
from nsa_lib.judgement.identity import changed_since, disagreements
from nsa_lib.runs.plan import reproduce
from nsa_lib.runs.recorded import Recorded

OUTCOME_OF = {"GO": PASS, "REVIEW": WARN, "NO-GO": FAIL, "INCOMPLETE": NOT_RUN}
"""What a notebook's verdict is to the roll-up."""


def readiness_gates(run: Recorded) -> list[GateResult]:
    """Return a gate for each judged notebook, that of the configuration, and whether the runs are of today's."""
    notebooks = [notebook_gate(run, notebook) for notebook in run.info["judged"]]
    return [*notebooks, same_configuration_gate(run), current_gate(run)]


def notebook_gate(run: Recorded, notebook: str) -> GateResult:
    """Judge a notebook by the verdict of its run; without a run that counts it did not run."""
    gate = GateResult(notebook, True, NOT_RUN, limit="GO")
    source = sources(run).get(notebook)
    if source is None:
        return replace(gate, detail=_why_missing(run, notebook))
    said = [f"{source['run_id']}: {source['headline']}", *_passed_over(run, notebook)]
    verdict, detail = str(source["verdict"]), "; ".join(said)
    return replace(gate, outcome=OUTCOME_OF[verdict], measured=verdict, detail=detail)


def same_configuration_gate(run: Recorded) -> GateResult:
    """Judge that all runs are of one model, on one machine, with one torch and one source."""
    gate = GateResult("same_configuration", True, PASS, limit=0, unit="differences")
    found = sources(run)
    if len(found) < 2:
        return replace(gate, outcome=NOT_RUN, detail="fewer than two runs, nothing to hold against each other")
    differences = disagreements({notebook: source["configuration"] for notebook, source in found.items()})
    if differences:
        said = "; ".join(
            f"{name}: " + ", ".join(f"{notebook} {_short(value)}" for notebook, value in values.items())
            for name, values in differences.items()
        )
        return replace(gate, outcome=NOT_RUN, measured=len(differences), detail=said)
    return replace(gate, measured=0, detail=f"the same in {', '.join(found)}")


def current_gate(run: Recorded) -> GateResult:
    """Judge that every run is of the source, and of the machine, that it is decided for now."""
    gate = GateResult("current", True, NOT_RUN, limit=0, unit="stale runs")
    if not run.info["sources"]:
        return replace(gate, detail="no run that counts")
    stale = stale_runs(run)
    if stale:
        alike = {why: [notebook for notebook, of_it in stale.items() if of_it == why] for why in stale.values()}
        said = "; ".join(f"{', '.join(notebooks)}: {why}" for why, notebooks in alike.items())
        return replace(gate, measured=len(stale), detail=said)
    return replace(gate, outcome=PASS, measured=0, detail="source, torch, driver and device of now")


def stale_runs(run: Recorded) -> dict[str, str]:
    """Return the notebooks whose run is of another source or machine than now, with what has changed."""
    now = run.info["environment"]
    changes = {name: changed_since(source["configuration"], now) for name, source in sources(run).items()}
    return {name: "; ".join(starmap(_change, changed.items())) for name, changed in changes.items() if changed}


def _change(name: str, values: tuple[object, object]) -> str:
    then, now = map(_short, values)
    return f"{name} {then}, now {now}"


def to_run(run: Recorded) -> list[tuple[str, str, str]]:
    """Return what must be run before this can be GO: notebook, why, and the command; [] if nothing need be."""
    found, stale, out_dir = sources(run), stale_runs(run), run.parameter("out_dir")
    asked = {"profile": run.info["profile"] or "auto", **({"out_dir": out_dir} if out_dir else {})}
    rows = []
    for notebook in run.info["judged"]:
        if notebook not in found:
            rows.append((notebook, _why_missing(run, notebook), reproduce(notebook, asked)))
        elif notebook in stale:
            rows.append((notebook, stale[notebook], str(found[notebook]["reproduce"])))
    return rows


def readiness_advice(run: Recorded) -> list[str]:
    """Return what a user may want to do; it never decides."""
    return [f"Run {notebook} again: {command}" for notebook, _, command in to_run(run)]


def readiness_headline(run: Recorded) -> str:
    """Return the figures that a readiness verdict is said with."""
    found = sources(run)
    return ", ".join(
        f"{notebook} {found[notebook]['verdict'] if notebook in found else '–'}" for notebook in run.info["judged"]
    )


def sources(run: Recorded) -> dict[str, Mapping]:
    """Return the runs that count, by notebook."""
    return {source["notebook"]: source for source in run.info["sources"]}


def _passed_over(run: Recorded, notebook: str) -> list[str]:
    """Return which runs of a notebook are newer than the one that counts, or older than one that was killed."""
    own = [one for one in run.info["left_out"] if one["notebook"] == notebook]
    newer = [f"{one['run_id']} ({one['reason']})" for one in own if one["kind"] in ("custom", "stopped")]
    older = [one["run_id"] for one in own if one["kind"] == "older"]
    said = [f"newer and left out: {', '.join(newer)}"] if newer else []
    return said + ([f"older and left out: {', '.join(older)}; name one in `runs` to count it"] if older else [])


def _why_missing(run: Recorded, notebook: str) -> str:
    left_out = [one for one in run.info["left_out"] if one["notebook"] == notebook]
    if not left_out:
        return f"no run of {notebook}"
    told = [one for one in left_out if one["kind"] != "custom"] or left_out[:1]  # what makes a run custom is long
    more = len(left_out) - len(told)
    said = [f"{one['run_id']}: {one['reason']}" for one in told] + [f"{more:,} more custom"] * bool(more)
    return f"no run of {notebook} that counts; {'; '.join(said)}"


def _short(value: object) -> str:
    """Return a value in words; of a hash the first digits tell it apart."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
