"""Made-up fleets: healthy members that differ as GPUs of one kind do, and what can be wrong with one."""

import json
import random
from dataclasses import asdict, replace

from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.workbook.fleet.members import Fleet, Member, write_members
from nsa_lib.workbook.fleet.parameters import REQUEST, Expected
from nsa_lib.workbook.run import Run

KIND = "NVIDIA H200"

TOLD = {
    "sm_clock_mhz": 1980.0, "max_sm_clock_mhz": 1980.0, "power_limit_w": 700.0, "temperature_c": 45.0, "slowdowns": [],
    "slowdown_us": {"hw_therm_slowdown": 0.0}, "ecc_mode": "Enabled", "ecc_uncorrectable": 0.0,
    "retirement_pending": None, "retired_pages": None, "remapped_rows": 0.0, "remap_pending": False,
    "remap_failure": False,
}  # fmt: skip
"""What a driver tells of a healthy GPU."""

GATES = ("steps", "finite", "loss_falls", "attention", "gradients", "peak_reserved", "trend_peak_alloc")


def member(rank=0, **changes):
    """Return a healthy member; its pace is its own."""
    own = {
        "run_id": f"smoke-{rank}", "folder": f"/shared/fleets/x/runs/smoke-{rank}", "host": f"node{rank // 8}",
        "gpu_uuid": f"{rank:08x}-0000", "rank": rank, "kind": KIND, "verdict": "GO", "created": "2025-03-01T10:15:00",
        "gates": dict.fromkeys(GATES, "PASS"), "configuration": {"torch": "2.13.0", "profile": "checklist"},
        "fingerprint": "a" * 64, "step_ms": 100 + random.Random(rank).gauss(0, 1), "step_error_ms": 0.1,
        "peak_alloc_bytes": 1_782_579_200, "health": {"start": TOLD, "end": TOLD},
    }  # fmt: skip
    return Member(**{**own, **changes})


def fleet(count=8, *, expected=None, quorum=None, **of_rank):
    """Return a fleet of healthy members but for those changed, `m3={"verdict": "NO-GO"}`; None leaves one out."""
    changed = {int(name[1:]): change for name, change in of_rank.items()}
    members = [member(rank, **changed.get(rank) or {}) for rank in range(count) if changed.get(rank, {}) is not None]
    return Fleet(members, expected or Expected(count), quorum)


def told(**changes):
    """Return the health of a member whose driver told something else at the end."""
    return {"start": TOLD, "end": {**TOLD, **changes}}


def saved(made, folder, **info):
    """Write the run of a fleet into `folder`/runs and return it, judged."""
    place = folder / "runs" / "fleet-1"
    place.mkdir(parents=True)
    rows = [
        {"name": name, "value": made.quorum if name == "quorum" else parameter.default, "origin": "default",
         "checklist": None, "differs": False}
        for name, parameter in REQUEST.parameters.items()
    ]  # fmt: skip
    described = {
        "schema": SCHEMA, "run_id": "fleet-1", "notebook": "fleet", "profile": "checklist", "custom": [],
        "created": "2025-03-01T10:15:00+00:00", "parameters": rows, "environment": {"host": "head"}, "case_ids": [],
        "reproduce": "papermill", "report": None, "fleet": "x", "expected": asdict(made.expected), "backends": [],
    }  # fmt: skip
    (place / "run.json").write_text(json.dumps({**described, **info}))
    write_members(place, made.members)
    return Run.read(place)


def without(made, rank):
    """Return a fleet without a member, whom it still expects."""
    return replace(made, members=[one for one in made.members if one.rank != rank])
