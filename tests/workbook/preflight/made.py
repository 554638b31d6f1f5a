"""Made-up preflights."""

from nsa_lib.contract.agenda import check_names
from nsa_lib.subject.config import OWN, PLAIN_BACKENDS
from nsa_lib.workbook.preflight.cases import FULL, FULL_STEPS
from nsa_lib.workbook.preflight.gates import preflight_gates
from tests.made import made, resolved

FACTS = {
    "torch": "2.11.0+cu130", "cuda_usable": True, "cuda_problem": None, "gpu": "NVIDIA H200", "gpu_uuid": "4f2a",
    "driver": "580.159.04", "bf16_supported": True, "gpu_memory_mib": 143_771, "gpu_memory_free_mib": 143_000,
    "gpu_processes": [], "disk_free_mib": 90_000, "cpu": "x",
}  # fmt: skip


WITH_FUSED = {"triton": "3.6.0", "compute_capability": "9.0"}
"""Facts of a machine that can run it."""


MAP = {
    "l_sel": 64, "branches": ["cmp", "slc", "win"], "selected": [[[1.0, 0.0], [1.0, 1.0]]],
    "branch_gates": [[[0.5, 0.4, 0.6]]], "branch_mass": [[0.2, 0.3, 0.5]],
}  # fmt: skip


def check(name, **changes):
    return {"name": name, "measured": 0.1, "limit": 0.2, "unit": "", "detail": "said", "holds": True, **changes}


def preflight(
    profile="checklist", *, facts=(), checks=(), status="ok", without=(), backends=PLAIN_BACKENDS, brings=None, **given
):
    """Return a run that is GO, with some facts, some checks of `subject` and that case's status changed.

    What a user `brings` is on trial in place of ours.
    """
    given |= {brings: "/mine.py:Mine"} if brings else {}
    backends = (*backends, OWN) if brings else backends
    values = resolved("preflight", given, profile=profile)
    changed = dict(checks)
    cases = [
        {
            "case_id": group, "status": status if group == "subject" else "ok", "reason": "why",
            "checks": [check(name, **changed.get(name, {})) for name in names if name not in without],
            "attention_map": MAP if group == "learning" else None,
            "effective": {"allocator": {"setting": values["alloc_conf"].value}},
        }
        for group, names in check_names(backends, brings=brings).items()
    ]  # fmt: skip
    cases.append({"case_id": FULL, "status": "ok", "reason": "", "steps_done": FULL_STEPS})
    steps = [{"case_id": FULL, "step": step, "phase": "step"} for step in range(1, FULL_STEPS + 1)]
    info = {"notebook": "preflight", "profile": profile, "environment": {**FACTS, **dict(facts)}}
    info |= {"on_trial": {"role": brings, "label": "mine.py:Mine"}} if brings else {}
    return made(info, cases, steps, values, backends=backends)


def gate(run, name):
    return next(gate for gate in preflight_gates(run) if gate.name == name)
