"""The gates of the preflight: the machine against the checklist's prerequisites, and each check of the subject."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.contract.agenda import check_names
from nsa_lib.contract.allocator import options_of
from nsa_lib.contract.figures import counted
from nsa_lib.judgement.attestation import AREAS, attested_gate, replay_gate
from nsa_lib.judgement.checks import check_gate
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, GateResult, route_gate, steps_gate
from nsa_lib.runs.recorded import Recorded
from nsa_lib.workbook.preflight.cases import FULL
from nsa_lib.workbook.profiles import CHECKLIST_ALLOC_CONF

OLDEST_TORCH = "2.5"

FREE_MEMORY_PERCENT = 90
"""Of the GPU's memory: a run beside another one measures both."""

DISK_MIB = 1024
"""Hundreds of runs and their reports."""

MET, DIFFERS, MISSING = "met", "differs", "missing"

OUTCOMES = {MET: PASS, DIFFERS: WARN, MISSING: FAIL}
"""How a prerequisite is judged: one that differs is a person's to decide."""


SUFFIX = f"_{FULL}"
"""Of the names of gates over the steps at the run's own size."""


def preflight_gates(run: Recorded) -> list[GateResult]:
    """Return the gates of a preflight: prerequisites, every check that belongs to it, steps at the run's own size."""
    return [
        *prerequisite_gates(run),
        *(check_gate(run, group, name) for group, names in names_of(run).items() for name in names),
        *full_gates(run),
    ]


def full_gates(run: Recorded) -> list[GateResult]:
    """Judge the few train steps at the run's own length, batch and layers as the other notebooks judge theirs."""
    return [
        steps_gate(run, FULL, f"steps{SUFFIX}"),
        route_gate(run, [FULL], f"route{SUFFIX}"),
        *(attested_gate(run, FULL, area, SUFFIX) for area in AREAS),
        replay_gate(run, FULL, SUFFIX),
    ]


def names_of(run: Recorded) -> dict[str, tuple[str, ...]]:
    """Return the names of the checks that a run owed, by case."""
    values = {row["name"]: row["value"] for row in run.info["parameters"]}
    role = (run.info.get("on_trial") or {}).get("role") or ("attention" if values.get("attention") == "dense" else None)
    return check_names(run.backends, brings=role, compiled=bool(values.get("compile")))


def prerequisite_gates(run: Recorded) -> list[GateResult]:
    """Judge machine, versions and settings; each is met, differs or missing. Those of a GPU are the checklist's."""
    facts = run.info["environment"]
    on_gpu = [gpu(facts), driver(facts), bf16(facts), free_memory(facts), allocator(run)]
    if run.info["profile"] != "checklist":
        on_gpu = [
            replace(
                gate, required=False, outcome=NOT_RUN, measured=None, detail="of a GPU: asked by the checklist only"
            )
            for gate in on_gpu
        ]
    return [torch_version(facts), disk(facts), checkpointing(run), *on_gpu]


def _judged(name: str, state: str, measured: object, limit: object, unit: str = "", detail: str = "") -> GateResult:
    said = f"{state}: {detail}" if detail else state
    return GateResult(name, True, OUTCOMES[state], measured, limit, unit=unit, detail=said)


def _unknown(name: str, limit: object, unit: str = "") -> GateResult:
    return GateResult(name, True, NOT_RUN, limit=limit, unit=unit, detail="not recorded")


def torch_version(facts: Mapping[str, object]) -> GateResult:
    """Judge that torch is not older than what this library was tried with."""
    limit, found = f"{OLDEST_TORCH} or newer", str(facts.get("torch") or "")
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None:
        return _unknown("torch", limit)
    new_enough = tuple(map(int, numbers.groups())) >= tuple(map(int, OLDEST_TORCH.split(".")))
    return _judged("torch", MET if new_enough else MISSING, found, limit)


def disk(facts: Mapping[str, object]) -> GateResult:
    """Judge that the disk of the runs has room for more than this one."""
    free_mib = facts.get("disk_free_mib")
    if free_mib is None:
        return _unknown("disk_free", DISK_MIB, "MiB")
    return _judged("disk_free", MET if free_mib >= DISK_MIB else DIFFERS, free_mib, DISK_MIB, "MiB")


def checkpointing(run: Recorded) -> GateResult:
    """Judge that gradient checkpointing is on; the checklist does not go without."""
    on = bool(run.parameter("grad_checkpointing"))
    gate = _judged("grad_checkpointing", MET if on else MISSING, "on" if on else "off", "on")
    return replace(gate, required=run.info["profile"] == "checklist")


def gpu(facts: Mapping[str, object]) -> GateResult:
    """Judge that torch finds a CUDA device, and name it."""
    if "cuda_usable" not in facts:
        return _unknown("gpu", "a CUDA device")
    if not facts["cuda_usable"]:
        return _judged("gpu", MISSING, "none", "a CUDA device", detail=str(facts.get("cuda_problem")))
    return _judged("gpu", MET, facts.get("gpu"), "a CUDA device", detail=f"UUID {facts.get('gpu_uuid')}")


def driver(facts: Mapping[str, object]) -> GateResult:
    """Judge that the driver's tool answers: it alone shows other processes on the GPU."""
    if "driver" not in facts:
        return _unknown("driver", "nvidia-smi answers")
    if facts["driver"] is None:
        return _judged("driver", DIFFERS, "unknown", "nvidia-smi answers", detail="nvidia-smi does not answer")
    return _judged("driver", MET, facts["driver"], "nvidia-smi answers")


def bf16(facts: Mapping[str, object]) -> GateResult:
    """Judge that the GPU computes in bfloat16."""
    supported = facts.get("bf16_supported")
    if supported is None:
        return _unknown("bf16", "supported")
    return _judged("bf16", MET if supported else MISSING, "supported" if supported else "not supported", "supported")


def free_memory(facts: Mapping[str, object]) -> GateResult:
    """Judge that nearly all of the GPU's memory is free, or name what holds it."""
    free_mib, total_mib = facts.get("gpu_memory_free_mib"), facts.get("gpu_memory_mib")
    if not total_mib or free_mib is None:
        return _unknown("gpu_memory_free", FREE_MEMORY_PERCENT, "%")
    percent = round(100 * free_mib / total_mib, 1)
    others = ", ".join(facts.get("gpu_processes") or ())
    detail = f"{free_mib:,} of {total_mib:,} MiB; " + (
        f"on the GPU: {others}" if others else "no process is seen on it"
    )
    state = MET if percent >= FREE_MEMORY_PERCENT else DIFFERS
    return _judged("gpu_memory_free", state, percent, FREE_MEMORY_PERCENT, "%", detail)


def allocator(run: Recorded) -> GateResult:
    """Judge that the allocator obeys the setting asked for, and that this is the checklist's."""
    asked = str(run.parameter("alloc_conf"))
    first = next(iter(names_of(run)))
    found = ((run.fact(first, "effective") or {}).get("allocator") or {}).get("setting")
    if found is None:
        return _unknown("alloc_conf", CHECKLIST_ALLOC_CONF)
    if options_of(found) != options_of(asked):
        return _judged("alloc_conf", MISSING, found, CHECKLIST_ALLOC_CONF, detail=f"asked for was {asked or 'none'}")
    return _judged("alloc_conf", MET if asked == CHECKLIST_ALLOC_CONF else DIFFERS, found, CHECKLIST_ALLOC_CONF)


def preflight_advice(run: Recorded) -> list[str]:
    """Return what a user may want to do; it never decides."""
    others = run.info["environment"].get("gpu_processes")
    if not others:
        return []
    return [f"Also on the GPU: {', '.join(others)}. Times and memory of a run beside it are those of both."]


def preflight_headline(run: Recorded) -> str:
    """Return the figures that a preflight's verdict is said with."""
    recorded = [check for checks in run.cases["checks"] for check in checks or ()]
    machine = run.info["environment"].get("gpu") or run.info["environment"].get("cpu")
    return f"{counted(len(recorded), 'check')} made on {machine}, {run.parameter('dtype')}"
