"""The gates of readiness: one for each notebook of the checklist, and one that their runs belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, GateResult
from nsa_lib.judgement.identity import disagreements
from nsa_lib.runs.recorded import Recorded

OUTCOME_OF = {"GO": PASS, "REVIEW": WARN, "NO-GO": FAIL, "INCOMPLETE": NOT_RUN}
"""What a notebook's verdict is to the roll-up."""


def readiness_gates(run: Recorded) -> list[GateResult]:
    """Return a gate for each judged notebook, and that of the configuration."""
    return [*(notebook_gate(run, notebook) for notebook in run.info["judged"]), same_configuration_gate(run)]


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


def readiness_advice(run: Recorded) -> list[str]:
    """Return what a user may want to do; it never decides."""
    judged = {source["configuration"].get("source_sha256") for source in sources(run).values()}
    now = run.info["environment"].get("source_sha256")
    if judged and judged != {now}:
        return ["Library or notebooks have changed since a run that counts here was made; run it again to judge them."]
    return []


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
    return f"no run of {notebook} that counts; " + "; ".join(f"{one['run_id']}: {one['reason']}" for one in left_out)


def _short(value: object) -> str:
    """Return a value in words; of a hash the first digits tell it apart."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
