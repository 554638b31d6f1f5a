"""What the profiles decide for every notebook, and the parameters that several notebooks share."""

from __future__ import annotations

from dataclasses import replace

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.contract.case import DEVICES, GRAPH
from nsa_lib.contract.faults import FAULTS, FAULTS_AT, MEMBER_FAULTS
from nsa_lib.runs.parameters import Parameter, Read

PROFILE = {
    "profile": Parameter(str, "checklist (needs CUDA), laptop, or auto", "auto", ("auto", "checklist", "laptop")),
}

PROLOG = "prolog"
"""The profile of a smoke that a scheduler runs before each job: short, of the checklist's sizes but for its depth."""

PROFILE_OR_PROLOG = {
    "profile": Parameter(
        str, "checklist (needs CUDA), laptop, prolog, or auto", "auto", ("auto", "checklist", "laptop", PROLOG)
    ),
}

MACHINE = {
    "lr": Parameter(float, "learning rate", 3e-4, above=0),
    "seed": Parameter(int, "of weights and data", 0, above=-1),
    "device": Parameter(str, "cuda or cpu; the profile decides", choices=DEVICES),
    "alloc_conf": Parameter(str, "PyTorch allocator setting of the cases"),
    "device_budget_gib": Parameter(float, "emulate a device with this much memory on a larger one", above=0),
}

BACKEND = {
    "backend": Parameter(str, "masked, gather, packed, fused (needs CUDA), auto, or yours, as in attention", "masked")
}

COMPILE = {
    "compile": Parameter(
        bool, "layers under torch.compile; graph: and the step one CUDA graph; needs cuda", False, also=(GRAPH,)
    )
}

RUN = {
    "stall_timeout_s": Parameter(float, "silence that counts as a hang; derived from measured steps", above=0),
    "total_timeout_s": Parameter(float, "time for all cases together; what runs then is ended", above=0),
    "out_dir": Parameter(str, "where runs/ is kept; the reports folder of the project"),
    "tag": Parameter(str, "label in the name of the run", ""),
    "accept_review": Parameter(bool, "a REVIEW verdict does not fail the notebook", False),
}

MEMBER = {
    "fleet": Parameter(str, "name of the fleet that this run is a member of, for fleet.ipynb", ""),
    "member": Parameter(int, "its number in the fleet, from 0; as Slurm or Kubernetes say", above=-1),
}

FAULT = {"fault": Parameter(str, "seeded fault, to test the workbook itself", "none", tuple(FAULTS))}

FAULT_AT = {"fault": replace(FAULT["fault"], choices=(*FAULTS, *FAULTS_AT, *MEMBER_FAULTS))}
"""Of a notebook whose cases train: there the first and the last step are moments of their own."""

CHECKLIST_ALLOC_CONF = ALLOCATOR_SETTINGS["both"]

SIZES_OF: dict[str, dict[str, Read]] = {
    "checklist": {
        "dim": 768, "layers": 12, "heads": 12, "groups": 12, "d_k": 64, "d_v": 64, "l": 16, "d": 16, "l_sel": 64,
        "n_sel": 16, "w": 512, "phi": "mlp", "vocab": 50257, "seq_len": 2048, "batch": 1, "dtype": "bfloat16",
        "grad_checkpointing": True, "device": "cuda", "alloc_conf": CHECKLIST_ALLOC_CONF,
    },
    "laptop": {
        "dim": 128, "layers": 4, "heads": 4, "groups": 4, "d_k": 32, "d_v": 32, "l": 16, "d": 16, "l_sel": 64,
        "n_sel": 4, "w": 128, "phi": "mlp", "vocab": 512, "seq_len": 512, "batch": 1, "dtype": "float32",
        "grad_checkpointing": True, "device": "cpu", "alloc_conf": CHECKLIST_ALLOC_CONF,
    },
}  # fmt: skip
"""The model that each profile trains, and where. A notebook may decide otherwise, and adds what is its own."""


def profiles(checklist: dict[str, Read], laptop: dict[str, Read]) -> dict[str, dict[str, Read]]:
    """Return the two profiles of a notebook: the sizes of each, and what the notebook decides besides."""
    return {"checklist": {**SIZES_OF["checklist"], **checklist}, "laptop": {**SIZES_OF["laptop"], **laptop}}
