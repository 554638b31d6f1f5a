"""The notebooks, a row each: what one asks of a run, and how its runs are judged and shown.

A new notebook is one folder and one row here; no other file knows a notebook by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

import plotly.graph_objects as go

from nsa_lib.contract.agenda import DENSE
from nsa_lib.judgement.gate import GateResult
from nsa_lib.report.charts.overlay import no_figures
from nsa_lib.runs import plan as plans
from nsa_lib.runs.earlier import forget_earlier
from nsa_lib.runs.parameters import unknown
from nsa_lib.runs.plan import Plan
from nsa_lib.runs.recorded import Recorded
from nsa_lib.runs.request import Request
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.backend_contrast import cases as contrast
from nsa_lib.workbook.backend_contrast.figures import contrast_figures
from nsa_lib.workbook.backend_contrast.gates import contrast_advice, contrast_gates, contrast_headline
from nsa_lib.workbook.backward_scaling import cases as scaling
from nsa_lib.workbook.backward_scaling.figures import scaling_figures
from nsa_lib.workbook.backward_scaling.gates import scaling_advice, scaling_gates, scaling_headline
from nsa_lib.workbook.bring_your_own import parameters as bring_your_own
from nsa_lib.workbook.capacity import cases as capacity
from nsa_lib.workbook.explore import parameters as explore
from nsa_lib.workbook.fleet import parameters as fleet
from nsa_lib.workbook.fleet.figures import fleet_figures
from nsa_lib.workbook.fleet.gates import fleet_advice, fleet_gates, fleet_headline
from nsa_lib.workbook.preflight import cases as preflight
from nsa_lib.workbook.preflight.figures import preflight_figures
from nsa_lib.workbook.preflight.gates import preflight_advice, preflight_gates, preflight_headline
from nsa_lib.workbook.readiness import parameters as readiness
from nsa_lib.workbook.readiness.gates import readiness_advice, readiness_gates, readiness_headline
from nsa_lib.workbook.several_gpus import cases as several
from nsa_lib.workbook.several_gpus.figures import several_figures
from nsa_lib.workbook.several_gpus.gates import several_advice, several_gates, several_headline
from nsa_lib.workbook.smoke import cases as smoke
from nsa_lib.workbook.smoke.figures import smoke_figures
from nsa_lib.workbook.smoke.gates import smoke_advice, smoke_gates, smoke_headline


@dataclass(frozen=True)
class Judging:
    """How the runs of one notebook are read."""

    gates: Callable[[Recorded], list[GateResult]]
    advice: Callable[[Recorded], list[str]]
    headline: Callable[[Recorded], str]
    """The figures that a verdict is said with."""
    figures: Callable[[Recorded], Mapping[str, go.Figure]]
    advice_only: tuple[str, ...] = ()
    """Cases that no gate names: what they measure is advice alone. Every other one must end well."""


@dataclass(frozen=True)
class Question:
    """One notebook."""

    request: Request
    judging: Judging | None = None
    """None for a notebook that gives no verdict."""
    counts: bool = False
    """Readiness decides over its run."""


_ROWS = (
    Question(
        preflight.REQUEST,
        Judging(preflight_gates, preflight_advice, preflight_headline, preflight_figures),
        counts=True,
    ),
    Question(
        scaling.REQUEST,
        Judging(scaling_gates, scaling_advice, scaling_headline, scaling_figures),
        counts=True,
    ),
    Question(
        smoke.REQUEST,
        Judging(smoke_gates, smoke_advice, smoke_headline, smoke_figures, advice_only=("dense", "snapshot")),
        counts=True,
    ),
    Question(
        contrast.REQUEST,
        Judging(contrast_gates, contrast_advice, contrast_headline, contrast_figures, advice_only=(f"model_{DENSE}",)),
        counts=True,
    ),
    Question(readiness.REQUEST, Judging(readiness_gates, readiness_advice, readiness_headline, no_figures)),
    Question(several.REQUEST, Judging(several_gates, several_advice, several_headline, several_figures)),
    Question(fleet.REQUEST, Judging(fleet_gates, fleet_advice, fleet_headline, fleet_figures)),
    Question(capacity.REQUEST),
    Question(explore.REQUEST),
    Question(bring_your_own.REQUEST),
)

QUESTIONS: dict[str, Question] = {row.request.notebook: row for row in _ROWS}
"""Every notebook by its name; those that count in the order in which a validation runs them."""


def counted() -> tuple[str, ...]:
    """Return the notebooks that readiness decides over."""
    return tuple(name for name, question in QUESTIONS.items() if question.counts)


def judged() -> tuple[str, ...]:
    """Return the notebooks that give a verdict. The others are for tinkering: editing them makes no other source."""
    return tuple(name for name, question in QUESTIONS.items() if question.judging)


def plan(notebook: str, namespace: MutableMapping[str, object]) -> Plan:
    """Return the plan of a run (`runs.plan.plan`) of a notebook, given its globals, which forget their earlier run.

    Raises ConfigError for a notebook that is none of the workbook's, and for what `runs.plan.plan` refuses.
    """
    if notebook not in QUESTIONS:
        raise ConfigError(unknown(notebook, "notebook", QUESTIONS))
    forget_earlier(namespace)
    return plans.plan(QUESTIONS[notebook].request, namespace, notebooks=judged())
