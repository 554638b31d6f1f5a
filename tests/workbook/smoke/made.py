"""Made-up smokes, and what can be wrong with one."""

from dataclasses import replace

from nsa_lib.contract.heartbeat import SCHEMA
from tests.made import made, resolved, with_case

NAN, INF = float("nan"), float("inf")


STATE_SHARE = 0.85
"""Parameters, gradients and optimizer state, as a share of the peak of a healthy run."""


BASE_MIB = {"checklist": 1700.0, "laptop": 34.0}


LOST = (
    "state_mib",
    "device_total_mib",
    "executed",
    "attestation",
    "fresh_tokens",
    "meter",
    "replay",
    "operators",
    "effective",
    "fingerprint",
)
"""What a case that dies before its first step ends has not recorded."""


def found_wrong(run, area, said="relative error 0.3"):
    """Return a smoke of whose last step the judge found something wrong."""
    steps = [dict(step) for step in run.case("training")["attestation"]]
    steps[-1]["wrong"] = {**steps[-1]["wrong"], area: {"layer 1": said}}
    return with_case(run, "training", attestation=steps)


def not_compared(run, *areas, why="too small", layers=None):
    """Return a smoke of which areas were not compared, in some layers or in none."""
    steps = []
    for step in run.case("training")["attestation"]:
        rows = [
            {**row, "why_not": why} if row["area"] in areas and (layers is None or row["layer"] in layers) else row
            for row in step["coverage"]
        ]
        steps.append({**step, "coverage": rows})
    return with_case(run, "training", attestation=steps)


def covering(run, change):
    """Return a smoke whose steps compared something else; `change` returns the rows from those of an honest one."""
    steps = [{**step, "coverage": change(step["coverage"])} for step in run.case("training")["attestation"]]
    return with_case(run, "training", attestation=steps)


def executed(run, **changes):
    """Return a smoke whose recorded steps executed something else."""
    return with_case(run, "training", executed=[{**step, **changes} for step in run.case("training")["executed"]])


def shown_fresh(run, **changes):
    """Return a smoke that found something else on fresh tokens."""
    return with_case(run, "training", fresh_tokens={**run.case("training")["fresh_tokens"], **changes})


def replayed(run, **changes):
    """Return a smoke whose unrecorded steps came out otherwise when they were taken again."""
    return with_case(run, "training", replay={**run.case("training")["replay"], **changes})


def with_other_bits(run, step, again=()):
    """Return a smoke whose second take of a step came to another loss, and what further takes gave."""
    found = run.case("hot")["fingerprint"]
    losses = [*found["losses"]]
    losses[step - 1] = "another loss"
    return with_case(run, "hot", fingerprint={**found, "losses": losses, "again": list(again)})


OPERATORS = {"aten::mm": {"count": 1200}, "aten::add.Tensor": {"count": 300}}

CALLS = 1500
"""Of a step; on a GPU the profiler counts them, and no heartbeat."""


def rows_of(case_id, count, base_mib, tokens, ops):
    """Return heartbeats in which nothing moves but the loss, which falls."""
    memory = {"alloc_mib": 0.9, "active_mib": 0.9, "reserved_mib": 1.05, "peak_alloc_mib": 1.0}
    memory |= {"peak_reserved_mib": 1.05, "peak_alloc_forward_mib": 0.9, "peak_alloc_backward_mib": 1.0}
    memory |= {"peak_alloc_optimizer_mib": 0.95}
    return [
        {"case_id": case_id, "step": step, "phase": "warmup" if step <= 10 else "step", "ts": 1.7e9 + step / 9.9,
         "loss": 6.2 * 0.99**step, "grad_norm": 1.0, "step_ms": 100.0, "tokens_per_s": 10.0 * tokens,
         **{name: share * base_mib for name, share in memory.items()},
         "alloc_retries": 0, "ooms": 0, "device_allocs": 12, "ops": ops}
        for step in range(1, count + 1)
    ]  # fmt: skip


def healthy(profile="checklist", *, base_mib=None, steps=100, **given):
    """Return a run that is GO."""
    values = resolved("smoke", {"steps": steps, **given}, profile=profile)
    on_gpu, base_mib = values["device"].value == "cuda", base_mib or BASE_MIB[profile]
    repeats = not on_gpu or (values["backend"].value == "fused" and not values["compile"].value)
    repeated = {"hot": min(steps, 3)} if repeats else {}
    counts = {"training": steps, **repeated, "anomaly": 10, **({"profiler": 53, "dense": 30} if on_gpu else {})}
    cases = [
        {"case_id": case_id, "status": "ok", "reason": "", "steps_done": count, "seconds": 12.5, "exit_code": 0,
         "state_mib": STATE_SHARE * base_mib, "device_total_mib": 143_771.0 if on_gpu else NAN, "stderr_tail": "",
         "routes": [] if case_id == "dense" else [values["backend"].value], "effective": {},
         "operators": {"early": OPERATORS, "late": OPERATORS} if case_id == counted(on_gpu) else NAN,
         "torn_heartbeat": False}
        for case_id, count in counts.items()
    ]  # fmt: skip
    info = {
        "schema": SCHEMA, "run_id": f"smoke-20250301T101500Z-{profile}", "notebook": "smoke", "profile": profile,
        "created": "2025-03-01T10:15:00.000000+00:00", "reproduce": "papermill smoke.ipynb out.ipynb",
        "environment": {"torch": "2.13.0", "packages": {"plotly": "7.1", "pandas": "3.1"}},
    }  # fmt: skip
    tokens = values["batch"].value * values["seq_len"].value
    beats = [
        row
        for case_id, count in counts.items()
        for row in rows_of(case_id, count, base_mib, tokens, None if on_gpu else CALLS)
    ]
    return made(info, cases, beats, values)


def counted(on_gpu):
    return "profiler" if on_gpu else "training"


# Faults: each returns a run that differs from the given one in one thing


def without_case(run, case_id):
    steps = run.steps[run.steps["case_id"] != case_id]
    info = {**run.info, "case_ids": [other for other in run.info["case_ids"] if other != case_id]}
    return replace(run, info=info, cases=run.cases[run.cases["case_id"] != case_id], steps=steps)


def with_steps(run, case_id="training", **columns):
    """Change columns; each is given as a function of the step and of the value that stands there."""
    steps = run.steps.copy()
    rows = steps["case_id"] == case_id
    for name, change in columns.items():
        changed = [change(step, value) for step, value in zip(steps["step"][rows], steps[name][rows], strict=True)]
        steps[name] = steps[name].astype(float)
        steps.loc[rows, name] = changed
    return replace(run, steps=steps)


def with_parameter(run, name, value):
    parameters = [{**p, "value": value} if p["name"] == name else p for p in run.info["parameters"]]
    return replace(run, info={**run.info, "parameters": parameters})


def kept(run, count):
    """Keep the first steps of the training."""
    late = (run.steps["case_id"] == "training") & (run.steps["step"] > count)
    return replace(run, steps=run.steps[~late])


def ended(run, status, count, **facts):
    """End the training after some steps; `facts` are what the worker still recorded."""
    lost = dict.fromkeys(LOST, NAN)
    return with_case(kept(run, count), "training", status=status, reason="because", **{**lost, **facts})


def leaking(run, column, growth):
    """Let a memory figure rise steadily by a share of its start, over the 50 steps after warm-up."""
    return with_steps(run, **{column: lambda step, mib: mib * (1 + growth * min(max(step - 10, 0), 50) / 50)})


def with_operators(run, late):
    counts, on_gpu = (
        {"early": OPERATORS, "late": {name: {"count": count} for name, count in late.items()}},
        run.parameter("device") == "cuda",
    )
    last = run.of("training")["step"].max()
    told = run if on_gpu else with_steps(run, ops=lambda step, ops: sum(late.values()) if step == last else ops)
    return with_case(told, counted(on_gpu), operators=counts)


def missing(run, *columns):
    return with_steps(run, **dict.fromkeys(columns, lambda step, value: NAN))
