"""Made-up backward scalings, and what can be wrong with one."""

from dataclasses import replace

import numpy as np

from nsa_lib.workbook.backward_scaling.cases import scaling_cases
from nsa_lib.workbook.backward_scaling.gates import (
    KNOWN_PEAK_ALLOC_MIB,
)
from tests.made import made, resolved

LENGTHS = (128, 512, 1024, 2048)


STATE_MIB = 400.0


def beats(case_id, count, warmup, alloc_mib, reserved_mib, total_ms):
    """Return heartbeats whose time jitters by a percent and whose memory does not move."""
    jitter = np.random.default_rng(len(case_id)).normal(1, 0.01, count)
    return [
        {"case_id": case_id, "step": step, "phase": "warmup" if step <= warmup else "step", "loss": 6.0,
         "grad_norm": 1.0, "step_ms": total_ms, "forward_ms": 0.4 * total_ms * noise,
         "backward_ms": 0.6 * total_ms * noise, "peak_alloc_mib": alloc_mib, "peak_reserved_mib": reserved_mib,
         **{f"peak_{kind}_{phase}_mib": mib for phase in ("forward", "backward", "optimizer")
            for kind, mib in (("alloc", alloc_mib), ("reserved", reserved_mib))}}
        for step, noise in enumerate(jitter, start=1)
    ]  # fmt: skip


def healthy(profile="checklist", exponent=1.0, time_exponent=0.5, **given):
    """Return a scaling that is GO: memory beyond the state is 0.4 MiB a token to the power of the exponent."""
    values = resolved("backward_scaling", given, profile=profile)
    backend = values["backend"].value
    cases, rows = [], []
    for case in scaling_cases(values, ()):
        alloc_mib = STATE_MIB + 0.4 * case.seq_len**exponent
        if case.work == "train":
            alloc_mib = 800 + 60 * case.model.layers
        rows += beats(
            case.case_id, case.steps, case.warmup_steps, alloc_mib, 1.1 * alloc_mib, case.seq_len**time_exponent
        )
        cases.append({"case_id": case.case_id, "status": "ok", "reason": "", "steps_done": case.steps,
                      "state_mib": STATE_MIB, "routes": [backend]})  # fmt: skip
    return made({"notebook": "backward_scaling", "profile": profile}, cases, rows, values)


def known(factor=1.0, profile="checklist", backend="masked", **given):
    """Return a scaling whose peaks are the kept ones, times a factor."""
    run = healthy(profile, backend=backend, **given)
    peaks = {f"s{length}": mib * factor for length, mib in KNOWN_PEAK_ALLOC_MIB[profile, backend].items()}
    steps = run.steps.copy()
    for case_id, mib in peaks.items():
        steps.loc[steps["case_id"] == case_id, "peak_alloc_mib"] = mib
    return replace(run, steps=steps, cases=run.cases.assign(state_mib=1.0))


def without(run, *case_ids):
    return replace(
        run,
        cases=run.cases[~run.cases["case_id"].isin(case_ids)],
        steps=run.steps[~run.steps["case_id"].isin(case_ids)],
    )


def ended(run, case_id, status, steps=None):
    """Return the run with another end of one case, after so many of its steps."""
    cases, rows = run.cases.copy(), run.steps
    cases.loc[cases["case_id"] == case_id, ["status", "reason"]] = [status, "planted"]
    if steps is not None:
        rows = rows[(rows["case_id"] != case_id) | (rows["step"] <= steps)]
    return replace(run, cases=cases, steps=rows)
