"""The process of one member: its notebook through papermill, with one GPU of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nsa_lib.runs import papermill
from nsa_lib.runs.environment import notebook_path
from nsa_lib.subject.config import ConfigError


@dataclass(frozen=True)
class Task:
    """What every member of a fleet runs; it goes to other machines, and so it is plain data."""

    folder: str
    """Of the fleet; executed notebooks, reports and logs lie in it."""
    notebook: str
    """Its name."""
    parameters: Mapping[str, object]
    """Of the notebook, `fleet` and `out_dir` among them."""
    faults: Mapping[str, str]
    """Seeded fault of some members, by their number."""

    def place(self, rank: int) -> Path:
        """Return the path, without its suffix, of what a member leaves beside its run folder."""
        return Path(self.folder) / "members" / f"{rank:05}"

    def command(self, rank: int) -> list[str]:
        """Return the command of a member, which ends with the process that starts it."""
        fault = {"fault": self.faults[str(rank)]} if str(rank) in self.faults else {}
        options = papermill.parameters({**self.parameters, "member": rank, **fault})
        output = self.place(rank).with_suffix(".ipynb")
        output.parent.mkdir(parents=True, exist_ok=True)
        return papermill.command(notebook_path(self.notebook), output, "--engine", "nsa", "--no-progress-bar", *options)


def own_gpu(visible: list[str], local_rank: int, members: int) -> str:
    """Return the GPU of a member among those that its host shows it.

    Args:
        visible: names, as CUDA_VISIBLE_DEVICES takes them.
        local_rank: its number on its host.
        members: on its host.

    Raises ConfigError if there are fewer GPUs than members; one alone is taken to be bound to it already.
    """
    if len(visible) == 1 and members > 1:
        return visible[0]
    if local_rank >= len(visible):
        raise ConfigError(f"member {local_rank} of this host: it shows {len(visible)} GPUs; each member needs its own")
    return visible[local_rank]
