"""The cases of a backend contrast: the whole model with each backend and with dense attention, and one timing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nsa_lib.contract.agenda import DENSE, RIGHT, WARMUP_ROUNDS, contestants
from nsa_lib.contract.case import FEWEST_STEPS, CaseConfig
from nsa_lib.runs.own import FORMS
from nsa_lib.runs.own import PARAMETERS as OWN_PARAMETERS
from nsa_lib.runs.parameters import SIZES, Parameter, Value
from nsa_lib.runs.request import Request
from nsa_lib.runs.training_case import training_case
from nsa_lib.subject.config import OWN
from nsa_lib.workbook.profiles import COMPILE, FAULT, MACHINE, PROFILE, RUN, profiles


def contrast_cases(values: Mapping[str, Value], backends: Sequence[str]) -> tuple[CaseConfig, ...]:
    """Return the cases of a contrast.

    `model_<backend>` and `model_dense` train the whole model, a process each, so that memory is each one's own; its
    operators are counted if the steps hold two windows. `timing` runs all contestants in turn in one process,
    eagerly whatever `compile` says: that is for the models. What the reference does not know is checked besides, and
    dense attention is judged like the others where it is what was asked for.
    """
    training = training_case(values)
    base = replace(training, profile_operators=training.steps >= FEWEST_STEPS)
    models = [_whole_model(base, name) for name in backends]
    dense = _whole_model(base, DENSE)
    if base.model.attention != DENSE:
        dense = replace(dense, attest=False)
    timing = replace(training, work="timing", compile=False, seq_lens=values["seq_lens"].value, backends=backends)
    return (*models, dense, _with_rounds(timing, int(values["rounds"].value)), *_checks(training))


def _checks(training: CaseConfig) -> list[CaseConfig]:
    """Return the case that asks whether what is on trial is right; none for what the reference knows."""
    if training.model.has_reference:
        return []
    checks = replace(training, work="checks", compile=False, fault="none", warmup_steps=0, backends=(OWN,))
    return [replace(checks, case_id=case_id, steps=len(names)) for case_id, names in RIGHT.items()]


def _whole_model(base: CaseConfig, name: str) -> CaseConfig:
    model = base.model.contestant(name)
    known = model.has_reference
    return replace(
        base, case_id=f"model_{name}", model=model, attest=True, check_attention=known, compare_selected=known
    )


def _with_rounds(timing: CaseConfig, rounds: int) -> CaseConfig:
    count = len(contestants(timing.seq_len, timing.seq_lens, backends=timing.backends, brings=timing.model.brings))
    steps, warmup_steps = count * (WARMUP_ROUNDS + rounds), count * WARMUP_ROUNDS
    return replace(timing, case_id="timing", steps=steps, warmup_steps=warmup_steps)


OWN_BACKEND = {"backend": Parameter(str, f"a kernel of yours to stand beside ours: {FORMS}")}

REQUEST = Request(
    notebook="backend_contrast",
    parameters={
        **PROFILE,
        "seq_lens": Parameter(list, "lengths of the sweep, ascending", above=0),
        "steps": Parameter(int, f"training steps, {FEWEST_STEPS} or more to be judged", above=0),
        "rounds": Parameter(int, "interleaved rounds of every timing", above=0),
        **SIZES,
        **OWN_BACKEND,
        **OWN_PARAMETERS,
        **MACHINE,
        **COMPILE,
        **RUN,
        **FAULT,
    },
    profiles=profiles(
        checklist={"seq_lens": (512, 1024, 2048, 4096), "steps": 20, "rounds": 10},
        laptop={"seq_lens": (128, 256, 512), "steps": 17, "rounds": 3},
    ),
    cases=contrast_cases,
)
