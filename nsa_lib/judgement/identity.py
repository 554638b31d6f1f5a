"""Which runs are of one configuration: the parameters and facts that must not differ between them."""

from __future__ import annotations

from collections.abc import Mapping

from nsa_lib.runs.recorded import MALFORMED, Recorded, read_info

PARAMETERS = (
    "profile", "dim", "heads", "groups", "d_k", "d_v", "l", "d", "l_sel", "n_sel", "w", "phi", "vocab", "batch",
    "dtype", "device", "backend",
)  # fmt: skip
"""Layers, length, steps and checkpointing are a notebook's own."""

FACTS = ("torch", "gpu", "source_sha256")


def configuration(info: Mapping[str, object]) -> dict[str, object]:
    """Return what must not differ between runs of one configuration, from a run.json; what it does not say is left out.

    A contrast, say, goes through all backends and has no parameter `backend`.
    """
    values = {row["name"]: row["value"] for row in info["parameters"]} | {"profile": info["profile"]}
    facts = info["environment"]
    return {
        **{name: values[name] for name in PARAMETERS if name in values},
        **{name: facts.get(name) for name in FACTS},
    }


def disagreements(configurations: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """Return what differs between named configurations: by its name, the value that each of them has."""
    names = dict.fromkeys(name for configuration in configurations.values() for name in configuration)
    found = {}
    for name in names:
        values = {who: configuration[name] for who, configuration in configurations.items() if name in configuration}
        if len({repr(value) for value in values.values()}) > 1:
            found[name] = values
    return found


def counterpart(run: Recorded, notebook: str) -> Recorded | None:
    """Return the newest run of another notebook that is of a run's configuration, or None if there is none.

    A custom run is nobody's counterpart, and a run that cannot be read is in nobody's way.
    """
    found = []
    for path in run.folder.parent.glob(f"{notebook}-*/run.json"):
        try:
            info = read_info(path.parent)
            if not info["custom"] and not disagreements({"run": configuration(run.info), "other": configuration(info)}):
                found.append(Recorded.read(path.parent))
        except MALFORMED:
            continue
    return max(found, key=lambda other: other.info["created"], default=None)
