"""From a notebook's parameters to the cases of a run; every refusal happens here, before any work."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nsa_lib.contract.allocator import AllocatorSettings
from nsa_lib.contract.backends import OLDEST_CAPABILITY, runnable_backends, why_not_fused
from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs import environment, papermill
from nsa_lib.runs.fingerprints import kept_for_run
from nsa_lib.runs.member import fleet_folder
from nsa_lib.runs.node_rank import decided_node
from nsa_lib.runs.own import brought, try_own, with_own
from nsa_lib.runs.parameters import Value
from nsa_lib.runs.provenance import provenance
from nsa_lib.runs.request import Request
from nsa_lib.subject.config import AUTO, FUSED, OWN, ConfigError

IMAGINED = {"triton": "any", "compute_capability": OLDEST_CAPABILITY}
"""Facts of a device that is only imagined: every backend can run there."""


@dataclass(frozen=True)
class Plan:
    """What a run will do, decided before it starts."""

    request: Request
    profile: str
    values: Mapping[str, Value]
    """Every parameter with its effective value and origin."""
    custom: tuple[str, ...]
    """How the run differs from its profile; none for a run that readiness counts."""
    backends: tuple[str, ...]
    """Those that the machine can run with these parameters."""
    cases: tuple[CaseConfig, ...]
    environment: Mapping[str, object]
    out_dir: Path
    overwritten: tuple[str, ...] = ()
    """Parameters whose names hold something else in the notebook than its cells of parameters say."""
    mistyped: Mapping[str, str] = field(default_factory=dict)
    """Names in the notebook's cells that are nearly a parameter's, and which."""
    on_trial: Mapping[str, object] | None = None
    """What is known of what a user brings, if she brings something."""
    kept: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Kept fingerprints that the run is compared with, by their names."""

    def __getitem__(self, name: str) -> object:
        """Return a parameter's effective value."""
        return self.values[name].value

    @property
    def notebook(self) -> str:
        """The name of the notebook."""
        return self.request.notebook

    @property
    def parameter_rows(self) -> list[dict[str, object]]:
        """The effective parameters as rows: name, value, origin, the checklist's value, whether they differ."""
        return [{**vars(value), "differs": value.differs} for value in self.values.values()]

    @property
    def reproduce(self) -> str:
        """The command that repeats this run."""
        decided = {"profile": self.profile, **self.request.profiles[self.profile]}
        chosen = [v for v in self.values.values() if v.origin in ("given", AUTO)]
        given = {v.name: v.value for v in chosen if v.value != decided.get(v.name)}
        return reproduce(self.notebook, {"profile": self.profile, **given})

    @property
    def notices(self) -> list[str]:
        """What a user should know before the run starts, a sentence each."""
        said = self.request.notices(self.values)
        said += [
            f"{name}: assigned again outside of the parameters cell; this run takes {self[name]} from there."
            for name in self.overwritten
        ]
        said += [
            f"{name}: a name in your cells, no parameter; did you mean {meant}? This run takes {meant}={self[meant]}."
            for name, meant in self.mistyped.items()
        ]
        if self.on_trial and not self.request.imagined:
            said.append(f"on trial: {self.on_trial['label']}, {self.on_trial['judged']}.")
        if "device_budget_gib" in self.values and self["device_budget_gib"] is not None:
            capped = f"emulated: the allocator is capped at {self['device_budget_gib']:g} GiB; "
            said.append(capped + "speed, and memory outside the allocator, are this device's.")
        if "backend" in self.values and self.values["backend"].origin == AUTO:
            machine = IMAGINED if self.request.imagined else self.environment
            why = why_not_fused(self.__getitem__, machine) or f"{FUSED} can run here"
            said.append(f"backend={AUTO}: this run takes {self['backend']} ({why}).")
        if self.custom and not self.request.imagined:
            said.append(f"custom: {'; '.join(self.custom)}. The gates are judged, readiness will not count the run.")
        if self.profile == "laptop":
            said.append("profile laptop: this run checks the code and the workbook, it clears no GPU.")
        return said


def plan(request: Request, namespace: Mapping[str, object], *, notebooks: Iterable[str]) -> Plan:
    """Return the plan of a run.

    Args:
        request: what its notebook asks.
        namespace: the notebook's globals, parameters and IPython's `In` among them.
        notebooks: names of all notebooks, whose cells belong to the source.

    Raises:
        ConfigError: in one line, for anything that cannot be carried out as asked.
    """
    environment.refuse_outdated()
    environment.refuse_many_processes()
    read = request.read(namespace)
    facts = environment.torch_facts()
    profile = _choose_profile(str(read["profile"]), facts)
    values = with_own(request.resolve(read, profile=profile))
    _require_machine(request, values, profile, facts)
    values = request.derive(_decided_by_machine(values, facts, IMAGINED if request.imagined else facts))
    backends = runnable_backends(_parameters(values), facts) + ((OWN,) if brought(values) else ())
    out_dir = _require_out_dir(values)
    cases = request.cases(values, backends)
    require_judgeable(cases)
    room = environment.room(out_dir, facts) if request.records_room else {}
    found = {**facts, **environment.machine_facts(), **provenance(notebooks), **room}
    on_trial = tried(cases, imagined=request.imagined)
    return Plan(
        request=request,
        profile=profile,
        values=values,
        custom=tuple(request.differences(values, profile=profile)),
        backends=backends,
        cases=cases,
        environment=found,
        out_dir=out_dir,
        overwritten=tuple(request.overwritten(namespace)),
        mistyped=request.mistyped(namespace),
        on_trial=on_trial,
        kept=_kept(values, cases[0], found, on_trial),
    )


def _require_machine(request: Request, values: Mapping[str, Value], profile: str, facts: Mapping[str, object]) -> None:
    if not request.imagined:
        _require_device(str(values["device"].value), profile, facts)
        _require_budget(values["device_budget_gib"].value, values["device"].value, facts)
    if request.imagined or values["device"].value == "cpu":
        AllocatorSettings.parse(str(values["alloc_conf"].value))  # it is simulated, so it must be known


def tried(cases: Sequence[CaseConfig], *, imagined: bool = False) -> dict[str, object] | None:
    """Return what is known of what the user brings, on a device that is here; None if she brings nothing.

    Raises UsersError if it cannot be used.
    """
    case = next((case for case in cases if case.model.own is not None), None)
    if case is None:
        return None
    return try_own(replace(case, device="cpu") if imagined else case)


def _kept(
    values: Mapping[str, Value], case: CaseConfig, facts: Mapping[str, object], on_trial: Mapping[str, object] | None
) -> dict[str, dict[str, object]]:
    """Return the kept fingerprints that a run is compared with, by their names; none if it was given no place."""
    place = values["fingerprint"].value if "fingerprint" in values else None
    return kept_for_run(str(place), case, facts, on_trial) if place else {}


def reproduce(notebook: str, given: Mapping[str, object]) -> str:
    """Return the command that runs a notebook with given parameters; an installed library has no checkout."""
    if environment.is_installed():
        options = (word for name, value in given.items() for word in ("-p", name, str(value)))
        return shlex.join(["python", "-m", "nsa_lib", "run", notebook, *options])
    options = ("--engine", "nsa", *papermill.parameters(given))
    return shlex.join(["papermill", f"notebooks/{notebook}.ipynb", "out.ipynb", *options])


def _choose_profile(asked: str, facts: Mapping[str, object]) -> str:
    if asked != "auto":
        return asked
    if facts["cuda_usable"]:
        return "checklist"
    if environment.has_nvidia_device():
        raise ConfigError(
            f"profile=auto: this machine has an NVIDIA device that torch cannot use ({facts['cuda_problem']}); "
            "mend that, or ask for profile=laptop"
        )
    return "laptop"


def _require_device(device: str, profile: str, facts: Mapping[str, object]) -> None:
    if device == "cuda" and not facts["cuda_usable"]:
        asked = "profile=checklist" if profile == "checklist" else "device=cuda"
        raise ConfigError(f"{asked}: needs a CUDA device ({facts['cuda_problem']}); without one: profile=laptop")
    if device == "cpu" and profile == "checklist":
        raise ConfigError("device=cpu: the checklist is judged on a GPU; accepts cuda, or profile=laptop")


def _require_budget(budget_gib: object, device: object, facts: Mapping[str, object]) -> None:
    if budget_gib is not None and device == "cuda" and budget_gib * 1024 > facts["gpu_memory_mib"]:
        has = facts["gpu_memory_mib"] / 1024
        raise ConfigError(f"device_budget_gib={budget_gib:g}: the device has {has:.1f} GiB; accepts no more")


def _require_out_dir(values: Mapping[str, Value]) -> Path:
    """Return the folder of the runs, made. Raises ConfigError if it cannot be written."""
    out_dir = environment.out_dir_of(values["out_dir"].value)
    if "fleet" in values and values["fleet"].value:
        out_dir = fleet_folder(out_dir, str(values["fleet"].value))
    environment.require_room(out_dir)
    return out_dir


def _decided_by_machine(
    values: Mapping[str, Value], facts: Mapping[str, object], kernels_on: Mapping[str, object]
) -> dict[str, Value]:
    """Return the values with those decided that depend on the machine: backend, and how many GPUs."""
    decided = dict(values)
    if "backend" in values:
        decided["backend"] = _decided_backend(values, kernels_on)
    if "gpus" in values:
        decided["gpus"] = _decided_gpus(values, facts)
        decided["node_rank"] = decided_node(values)
    return decided


def _decided_backend(values: Mapping[str, Value], facts: Mapping[str, object]) -> Value:
    """Return the backend, decided where `auto` was asked. Raises ConfigError if the one asked for cannot run."""
    backend, problem = values["backend"], why_not_fused(_parameters(values), facts)
    if backend.value == FUSED and problem:
        raise ConfigError(problem)
    if backend.value != AUTO:
        return backend
    return replace(backend, value="masked" if problem else FUSED, origin=AUTO, checklist=None)


def _decided_gpus(values: Mapping[str, Value], facts: Mapping[str, object]) -> Value:
    """Return how many GPUs a run takes: all, if the user does not say. Raises ConfigError for more than there are."""
    gpus, nodes, on_gpu = values["gpus"], values["nodes"].value, values["device"].value == "cuda"
    if gpus.value is None:
        return replace(gpus, value=nodes * facts["gpu_count"] if on_gpu else nodes, origin=AUTO)
    if on_gpu and gpus.value > nodes * facts["gpu_count"]:
        here = f"this machine shows {facts['gpu_count']}" + (
            f", {nodes} of them {nodes * facts['gpu_count']}" * (nodes > 1)
        )
        raise ConfigError(f"gpus={gpus.value}: {here}; accepts no more")
    return gpus


def _parameters(values: Mapping[str, Value]) -> Callable[[str], object]:
    return lambda name: values[name].value


def require_judgeable(cases: Sequence[CaseConfig]) -> None:
    """Raise ConfigError if cases of one model could not be run on their data, or not be judged."""
    _require_data(cases[0])
    for case in cases:
        _require_choices(case)


def _require_data(case: CaseConfig) -> None:
    """Raise ConfigError if the text file that a case reads is not there, too short, or tells nothing."""
    if case.data == "synthetic":
        return
    path = Path(case.data)
    if not path.is_file():
        raise ConfigError(f"data={case.data}: no such file; accepts synthetic or the path of a text file")
    if path.stat().st_size <= case.seq_len:
        raise ConfigError(f"data={case.data}: {path.stat().st_size} bytes, a sequence needs {case.seq_len + 1}")
    if _is_one_byte(path):
        raise ConfigError(
            f"data={case.data}: the same byte throughout; whatever attention reads is the same, so that its keys would "
            "have no gradient; accepts a text of two different bytes or more"
        )


def _is_one_byte(path: Path) -> bool:
    """Return whether a file, not empty, holds the same byte throughout. It is read up to the first other one."""
    with path.open("rb") as text:
        first = text.read(1)
        return not any(part.strip(first) for part in iter(lambda: text.read(2**20), b""))


def _require_choices(case: CaseConfig) -> None:
    """Raise ConfigError if every query of a branch sees one key at most, or none.

    A softmax over one is 1 whatever the key is: the branch's keys have no gradient but what rounding leaves, and
    nothing of their training could be judged.
    """
    c = case.model.nsa
    if case.model.attention == "dense":
        return
    if "cmp" in c.branches and case.seq_len < c.l + c.d:
        raise ConfigError(
            f"seq_len={case.seq_len}, l={c.l}, d={c.d}: fewer than two compressed blocks, whose keys would have no "
            f"gradient; accepts a seq_len of {c.l + c.d} or more"
        )
    if "win" in c.branches and c.w < 2:
        raise ConfigError(f"w={c.w}: a window of one token, whose keys would have no gradient; accepts 2 or more")
