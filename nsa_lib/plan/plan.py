"""From a notebook's parameters to the cases of a run; every refusal happens here, before any work."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nsa_lib import environment
from nsa_lib.allocator import AllocatorSettings
from nsa_lib.config import AUTO, FUSED, JUDGED_STEPS, CaseConfig, ConfigError
from nsa_lib.parameters import PARAMETERS, read_parameters
from nsa_lib.plan.capacity import capacity_cases
from nsa_lib.plan.contrast import contrast_cases
from nsa_lib.plan.preflight import preflight_cases
from nsa_lib.plan.scaling import scaling_cases
from nsa_lib.plan.smoke import smoke_cases
from nsa_lib.profiles import PROFILES, Value, differences, resolve
from nsa_lib.runnable import OLDEST_CAPABILITY, runnable_backends, why_not_fused

CAPACITY = "capacity"
"""The notebook whose cases are predicted and never run: it needs no device."""

IMAGINED = {"triton": "any", "compute_capability": OLDEST_CAPABILITY}
"""What a capacity takes for granted of its device: that every backend can run there."""

CASES: Mapping[str, Callable[[Mapping[str, Value], tuple[str, ...]], tuple[CaseConfig, ...]]] = {
    "preflight": preflight_cases,
    "backward_scaling": lambda values, backends: scaling_cases(values),
    "smoke": lambda values, backends: smoke_cases(values),
    "backend_contrast": contrast_cases,
    CAPACITY: lambda values, backends: capacity_cases(values),
}
"""How each notebook's parameters, and the backends that the machine can run, become cases."""


@dataclass(frozen=True)
class Plan:
    """What a run will do, decided before it starts."""

    notebook: str
    profile: str
    values: Mapping[str, Value]
    """Every parameter with its effective value and origin."""
    custom: tuple[str, ...]
    """How the run differs from its profile; none for a run that readiness counts."""
    cases: tuple[CaseConfig, ...]
    environment: Mapping[str, object]
    out_dir: Path

    def __getitem__(self, name: str) -> object:
        """Return a parameter's effective value."""
        return self.values[name].value

    @property
    def parameter_rows(self) -> list[dict[str, object]]:
        """The effective parameters as rows: name, value, origin, the checklist's value, whether they differ."""
        return [{**vars(value), "differs": value.differs} for value in self.values.values()]

    @property
    def reproduce(self) -> str:
        """The command that repeats this run."""
        decided = {"profile": self.profile, **PROFILES[self.notebook][self.profile]}
        chosen = [v for v in self.values.values() if v.origin in ("given", AUTO)]
        given = [v for v in chosen if v.value != decided.get(v.name)]
        words = ["papermill", f"notebooks/{self.notebook}.ipynb", "out.ipynb", "--engine", "nsa"]
        words += ["-p", "profile", self.profile]
        for value in given:
            # -r keeps text as it is: -p would read a tag such as 007 as a number.
            kind = PARAMETERS[self.notebook][value.name].kind
            text = str(list(value.value)) if kind is list else str(value.value)
            words += ["-r" if kind in (str, list) else "-p", value.name, text]
        return shlex.join(words)

    @property
    def notices(self) -> list[str]:
        """What a user should know before the run starts, a sentence each."""
        said = []
        if self.notebook == "smoke" and self["steps"] < JUDGED_STEPS:
            said.append(
                f"steps={self['steps']}: a smoke needs at least {JUDGED_STEPS} steps to be judged "
                "(10 of warm-up and the checklist's 50); this run will end INCOMPLETE."
            )
        if "device_budget_gib" in self.values and self["device_budget_gib"] is not None:
            capped = f"emulated: the allocator is capped at {self['device_budget_gib']:g} GiB; "
            said.append(capped + "speed, and memory outside the allocator, are this device's.")
        if "backend" in self.values and self.values["backend"].origin == AUTO:
            machine = IMAGINED if self.notebook == CAPACITY else self.environment
            why = why_not_fused(self.__getitem__, machine) or f"{FUSED} can run here"
            said.append(f"backend={AUTO}: this run takes {self['backend']} ({why}).")
        if self.custom:
            said.append(f"custom: {'; '.join(self.custom)}. The gates are judged, readiness will not count the run.")
        if self.profile == "laptop":
            said.append("profile laptop: this run checks the code and the workbook, it clears no GPU.")
        return said


def plan(notebook: str, namespace: Mapping[str, object]) -> Plan:
    """Return the plan of a run.

    Args:
        notebook: its name, without suffix.
        namespace: its globals, parameters and IPython's `In` among them.

    Raises:
        ConfigError: in one line, for anything that cannot be carried out as asked.
    """
    environment.refuse_many_processes()
    read = read_parameters(notebook, namespace, namespace.get("In", ()))
    facts = environment.torch_facts()
    profile = _choose_profile(str(read["profile"]), facts)
    values = resolve(notebook, read, profile=profile)
    if notebook != CAPACITY:
        _require_device(str(values["device"].value), profile, facts)
        _require_budget(values["device_budget_gib"].value, values["device"].value, facts)
    if notebook == CAPACITY or values["device"].value == "cpu":
        AllocatorSettings.parse(str(values["alloc_conf"].value))  # it is simulated, so it must be known
    if "backend" in values:
        values = _with_backend(notebook, read, values, IMAGINED if notebook == CAPACITY else facts)
    out_dir = Path(values["out_dir"].value or environment.PROJECT / "reports").expanduser().resolve()
    environment.require_room(out_dir)
    cases = CASES[notebook](values, runnable_backends(_parameters(values), facts))
    require_data(cases[0])
    # What changes from minute to minute is kept where it is judged; elsewhere two runs would never compare as equal.
    room = environment.room(out_dir, facts) if notebook == "preflight" else {}
    return Plan(
        notebook=notebook,
        profile=profile,
        values=values,
        custom=tuple(differences(notebook, values, profile=profile)),
        cases=cases,
        environment={**facts, **environment.machine_facts(), **environment.provenance(), **room},
        out_dir=out_dir,
    )


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


def _with_backend(
    notebook: str, read: Mapping[str, object], values: Mapping[str, Value], facts: Mapping[str, object]
) -> dict[str, Value]:
    """Return the values with a backend in the place of `auto`. Raises ConfigError if the one asked for cannot run."""
    asked, problem = values["backend"].value, why_not_fused(_parameters(values), facts)
    if asked == FUSED and problem:
        raise ConfigError(problem)
    if asked != AUTO:
        return dict(values)
    chosen = "masked" if problem else FUSED
    # What a profile decides may hang on the backend, as the laptop's memory limit does.
    decided = resolve(notebook, {**read, "backend": chosen}, profile=str(values["profile"].value))
    return {**decided, "backend": Value("backend", chosen, AUTO, None)}


def _parameters(values: Mapping[str, Value]) -> Callable[[str], object]:
    return lambda name: values[name].value


def require_data(case: CaseConfig) -> None:
    """Raise ConfigError if the text file that a case reads is not there or too short."""
    if case.data == "synthetic":
        return
    path = Path(case.data)
    if not path.is_file():
        raise ConfigError(f"data={case.data}: no such file; accepts synthetic or the path of a text file")
    if path.stat().st_size <= case.seq_len:
        raise ConfigError(f"data={case.data}: {path.stat().st_size} bytes, a sequence needs {case.seq_len + 1}")
