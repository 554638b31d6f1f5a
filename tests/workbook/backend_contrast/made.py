"""Made-up backend contrasts, and what can be wrong with one."""

from dataclasses import asdict, replace
from functools import cache

from nsa_lib.contract.agenda import DENSE, RIGHT, WARMUP_ROUNDS, contestants
from nsa_lib.contract.case import WINDOW_STEPS
from nsa_lib.subject.config import OWN, PLAIN_BACKENDS
from nsa_lib.workbook.backend_contrast.cases import contrast_cases
from tests.made import made, resolved, with_case

NAN = float("nan")


MODEL_MS = {"masked": 300.0, "gather": 200.0, "packed": 100.0, "fused": 40.0, DENSE: 50.0, OWN: 25.0}


PEAK_MIB = {"masked": 1040.0, "gather": 1020.0, "packed": 1000.0, "fused": 990.0, DENSE: 900.0, OWN: 1500.0}


MM_CALLS = {"masked": 100, "gather": 200, "packed": 150, "fused": 80, DENSE: 50, OWN: 40}
"""Calls of aten::mm in a step."""


ERRORS = {
    "attention_error": {"output": 1e-6, "gradient": 2e-6},
    "selected_error": {"output": 3e-6, "dq": 4e-6, "dk": 5e-6, "dv": 1e-6},
}


WITH_FUSED = {"triton": "3.6.0", "compute_capability": "8.0"}
"""Facts of a machine that can run it."""


LAYER_SHARE = 0.1
"""Time of one layer over that of the model."""


def requested(profile="checklist", **given):
    return resolved("backend_contrast", given, profile=profile)


def windows(backend, growth=1.0):
    """Return the operators of both windows; kernels and ranges stand among them, as in a profile."""
    mm = {"count": MM_CALLS[backend], "self_device_ms": 10.0, "self_device_mib": 1.0}
    add = {"count": 30, "self_device_ms": 20.0, "self_device_mib": 0.0}
    mm, add = ({name: WINDOW_STEPS * figure for name, figure in row.items()} for row in (mm, add))
    other = {f"nsa::selected::{backend}": {"count": 36}, "void kernel<float>(int)": {"count": 90}}
    early = {"aten::mm": mm, "aten::add.Tensor": add, **other}
    late = {**early, "aten::mm": {**mm, "count": round(growth * mm["count"])}}
    return {"early": early, "late": late}


def ms_of(contestant):
    """Return the time of a model, and of a layer: linear in the length, and that of dense attention quadratic."""
    if contestant.subject == "model":
        return MODEL_MS[contestant.backend]
    base, at_2048 = LAYER_SHARE * MODEL_MS.get(contestant.backend, 20.0), contestant.seq_len / 2048
    return 4 * base * at_2048**2 if contestant.backend == DENSE else base * at_2048


def turns(run_field, rounds, brings=None):
    """Return the beats of a timing: the middle counted round takes the time said, the others 2 ms more or less."""
    rows, ts = [], 1.7e9
    for number in range(WARMUP_ROUNDS + rounds):
        for contestant in run_field:
            ms = ms_of(contestant)
            counted = number - WARMUP_ROUNDS
            ms += 1000 if counted < 0 else 2 * ((counted % 2) - 0.5) * (counted > 0 or rounds % 2 == 0)
            phases = {"forward_ms": 0.25 * ms, "backward_ms": 0.75 * ms, "step_ms": ms}
            phase = "warmup" if counted < 0 else "step"
            ts += ms / 1000
            told = {"case_id": "timing", "step": len(rows) + 1, "phase": phase, "ts": ts}
            watched = {"routes": contestant.routes(brings)} if number == 0 else {}
            rows.append({**told, **asdict(contestant), **phases, **watched})
    return rows


def trained(backend, count):
    mib = PEAK_MIB[backend]
    return [
        {"case_id": f"model_{backend}", "step": step, "phase": "warmup" if step <= 10 else "step", "loss": 6.0,
         "step_ms": 100.0, "peak_alloc_mib": mib - (step == 1), "peak_reserved_mib": 1.1 * mib}
        for step in range(1, count + 1)
    ]  # fmt: skip


@cache
def healthy(profile="checklist", *, backends=PLAIN_BACKENDS, brings=None, **given):
    """Return a contrast that is GO and recommends the last of its backends, or shows what a user `brings`.

    A kernel of hers is recommended: it is the fastest.
    """
    given |= {brings: "/mine.py:Mine"} if brings else {}
    backends = (*backends, OWN) if brings else backends
    values = requested(profile, **given)
    cases, rows = [], []
    for case in contrast_cases(values, backends):
        facts = {}
        if case.work == "timing":
            field = contestants(case.seq_len, case.seq_lens, backends=backends, brings=brings)
            rows += turns(field, values["rounds"].value, brings)
        elif case.work == "checks":
            facts = {"checks": [check(name) for name in RIGHT[case.case_id]]}
        else:
            backend = case.case_id.removeprefix("model_")
            rows += trained(backend, case.steps)
            facts = {"routes": [], "operators": windows(backend)}
            if backend != DENSE:
                facts |= {"routes": [backend], **(ERRORS if case.model.has_reference else {})}
        cases.append({"case_id": case.case_id, "status": "ok", "reason": "", "steps_done": case.steps, **facts})
    info = {"notebook": "backend_contrast", "profile": profile,
            "environment": WITH_FUSED if "fused" in backends else {"torch": "2.11.0"}}  # fmt: skip
    info |= {"on_trial": {"role": brings, "label": "mine.py:Mine"}} if brings else {}
    return made(info, cases, rows, values, backends=backends)


def check(name, **changes):
    return {"name": name, "measured": 0.1, "limit": 0.2, "unit": "", "detail": "said", "holds": True, **changes}


# Changes: each returns a run that differs from the given one in one thing


def with_error(run, backend, field, **errors):
    return with_case(run, f"model_{backend}", **{field: {**ERRORS[field], **errors}})


def with_peaks(run, **peaks):
    steps = run.steps.copy()
    for backend, mib in peaks.items():
        steps.loc[steps["case_id"] == f"model_{backend}", "peak_alloc_mib"] = mib
    return replace(run, steps=steps)


def with_model_ms(run, **times):
    steps = run.steps.copy()
    for backend, ms in times.items():
        rows = (steps["subject"] == "model") & (steps["backend"] == backend) & (steps["phase"] == "step")
        steps.loc[rows, ["forward_ms", "backward_ms"]] = [ms / 4, 3 * ms / 4]
    return replace(run, steps=steps)


def without(run, *case_ids):
    cases, steps = (frame[~frame["case_id"].isin(case_ids)] for frame in (run.cases, run.steps))
    return replace(run, cases=cases, steps=steps)


def without_turns(run, condition):
    """Leave out turns of the timing that a query names."""
    return replace(run, steps=run.steps.drop(run.steps.query(f"case_id == 'timing' and {condition}").index))


def ended(run, case_id, status, steps=4):
    """End a case after some steps, before any of its facts was recorded."""
    late = (run.steps["case_id"] == case_id) & (run.steps["step"] > steps)
    lost = dict.fromkeys(("routes", "attention_error", "selected_error", "operators"), NAN)
    return with_case(
        replace(run, steps=run.steps[~late]), case_id, status=status, reason="planted", steps_done=steps, **lost
    )


def empty(run):
    return replace(run, cases=run.cases[:0], steps=run.steps[:0])


PARTIAL = {
    "nothing": empty,
    "no_timing": lambda run: without(run, "timing"),
    "only_timing": lambda run: without(run, *(f"model_{name}" for name in (*PLAIN_BACKENDS, DENSE))),
    "one_backend": lambda run: without_turns(
        without(run, "model_masked", "model_gather", "model_dense"), "backend != 'packed'"
    ),
    "no_dense": lambda run: without_turns(without(run, "model_dense"), "backend == 'dense'"),
    "cut_in_warmup": lambda run: ended(run, "timing", "interrupted", steps=3),
    "all_oom": lambda run: ended(
        ended(ended(run, "model_masked", "oom"), "model_gather", "oom"), "model_packed", "oom"
    ),
    "no_memory": lambda run: with_peaks(run, masked=NAN, gather=NAN, packed=NAN, dense=NAN),
}


def names(figure):
    return [trace.name for trace in figure.data]
