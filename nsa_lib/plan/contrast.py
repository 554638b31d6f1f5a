"""The cases of a backend contrast: the whole model with each backend and with dense attention, and one timing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nsa_lib.config import CaseConfig
from nsa_lib.contestants import DENSE, WARMUP_ROUNDS, contestants
from nsa_lib.operators import FEWEST_STEPS
from nsa_lib.plan.training import training_case
from nsa_lib.profiles import Value


def contrast_cases(values: Mapping[str, Value], backends: Sequence[str]) -> tuple[CaseConfig, ...]:
    """Return the cases of a contrast.

    `model_<backend>` and `model_dense` train the whole model, a process each, so that memory is each one's own; its
    operators are counted if the steps hold two windows. `timing` runs all contestants in turn in one process.
    """
    training = training_case(values)
    base = replace(training, profile_operators=training.steps >= FEWEST_STEPS)
    judged = replace(base, check_attention=True, compare_selected=True)
    models = [replace(judged, case_id=f"model_{name}", model=replace(base.model, backend=name)) for name in backends]
    dense = replace(base, case_id=f"model_{DENSE}", model=replace(base.model, attention=DENSE))
    timing = replace(training, work="timing", seq_lens=values["seq_lens"].value, backends=backends)
    return (*models, dense, _with_rounds(timing, int(values["rounds"].value)))


def _with_rounds(timing: CaseConfig, rounds: int) -> CaseConfig:
    count = len(contestants(timing.seq_len, timing.seq_lens, backends=timing.backends))
    steps, warmup_steps = count * (WARMUP_ROUNDS + rounds), count * WARMUP_ROUNDS
    return replace(timing, case_id="timing", steps=steps, warmup_steps=warmup_steps)
