"""What one notebook asks of a run: its parameters, what each profile decides, and the cases that follow from both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs.cells import own_names, parameters_cells, said_in_cells
from nsa_lib.runs.parameters import Parameter, Read, Value, read_value, refuse_unknown
from nsa_lib.subject.config import AUTO

Values = Mapping[str, Value]

SUBJECT = ("backend", "attention", "attention_args", "model", "model_args")
"""Parameters that say what is on trial."""

FREE = (
    "profile", *SUBJECT, "tag", "fleet", "member", "nodes", "rendezvous", "node_rank", "out_dir", "accept_review",
    "stall_timeout_s", "total_timeout_s", "memory_snapshot", "fingerprint",
)  # fmt: skip
"""Parameters that do not make a run another one than its profile's. The checklist leaves open what is on
trial: a contrast recommends a backend, and a user may bring hers. The others change nothing that is computed."""

SHORTENED = {"prolog": "profile=prolog: shorter than the checklist"}
"""Profiles whose runs are judged and never counted by readiness."""

MORE = ("steps", "rounds")
"""Parameters of which a run may have more."""

NEAR = 0.8
"""Likeness from which on a name may be meant for a parameter's."""

TOLD = {"fault": "a seeded fault", "device_budget_gib": "an emulated device"}
"""What a parameter that a profile does not have makes of a run."""


@dataclass(frozen=True)
class Request:
    """One notebook, as `runs.plan` needs it."""

    notebook: str
    """Its name, without suffix."""
    parameters: Mapping[str, Parameter]
    """In the order in which the notebook declares them."""
    profiles: Mapping[str, Mapping[str, Read]] = field(default_factory=dict)
    """What each profile decides."""
    cases: Callable[[Values, tuple[str, ...]], tuple[CaseConfig, ...]] | None = None
    """From the effective values, and the backends that the machine can run, to the cases; None where nothing runs."""
    derive: Callable[[dict[str, Value]], dict[str, Value]] = lambda values: values
    """Add the values that depend on others."""
    notices: Callable[[Values], list[str]] = lambda values: []
    """What a user should know before the run starts, besides what every run says."""
    imagined: bool = False
    """The cases are predicted and never run: no device is needed, and every backend is taken to run on it."""
    predicted: bool = False
    """The memory of the cases is predicted beside their run."""
    records_room: bool = False
    """Free disk and GPU processes change by the minute: only a preflight, which judges them, records them."""

    def read(self, namespace: Mapping[str, object]) -> dict[str, Read]:
        """Return the values of all parameters, read strictly, from a notebook's namespace.

        Args:
            namespace: its globals, with the sources of the cells run so far (IPython's `In`). Where cells of parameters
                are among those, they are read instead of the globals.

        Raises:
            ConfigError: naming the parameter, for an unknown name or a value that it does not accept.
        """
        said = self._said(namespace)
        return {
            name: read_value(self.parameters, name, said.get(name, parameter.default))
            for name, parameter in self.parameters.items()
        }

    def overwritten(self, namespace: Mapping[str, object]) -> list[str]:
        """Return the parameters whose names hold something else now than the cells of parameters say."""
        said = self._said(namespace)
        return [
            name
            for name in self.parameters
            if name in said and name in namespace and not _same(said[name], namespace[name])
        ]

    def mistyped(self, namespace: Mapping[str, object]) -> dict[str, str]:
        """Return the names that a reader's own cells assign and that are nearly those of parameters, and whose."""
        near = {name: get_close_matches(name, self.parameters, n=1, cutoff=NEAR) for name in own_names(namespace)}
        return {name: meant[0] for name, meant in near.items() if meant and name not in self.parameters}

    def _said(self, namespace: Mapping[str, object]) -> Mapping[str, object]:
        cells = parameters_cells(self.parameters, namespace.get("In", ()))
        for cell in cells:
            refuse_unknown(self.notebook, self.parameters, cell)
        return said_in_cells(cells, namespace) if cells else namespace

    def resolve(self, read: Mapping[str, Read], *, profile: str) -> dict[str, Value]:
        """Return the effective value of every parameter under a profile, its origin, and the checklist's value."""
        values = {}
        for name, parameter in self.parameters.items():
            given, decided = read[name], self.profiles[profile].get(name)
            if given is not None and given != parameter.default:
                value, origin = given, "given"
            elif decided is not None:
                value, origin = decided, "profile"
            else:
                value, origin = given, "default"
            values[name] = Value(name, value, origin, self.profiles["checklist"].get(name))
        origin = "given" if read["profile"] == profile else "default"
        return values | {"profile": Value("profile", profile, origin, "checklist")}

    def recorded(self, rows: Iterable[Mapping[str, object]], *, profile: str) -> dict[str, Value]:
        """Return the effective values of a run from the parameters in its run.json, read as strictly as given ones.

        Raises ConfigError for a value that is not accepted.
        """
        found = {str(row["name"]): row["value"] for row in rows}
        read = {
            name: read_value(self.parameters, name, found.get(name, parameter.default))
            for name, parameter in self.parameters.items()
        }
        return self.resolve({**read, "profile": profile}, profile=profile)

    def differences(self, values: Values, *, profile: str) -> list[str]:
        """Return how a run differs from its profile: in every parameter but FREE, and MORE where it is no more."""
        unset = self.resolve({name: parameter.default for name, parameter in self.parameters.items()}, profile=profile)
        said = [SHORTENED[profile]] if profile in SHORTENED else []
        for name, value in values.items():
            # What the library derives from other values is no difference of its own.
            own = self.derive({**values, name: unset[name]})[name].value
            is_more = name in MORE and own is not None and value.value > own
            if name not in FREE and value.origin != AUTO and value.value != own and not is_more:
                said.append(f"{name}={_short(value.value)}{_beside(name, profile, own)}")
        return said


def _beside(name: str, profile: str, own: Read) -> str:
    return f": {TOLD[name]}" if name in TOLD else f" ({profile}: {_short(own)})"


def _short(value: Read) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other
