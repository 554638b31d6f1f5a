"""Which runs are of one configuration: the parameters and facts that must not differ between them."""

from __future__ import annotations

from collections.abc import Mapping

from nsa_lib.runs.found import newest_first
from nsa_lib.runs.recorded import MALFORMED, Recorded

PARAMETERS = (
    "profile", "dim", "heads", "groups", "d_k", "d_v", "l", "d", "l_sel", "n_sel", "w", "phi", "vocab", "batch",
    "dtype", "device", "backend",
)  # fmt: skip
"""Layers, length, steps and checkpointing are a notebook's own."""

FACTS = ("torch", "gpu", "source_sha256")


def configuration(info: Mapping[str, object]) -> dict[str, object]:
    """Return what must not differ between runs of one configuration, from a run.json.

    A parameter that the run does not have is left out: a contrast goes through all backends and has no `backend`.
    """
    values = {row["name"]: row["value"] for row in info["parameters"]} | {"profile": info["profile"]}
    facts = info["environment"]
    return {
        **{name: values[name] for name in PARAMETERS if name in values},
        **{name: facts.get(name) for name in FACTS},
    }


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
