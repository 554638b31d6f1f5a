"""What is asked of several GPUs: parameters, profiles and cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.contract.case import DDP, FSDP2, JUDGED_STEPS, CaseConfig
from nsa_lib.contract.collectives import transfers
from nsa_lib.contract.faults import FAULTS, FAULTS_AT, RANK_FAULTS, RANK_FAULTS_AT
from nsa_lib.runs.own import PARAMETERS as OWN_PARAMETERS
from nsa_lib.runs.parameters import SIZES, Parameter, Value
from nsa_lib.runs.request import Request
from nsa_lib.runs.training_case import training_case
from nsa_lib.workbook.profiles import BACKEND, FAULT, MACHINE, PROFILE, RUN, profiles

ONE, IN_TURN, COLLECTIVES = "one", "one_in_turn", "collectives"
"""One GPU with the whole batch; with the ranks' shares of it one after another, which shows what the order of sums does
to a training; what ranks send each other."""

OTHER_STEPS = 5
"""Steps of a case that only shows its memory: from the second on each repeats it."""

UNRECORDED = {"digest_parts": 0, "fingerprint": False}
"""Of cases whose results are compared with no other's."""

PROFILER_STEPS = 53
"""Long enough for a step right after warm-up and one that is forty steps later."""

GPUS = {
    "gpus": Parameter(int, "ranks that share the training, on all nodes together; all visible GPUs", above=0),
    "strategies": Parameter(list, "how they share it, ddp, fsdp2 or both", choices=(DDP, FSDP2)),
}

NODES = {
    "nodes": Parameter(int, "machines that the ranks are spread over; run the notebook on each", 1, above=0),
    "rendezvous": Parameter(str, "where they meet: HOST:PORT of node 0; the ports after it are taken too", ""),
    "node_rank": Parameter(int, "number of this machine, from 0; as Slurm or Kubernetes say", above=-1),
}


def several_cases(values: Mapping[str, Value], backends: tuple[str, ...]) -> tuple[CaseConfig, ...]:
    """Return one GPU with the whole batch, then with the ranks' shares of it in turn, each strategy with its ranks, all
    but the second with the other checkpointing, and the link.

    A seeded fault is planted in the cases of several ranks: the one GPU is what they are compared with.
    """
    gpus, strategies = int(values["gpus"].value), values["strategies"].value
    spread = {"ranks": gpus, "nodes": values["nodes"].value}
    fault = str(values["fault"].value)
    training = training_case({**values, "fault": replace(values["fault"], value="none")})
    training = replace(training, digest_parts=gpus, fingerprint=True)
    on_gpu = training.device == "cuda"
    one = replace(training, case_id=ONE)
    shared = [replace(training, case_id=name, strategy=name, **spread) for name in strategies]
    in_turn = replace(one, case_id=IN_TURN, micro_batches=gpus, fingerprint=False)
    cases = [
        one,
        *([in_turn] if gpus > 1 else []),
        *(replace(case, fault=fault, profile_operators=not on_gpu) for case in shared),
    ]
    for case in shared if on_gpu else ():
        cases.append(
            replace(case, case_id=profiled(case.case_id), steps=PROFILER_STEPS, profile_operators=True, **UNRECORDED)
        )
    other = {"grad_checkpointing": not training.grad_checkpointing, "steps": OTHER_STEPS, **UNRECORDED}
    for case in (one, *shared):
        cases.append(replace(case, case_id=other_checkpointing(case.case_id), **other))
    link = {"work": "collectives", **spread, "steps": len(transfers(training.device)), **UNRECORDED}
    cases.append(replace(training, case_id=COLLECTIVES, **link))
    return tuple(cases)


def profiled(case_id: str) -> str:
    """Return the name of the case that counts the operators of another, on a GPU."""
    return f"{case_id}_profiler"


def other_checkpointing(case_id: str) -> str:
    """Return the name of the case that shows the memory of another with the other checkpointing."""
    return f"{case_id}_other"


def several_notices(values: Mapping[str, Value]) -> list[str]:
    """Say before the run that it is too short to be judged, or that one GPU shares nothing."""
    said = []
    if values["steps"].value < JUDGED_STEPS:
        said.append(f"steps={values['steps'].value}: the memory of fewer than {JUDGED_STEPS} steps is not judged.")
    if values["gpus"].value == 1:
        said.append("gpus=1: one rank has nobody to wait for; what several would do is not seen.")
    return said


OWN_ATTENTION = {name: OWN_PARAMETERS[name] for name in ("attention", "attention_args")}
"""No model of a user's: FSDP2 shards TinyLM's blocks, and which parts of hers are blocks nobody tells."""

REQUEST = Request(
    notebook="several_gpus",
    parameters={
        **PROFILE,
        **GPUS,
        "steps": Parameter(int, f"training steps; fewer than {JUDGED_STEPS} cannot be judged", above=0),
        **SIZES,
        **BACKEND,
        **OWN_ATTENTION,
        **MACHINE,
        "reserved_limit_mib": Parameter(float, "limit of the peak reserved memory of each rank", above=0),
        **NODES,
        **RUN,
        "fault": replace(FAULT["fault"], choices=(*FAULTS, *FAULTS_AT, *RANK_FAULTS, *RANK_FAULTS_AT)),
    },
    profiles=profiles(
        checklist={"steps": 100, "batch": 8, "strategies": (DDP, FSDP2), "reserved_limit_mib": 70000.0},
        laptop={
            "steps": 60, "batch": 2, "layers": 2, "dim": 64, "heads": 2, "groups": 2, "seq_len": 128, "vocab": 128,
            "gpus": 2, "strategies": (DDP, FSDP2),
        },
    ),
    cases=several_cases,
    notices=several_notices,
    predicted=True,
)  # fmt: skip
