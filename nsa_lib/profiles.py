"""The profiles: what each decides for each notebook, and the effective value of every parameter under one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nsa_lib.parameters import PARAMETERS, SIZES, Read

CHECKLIST_ALLOC_CONF = "expandable_segments:True,max_split_size_mb:256"

_CHECKLIST = {
    "dim": 768, "layers": 12, "heads": 12, "groups": 12, "d_k": 64, "d_v": 64, "l": 16, "d": 16, "l_sel": 64,
    "n_sel": 16, "w": 512, "phi": "mlp", "vocab": 50257, "seq_len": 2048, "batch": 1, "dtype": "bfloat16",
    "grad_checkpointing": True, "device": "cuda", "alloc_conf": CHECKLIST_ALLOC_CONF,
}  # fmt: skip
_LAPTOP = {
    "dim": 128, "layers": 4, "heads": 4, "groups": 4, "d_k": 32, "d_v": 32, "l": 16, "d": 16, "l_sel": 64,
    "n_sel": 4, "w": 128, "phi": "mlp", "vocab": 512, "seq_len": 512, "batch": 1, "dtype": "float32",
    "grad_checkpointing": True, "device": "cpu", "alloc_conf": CHECKLIST_ALLOC_CONF,
}  # fmt: skip

PROFILES: dict[str, dict[str, dict[str, Read]]] = {
    "preflight": {"checklist": _CHECKLIST, "laptop": _LAPTOP},
    "backward_scaling": {
        "checklist": {**_CHECKLIST, "layers": 5, "grad_checkpointing": False, "seq_lens": (128, 512, 1024, 2048),
                      "steps": 10},
        "laptop": {**_LAPTOP, "layers": 5, "grad_checkpointing": False, "seq_lens": (64, 128, 256, 512), "steps": 5},
    },
    "smoke": {
        "checklist": {**_CHECKLIST, "steps": 100, "reserved_limit_mib": 70000.0},
        "laptop": {**_LAPTOP, "steps": 100},
    },
    "capacity": {
        "checklist": {**_CHECKLIST, "seq_lens": (2048, 4096, 8192, 16384, 32768, 65536), "batches": (1, 4, 16, 64)},
    },
    "backend_contrast": {
        "checklist": {**_CHECKLIST, "seq_lens": (512, 1024, 2048, 4096), "steps": 20, "rounds": 10},
        "laptop": {**_LAPTOP, "seq_lens": (128, 256, 512), "steps": 17, "rounds": 3},
    },
}  # fmt: skip
"""What each profile decides, by notebook. The laptop smoke's memory limit depends on the backend."""

LAPTOP_KNOWN_RESERVED_MIB = {"masked": 52.0, "gather": 50.0, "packed": 50.0}
"""Peak reserved memory of the laptop smoke on a CPU, simulated and so the same on every machine."""

LAPTOP_HEADROOM = 1.25
"""The laptop's limit over its known peak."""


@dataclass(frozen=True)
class Value:
    """An effective parameter: its value, where that came from, and what the checklist says."""

    name: str
    value: Read
    origin: str
    """`given`, `profile`, `default`, or `auto` for a backend that the machine decided."""
    checklist: Read
    """The checklist's value, or None where it says nothing."""

    @property
    def differs(self) -> bool:
        """Whether the checklist says something else."""
        return self.checklist is not None and self.value != self.checklist


def resolve(notebook: str, read: Mapping[str, object], *, profile: str) -> dict[str, Value]:
    """Return the effective value of every parameter under a profile, with its origin and the checklist's value."""
    values = {}
    for name, parameter in PARAMETERS[notebook].items():
        given, decided = read[name], PROFILES[notebook][profile].get(name)
        if given is not None and given != parameter.default:
            value, origin = given, "given"
        elif decided is not None:
            value, origin = decided, "profile"
        else:
            value, origin = given, "default"
        values[name] = Value(name, value, origin, PROFILES[notebook]["checklist"].get(name))
    values["profile"] = Value("profile", profile, "given" if read["profile"] == profile else "default", "checklist")
    return _with_laptop_limit(values) if (notebook, profile) == ("smoke", "laptop") else values


def _with_laptop_limit(values: dict[str, Value]) -> dict[str, Value]:
    """Add the laptop's memory limit where its peak is known: on a CPU, at the profile's own sizes."""
    limit = values["reserved_limit_mib"]
    own = PROFILES["smoke"]["laptop"]
    own_sizes = all(values[name].value == own[name] for name in (*SIZES, "device", "alloc_conf"))
    known = LAPTOP_KNOWN_RESERVED_MIB.get(str(values["backend"].value))
    if limit.value is None and own_sizes and known is not None:
        limit = Value("reserved_limit_mib", known * LAPTOP_HEADROOM, "profile", limit.checklist)
    return {**values, "reserved_limit_mib": limit}


def differences(notebook: str, values: Mapping[str, Value], *, profile: str) -> list[str]:
    """Return how a run differs from its profile: model, shapes, dtype, checkpointing, limit, fewer steps, a fault."""
    decided = PROFILES[notebook][profile]
    changed = [name for name in (*SIZES, "seq_lens") if name in values and values[name].value != decided[name]]
    changed += [name for name in ("steps", "rounds") if name in values and values[name].value < decided[name]]
    said = [f"{name}={values[name].value} ({profile}: {decided[name]})" for name in changed]
    limit = values.get("reserved_limit_mib")
    if limit and limit.origin == "given" and limit.value != decided.get("reserved_limit_mib"):
        said.append(f"reserved_limit_mib={limit.value:g}")
    budget = values.get("device_budget_gib")
    if budget and budget.value is not None:
        said.append(f"device_budget_gib={budget.value:g}: an emulated device")
    if "fault" in values and values["fault"].value != "none":
        said.append(f"fault={values['fault'].value}: a seeded fault")
    return said
