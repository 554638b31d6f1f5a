"""Which runs are of one configuration: the same in every parameter but those on a list, and in facts of the machine."""

from __future__ import annotations

from collections.abc import Mapping

from nsa_lib.runs.found import newest_first
from nsa_lib.runs.recorded import MALFORMED, Recorded
from nsa_lib.runs.request import FREE, SUBJECT

OWN = (
    "steps", "rounds", "seq_len", "seq_lens", "layers", "grad_checkpointing", "anomaly", "profiler",
    "reserved_limit_mib", "fault",
)  # fmt: skip
"""Parameters that a profile decides for each notebook by itself: a run with another value than that is custom."""

MAY_DIFFER = ("runs", *(name for name in FREE if name not in ("profile", *SUBJECT)), *OWN)
"""Parameters that need not be the same in runs of one configuration. Every other one must."""

FACTS = ("torch", "torch_cuda", "triton", "driver", "gpu", "gpu_uuid", "cpu", "host", "source_sha256")
"""What must be the same of machine and code. The evidence of a run says that they are what its workers found."""

ALL_BACKENDS = ("backend", None)

DATA = "data_sha256"
"""A fact that a run has which trains on data of its own."""


def configuration(info: Mapping[str, object]) -> dict[str, object]:
    """Return what must not differ between runs of one configuration, from a run.json.

    A parameter that the run does not have is left out, and so is a `backend` of None: that is a contrast of them all.
    """
    values = {row["name"]: row["value"] for row in info["parameters"]} | {"profile": info["profile"]}
    facts, on_trial = info["environment"], info.get("on_trial") or {}
    return {
        **{name: value for name, value in values.items() if name not in MAY_DIFFER and (name, value) != ALL_BACKENDS},
        "on_trial_sha256": on_trial.get("sha256"),
        "on_trial_version": on_trial.get("version"),
        **{name: facts.get(name) for name in FACTS},
        **{name: facts[name] for name in (DATA,) if name in facts},
    }


def changed_since(found: Mapping[str, object], now: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return the facts of a configuration that are others on this machine now: by name, then and now."""
    return {name: (found.get(name), now.get(name)) for name in FACTS if found.get(name) != now.get(name)}


def disagreements(configurations: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """Return what differs between the configurations of named runs: by its name, the value that each run has."""
    names = dict.fromkeys(name for configuration in configurations.values() for name in configuration)
    found = {}
    for name in names:
        values = {run: configuration[name] for run, configuration in configurations.items() if name in configuration}
        if len({repr(value) for value in values.values()}) > 1:
            found[name] = values
    return found


def counterpart(run: Recorded, notebook: str) -> Recorded | None:
    """Return the newest run of another notebook that is of a run's configuration, or None if there is none.

    Custom runs are passed over, and so are runs that cannot be read.
    """
    for found in newest_first(path.parent for path in run.folder.parent.glob(f"{notebook}-*/run.json")):
        try:
            if not found.problem and not found.custom and _agree(run.info, found.info):
                return Recorded.read(found.folder)
        except MALFORMED:
            continue
    return None


def _agree(info_a: Mapping[str, object], info_b: Mapping[str, object]) -> bool:
    return not disagreements({"A": configuration(info_a), "B": configuration(info_b)})
