"""Start the members of a fleet, or find those that were started: `local`, `slurm`, or nobody at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from nsa_lib.contract.lines import folded
from nsa_lib.runs import environment
from nsa_lib.runs.earlier import forget_earlier
from nsa_lib.runs.folder import stamp
from nsa_lib.runs.launchers import local, slurm
from nsa_lib.runs.launchers.member import Task
from nsa_lib.runs.launchers.start import all_runs, note_start
from nsa_lib.runs.launchers.state import FleetState
from nsa_lib.runs.member import fleet_folder
from nsa_lib.runs.parameters import Read, read_value, refuse_unknown
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.fleet.parameters import (
    LAPTOP_GPUS,
    LOCAL,
    MEMBERS_RUN,
    NOBODY,
    REQUEST,
    SLURM,
    Expected,
    expected_members,
)
from nsa_lib.workbook.questions import QUESTIONS, plan

OURS = ("fleet", "member", "out_dir", "profile", "fault", "accept_review")
"""Parameters of a member that the fleet decides."""


@dataclass(frozen=True)
class Launched:
    """A fleet whose members have run, or are said to have."""

    read: Mapping[str, Read]
    """Parameters of fleet.ipynb."""
    fleet: str
    out_dir: Path
    expected: Expected

    @property
    def parameter_rows(self) -> list[dict[str, object]]:
        """The effective parameters as rows, as every run keeps them."""
        return [
            {
                "name": name,
                "value": self.fleet if name == "fleet" else value,
                "origin": "default" if value == REQUEST.parameters[name].default else "given",
                "checklist": None,
                "differs": False,
            }
            for name, value in self.read.items()
        ]

    @property
    def again(self) -> dict[str, object]:
        """The parameters that judge the same members again."""
        given = {row["name"]: row["value"] for row in self.parameter_rows if row["origin"] == "given"}
        total = {"expected": str(self.expected.total)} if self.expected.count else {}
        return {**total, **given, "fleet": self.fleet, "launcher": NOBODY, "out_dir": str(self.out_dir)}


def launch(namespace: MutableMapping[str, object]) -> Launched:
    """Start the members, wait for their end, and show meanwhile what they have come to.

    A fleet that Slurm was asked for before, by another kernel too, is found again by its name and not submitted twice.
    Members of `local` end with this process, however it ends: asked for again, they are started anew, and what an
    earlier start left under the name does not count.

    Args:
        namespace: the notebook's globals, parameters and IPython's `In` among them. They forget their earlier run.

    Raises:
        ConfigError: in one line, before any work, for a parameter that is not accepted.
    """
    forget_earlier(namespace)
    read = REQUEST.read(namespace)
    task = _task(read)
    folder = Path(task.folder)
    found = {LOCAL: _local, SLURM: _slurm, NOBODY: lambda *_: None}[str(read["launcher"])](read, task)
    return Launched(read, folder.name, folder.parent.parent, expected_members(read["expected"], found))


def foretell_fleet(given: Mapping[str, object]) -> Iterator[str]:
    """Yield what a fleet would run, a line each; nothing is started. Raises ConfigError as `launch` does."""
    read = REQUEST.read(given)
    task = _task(read)
    yield f"launcher: {read['launcher']}"
    yield f"folder: {task.folder}"
    yield f"expected: {expected_members(read['expected'], None).total or 'as many as are started'}"


def _task(read: Mapping[str, Read]) -> Task:
    """Return what every member runs. Raises ConfigError for a parameter that its notebook does not accept."""
    declared, given = QUESTIONS[MEMBERS_RUN].request.parameters, dict(read["parameters"] or {})
    refuse_unknown(MEMBERS_RUN, declared, given)
    if taken := [name for name in given if name in OURS]:
        raise ConfigError(f"parameters: {taken[0]} is the fleet's own parameter")
    for name, value in given.items():
        read_value(declared, name, value)
    faults = {str(rank): str(fault) for rank, fault in (read["faults"] or {}).items()}
    for fault in faults.values():
        read_value(declared, "fault", fault)
    expected, quorum = expected_members(read["expected"], None).total, read["quorum"]
    if quorum and expected is not None and quorum > expected:
        raise ConfigError(f"quorum={quorum}: expected={read['expected']} are {expected} members; accepts no more")
    name = str(read["fleet"]) or _new_name(str(read["launcher"]))
    out_dir = environment.out_dir_of(read["out_dir"])
    environment.require_room(out_dir)
    parameters = {**given, "profile": read["profile"], "fleet": name, "out_dir": str(out_dir)}
    return Task(str(fleet_folder(out_dir, name)), MEMBERS_RUN, parameters, faults)


def _new_name(launcher: str) -> str:
    if launcher != LOCAL:
        raise ConfigError(f"fleet: launcher={launcher} needs a name, by which its members are found")
    return f"local-{stamp(datetime.now(timezone.utc))}"


def _local(read: Mapping[str, Read], task: Task) -> int:
    facts = plan(MEMBERS_RUN, {**task.parameters, "In": []}).environment  # refuses what no member could run
    on_gpu = facts["cuda_usable"] and read["profile"] != "laptop"
    visible = environment.visible_gpus(int(facts["gpu_count"])) if on_gpu else []
    members = int(read["gpus"] or (len(visible) if on_gpu else LAPTOP_GPUS))
    if on_gpu and members > len(visible):
        raise ConfigError(f"gpus={members}: this machine shows {len(visible)}; accepts no more")
    folder = Path(task.folder)
    note_start(folder, all_runs(folder))
    state = FleetState(folder, members)
    with StopButton() as stop:
        local.run_members(task, members, visible=visible, stop=stop, tell=state.show)
    state.show(at_once=True)
    return members


def _slurm(read: Mapping[str, Read], task: Task) -> int:
    folder = Path(task.folder)
    job = slurm.submitted(folder)
    if job is None:
        earlier = all_runs(folder)
        asked = {name: read[name] for name in ("nodes", "gpus_per_node", "partition", "time_min")}
        job = slurm.submit(task, **asked, ask_for_gpus=read["profile"] != "laptop")
        note_start(folder, earlier)
        print(folded(f"submitted job {job['job_id']} of {job['members']} members"), flush=True)
    else:
        said = f"job {job['job_id']} of this fleet was found; a new name starts a new one"
        print(folded(said), flush=True)
    state = FleetState(folder, int(job["members"]))
    with StopButton() as stop:
        slurm.wait(job, stop=stop, tell=state.show)
    state.show("ended", at_once=True)
    return int(job["members"])
