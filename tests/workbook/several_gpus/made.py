"""Made-up runs on several GPUs, and what can be wrong with one."""

from dataclasses import replace

from nsa_lib.contract.collectives import bus_gb_per_s, transfers
from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.workbook.questions import QUESTIONS
from tests.made import made, resolved, with_case

OPERATORS = {"aten::mm": {"count": 1200}, "aten::add.Tensor": {"count": 300}}

PERIOD = 10

STATE_MIB = {"none": 9.6, "ddp": 9.6, "fsdp2": 4.8}

PEAK_MIB = {"none": 13.7, "ddp": 12.8, "fsdp2": 10.5}


def healthy(profile="laptop", **given):
    """Return a run that is GO."""
    values = resolved("several_gpus", given, profile=profile)
    asked = QUESTIONS["several_gpus"].request.cases(values, ("masked", "gather", "packed"))
    info = {
        "schema": SCHEMA, "run_id": "several_gpus-1", "notebook": "several_gpus", "profile": profile,
        "created": "2025-03-01T10:15:00.000000+00:00", "reproduce": "papermill", "report": None,
        "environment": {"torch": "2.13.0", "packages": {}, "nvlink_gb_per_s": None},
    }  # fmt: skip
    cases = [_case(case) for case in asked]
    return made(info, cases, [beat for case in asked for beat in _beats(case)], values)


def _case(case):
    facts = _facts(case)
    ranks = {"ranks": [dict(facts) for _ in range(case.ranks)]} if case.is_launched else {}
    return {"case_id": case.case_id, "status": "ok", "reason": "", "seconds": 9.0, **facts, **ranks}


def _facts(case):
    if case.work == "collectives":
        return {}
    seen = {
        "routes": [[case.model.backend]] * case.model.layers,
        "passes": [1 + case.grad_checkpointing] * case.model.layers,
        "dtypes": {kind: [case.dtype] for kind in ("parameters", "gradients", "optimizer", "activations")},
        "devices": [case.device],
        "held_share": 1 / case.ranks if case.strategy == "fsdp2" else 1.0,
    }  # fmt: skip
    facts = {"state_mib": STATE_MIB[case.strategy], "executed": [{"step": 1, **seen}, {"step": case.steps, **seen}]}
    if case.profile_operators:
        facts["operators"] = {"early": OPERATORS, "late": OPERATORS}
    if case.digest_parts:
        facts["start"] = digest(0, case.digest_parts)
        facts["digests"] = [digest(step, case.digest_parts) for step in range(PERIOD, case.steps + 1, PERIOD)]
    return facts


def digest(step, parts):
    """Return the digest of some parameters."""
    return {
        "step": step,
        "hash": f"{step:016x}",
        "parts": [{"norm": 20.0, "projections": [1.0, 2.0, 3.0, 4.0]}] * parts,
    }


def _beats(case):
    if case.work == "collectives":
        for rank in range(case.ranks):
            for step, one in enumerate(transfers(case.device), start=1):
                rate = bus_gb_per_s(one, 0.001, case.ranks)
                yield {"case_id": case.case_id, "rank": rank, "step": step, "phase": "step", "step_ms": 1.0,
                       "bus_gb_per_s": rate, **vars(one)}  # fmt: skip
        return
    mib = PEAK_MIB[case.strategy]
    share = case.batch // case.ranks
    for rank in range(case.ranks):
        for step in range(1, case.steps + 1):
            beat = {
                "case_id": case.case_id, "rank": rank, "step": step, "phase": "warmup" if step <= 10 else "step",
                "loss": 6.0 * 0.99**step + 0.01 * (rank - (case.ranks - 1) / 2), "grad_norm": 1.0, "step_ms": 100.0,
                "alloc_mib": STATE_MIB[case.strategy], "peak_alloc_mib": mib, "peak_reserved_mib": 2 * mib,
                "reserved_mib": 2 * mib, "alloc_retries": 0, "ooms": 0,
            }  # fmt: skip
            if case.is_launched:
                beat["own_ms"] = 20.0 + 0.1 * ((step + rank) % 3)
            if case.digest_parts:
                beat["data"] = [f"sequence {rank * share + number}" for number in range(share)]
                parts = 1 if case.strategy == "fsdp2" else case.digest_parts
                beat["part_norms"] = [0.7] * parts
            yield beat


# Faults: each returns a run that differs from the given one in one thing


def with_steps(run, case_id, rank, **columns):
    """Change columns of a rank's steps; each is given as a function of the step and of the value that stands there."""
    steps = run.steps.copy()
    rows = (steps["case_id"] == case_id) & (steps["rank"] == rank)
    for name, change in columns.items():
        steps[name] = steps[name].astype(object)
        changed = [change(step, value) for step, value in zip(steps["step"][rows], steps[name][rows], strict=True)]
        for place, value in zip(steps.index[rows], changed, strict=True):
            steps.at[place, name] = value
    return replace(run, steps=steps)


def kept(run, case_id, rank, count):
    """Keep the first steps of a rank."""
    late = (run.steps["case_id"] == case_id) & (run.steps["rank"] == rank) & (run.steps["step"] > count)
    return replace(run, steps=run.steps[~late])


def with_rank(run, case_id, rank, **facts):
    """Return a run in which a rank recorded something else."""
    ranks = [dict(own) for own in run.case(case_id)["ranks"]]
    ranks[rank] |= facts
    return with_case(run, case_id, ranks=ranks)


def with_digest(run, case_id, rank, step, **changes):
    """Return a run in which a rank had other parameters after a step."""
    digests = [dict(found) for found in run.case(case_id)["ranks"][rank]["digests"]]
    digests = [{**found, **changes} if found["step"] == step else found for found in digests]
    return with_rank(run, case_id, rank, digests=digests)


def ended(run, case_id, status, count=4):
    """End a case after some steps; what its ranks knew is lost."""
    for rank in range(2):
        run = kept(run, case_id, rank, count)
    return with_case(run, case_id, status=status, reason="rank 1: because", ranks=[{}, {}])
