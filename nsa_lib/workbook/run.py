"""A run, judged: from a run folder to verdict, summary and figures; and back, on any machine.

from nsa_lib.workbook.run import open_run
run = open_run("newest:smoke")    # or a run folder, also one copied from another machine
run.steps, run.figures["memory"], run.verdict
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from nsa_lib.contract.case import WARMUP_STEPS
from nsa_lib.contract.figures import with_unit
from nsa_lib.contract.files import write_json
from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.judgement.evidence import evidence_gate
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, GateResult, verdict
from nsa_lib.judgement.identity import DATA
from nsa_lib.report.guard import guarded, show
from nsa_lib.report.tables import format_value
from nsa_lib.runs import environment
from nsa_lib.runs.found import NEWEST, find
from nsa_lib.runs.nodes import is_judged, is_of_several_nodes
from nsa_lib.runs.panel import PAGE, write_page
from nsa_lib.runs.recorded import JSON_COLUMNS, MALFORMED, Recorded, machine_name, write_csv
from nsa_lib.runs.report_file import report_command
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import QUESTIONS, Judging, Question


@dataclass(frozen=True)
class Run(Recorded):
    """A run folder, read and judged: `.info .cases .steps .verdict .summary .figures`."""

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a folder. What makes its run custom is found anew, beside what run.json says of it."""
        run = super().read(folder)
        custom = dict.fromkeys([*map(str, run.info["custom"]), *run._differences()])
        trained_on = (run.fact("training", "origin") or {}).get(DATA)
        facts = {**run.info["environment"], **({DATA: trained_on} if trained_on else {})}
        return replace(run, info={**run.info, "custom": list(custom), "environment": facts})

    def _differences(self) -> list[str]:
        request = self._question.request if self._question else None
        if request is None or request.cases is None:
            return []
        profile = str(self.info["profile"])
        try:
            return request.differences(request.recorded(self.info["parameters"], profile=profile), profile=profile)
        except ConfigError as error:  # of another library, or edited
            return [f"its parameters are not accepted ({error})"]

    @cached_property
    def gates(self) -> list[GateResult]:
        """The gates, judged; where cases ran, one over the evidence itself."""
        gates, request = self._judging.gates(self), self._question.request
        return gates if request.cases is None else [*gates, evidence_gate(self, request)]

    @property
    def verdict(self) -> str:
        """GO, REVIEW, NO-GO or INCOMPLETE."""
        return self.summary["verdict"]

    @cached_property
    def summary(self) -> dict[str, object]:
        """What summary.json holds, and the headline."""
        word, reasons = verdict(self.gates)
        named = ("run_id", "notebook", "profile", "custom")
        return {
            "schema": SCHEMA,
            **{name: self.info[name] for name in named},
            "verdict": word,
            "headline": self._headline(word),
            "reasons": reasons,
            "on_trial": on_trial_in_words(self.info),
            "gates": [asdict(gate) for gate in self.gates],
            "advice": self._advice(),
            "key_figures": key_figures(self),
            "parameters": self.info["parameters"],
            "environment": self.info["environment"],
            "cases": json.loads(self.cases.drop(columns=[*JSON_COLUMNS]).to_json(orient="records")),
        }

    def _headline(self, word: str) -> str:
        outcome, said = {
            "GO": (PASS, "passed"),
            "REVIEW": (WARN, "warn"),
            "NO-GO": (FAIL, "failed"),
            "INCOMPLETE": (NOT_RUN, "did not run"),
        }[word]
        # A warning counts wherever it is; the rest is decided by the required gates.
        kind = "gates" if word == "REVIEW" else "required gates"
        outcomes = [gate.outcome for gate in self.gates if gate.required or word == "REVIEW"]
        said = f"{outcomes.count(outcome)} of {len(outcomes)} {kind} {said}"
        figures, problem = guarded(lambda: self._judging.headline(self))
        return f"{said}; {figures or problem}"

    def _advice(self) -> list[str]:
        advice, problem = guarded(lambda: self._judging.advice(self))
        return [problem] if problem else advice

    @cached_property
    def figures(self) -> Mapping[str, go.Figure]:
        """The notebook's charts, by name."""
        return self._judging.figures(self)

    @property
    def _question(self) -> Question | None:
        return QUESTIONS.get(str(self.info["notebook"]))

    @property
    def _judging(self) -> Judging:
        question = self._question
        if question is None or question.judging is None:
            raise ConfigError(f"{self.folder}: a run of {self.info['notebook']}, which this library does not judge")
        return question.judging


def on_trial_in_words(info: Mapping[str, object]) -> str:
    """Return what a user brought for a run and how it was judged; "" where all was ours."""
    found = info.get("on_trial")
    return f"{found['label']}, {found['judged']}" if found else ""


def open_run(which: str | Path = NEWEST, *, out_dir: str | Path | None = None) -> Run:
    """Return a run, without importing torch.

    Args:
        which: a run folder, the name of one in runs/, `newest`, or `newest:smoke` for that of a notebook.
        out_dir: the folder that holds runs/; reports/ by default.

    Raises:
        FileNotFoundError: if there is no such run; it names the nearest.
        ConfigError: naming the file, if it cannot be read. Other runs that are broken do not matter.
    """
    return Run.read(find(which, environment.out_dir_of(out_dir)))


def judged_run(which: str | Path, *, out_dir: str | Path | None = None) -> Run:
    """Return a run (`open_run`), read to its end and judged; what comes later finds it whole.

    Raises:
        ConfigError: in one line, if a file of it is missing, newer than this library, or not what it should be.
    """
    try:
        run = open_run(which, out_dir=out_dir)
        _ = (run.summary, _facts(run), machine_name(run.info))
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from None
    except MALFORMED as error:
        said = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{which}: cannot be read ({type(error).__name__}: {said})") from error
    return run


FIGURES = {
    "peak_alloc_mib": ("peak allocated", "MiB"),
    "peak_reserved_mib": ("peak reserved", "MiB"),
    "tokens_per_s": ("pace, median after warm-up", "tokens/s"),
    "step_ms": ("step time, median after warm-up", "ms"),
    "loss": ("loss of the last step", "nats per token"),
}
"""What each key figure is called, and its unit."""


def key_figures(run: Run) -> dict[str, float | None]:
    """Return the figures by which runs are compared: highest peaks in MiB, median pace and last loss of the training.

    A notebook that trains nothing has peaks alone, over all its cases.
    """
    training = run.of("training")
    settled = training[training["step"] > WARMUP_STEPS]
    everything = training if len(training) else run.steps
    figures = {
        "peak_alloc_mib": everything["peak_alloc_mib"].max(),
        "peak_reserved_mib": everything["peak_reserved_mib"].max(),
        "tokens_per_s": settled["tokens_per_s"].median(),
        "step_ms": settled["step_ms"].median(),
        "loss": training["loss"].iloc[-1] if len(training) else None,
    }
    finite = {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}
    return {name: float(finite[name]) if name in finite else None for name in figures}


def record(folder: Path) -> Run:
    """Write summary.json of a run that has ended, then its frames as CSV for other programs, and return it.

    On a disk that takes no more, each that cannot be written is a line, and the run has its verdict all the same. One
    that another node has judged is only read.
    """
    with StopButton():  # a second press right after the first must not stop what saves the run
        run = Run.read(folder)
        if is_of_several_nodes(run.info) and is_judged(folder):
            return run
        summary = run.summary
        show(lambda: write_json(folder / "summary.json", summary))  # the verdict before all that only decorates it
        show(lambda: write_csv(run.cases, folder / "cases.csv"))
        show(lambda: write_csv(run.steps, folder / "steps.csv"))
        if (folder / PAGE).exists():
            write_page(folder, _ended_html(run), ended=True)
    return run


def _ended_html(run: Run) -> str:
    """Return what the page of a run says once it has ended; a notebook that was loaded again shows it."""
    again = report_command(run.folder)
    said = f"<p>{escape(run.folder.name)} has ended.</p><p><b>{run.verdict}</b>: {escape(run.summary['headline'])}</p>"
    return f"{said}<p>Its report: <code>{escape(again)}</code></p>" if again else said


def compare(run_a: Run, run_b: Run) -> pd.DataFrame:
    """Return what differs between two runs, a row each: parameters, environment, gates with their figures, figures."""
    rows = []
    for kind, facts_a, facts_b in zip(COMPARED, _facts(run_a), _facts(run_b), strict=True):
        for name in sorted({*facts_a, *facts_b}):
            if facts_a.get(name) != facts_b.get(name):
                rows.append((kind, name, facts_a.get(name), facts_b.get(name)))
    figures_a, figures_b = key_figures(run_a), key_figures(run_b)
    for name, (what, unit) in FIGURES.items():
        if figures_a[name] != figures_b[name]:
            rows.append(("figure", what, *_told_apart(figures_a[name], figures_b[name], unit)))
    run_id_a, run_id_b = run_a.info["run_id"], run_b.info["run_id"]
    again = " (again)" if run_id_b == run_id_a else ""  # a run and a copy of it
    return pd.DataFrame(rows, columns=["kind", "name", run_id_a, f"{run_id_b}{again}"])


COMPARED = ("parameter", "on trial", "environment", "gate", "verdict")


TOLD_OF_A_SUBJECT = ("path", "sha256", "version", "judged")
"""What may differ between two runs of what a user brings; how she named it is a parameter."""


def _facts(run: Run) -> tuple[dict[str, object], ...]:
    parameters = {p["name"]: p["value"] for p in run.info["parameters"]}
    # As text each: a frame would make of a missing fact a NaN, which differs from itself.
    environment = {k: str(v) for k, v in pd.json_normalize(run.info["environment"]).iloc[0].to_dict().items()}
    judged = {
        gate.name: gate.outcome if gate.measured is None else f"{gate.outcome} {with_unit(gate.measured, gate.unit)}"
        for gate in run.gates
    }
    on_trial = {name: value for name, value in (run.info.get("on_trial") or {}).items() if name in TOLD_OF_A_SUBJECT}
    return parameters, on_trial, environment, judged, {"": run.verdict}


def _told_apart(figure_a: float | None, figure_b: float | None, unit: str) -> tuple[str, str]:
    """Return two figures that differ, rounded; with all their digits if they would look equal."""
    said_a, said_b = (format_value(figure, unit) for figure in (figure_a, figure_b))
    return (said_a, said_b) if said_a != said_b else (f"{figure_a} {unit}", f"{figure_b} {unit}")
