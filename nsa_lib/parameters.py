"""The parameters of the notebooks: what each accepts, what the profiles say, and the strict reading of what was given.

papermill hands over `'true'`, `'1e-4'` and `10000.0` as typed; what is unambiguous is read, the rest is refused. Names
that nobody declared are refused too: papermill only warns of them, and a mistyped parameter would pass unnoticed.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nsa_lib.config import BACKEND_NAMES, DEVICES, DTYPES, JUDGED_STEPS, PHIS, ConfigError


@dataclass(frozen=True)
class Parameter:
    """One parameter: its type, what it is for, and what it accepts besides the type."""

    kind: type
    help: str
    default: int | float | str | bool | None = None
    """None: the profile decides, or the value is derived as the help says."""
    choices: tuple[str, ...] = ()
    above: float | None = None
    """Numbers must exceed this."""

    @property
    def accepts(self) -> str:
        """What it accepts, in words."""
        if self.choices:
            return " or ".join(filter(None, [", ".join(self.choices[:-1]), self.choices[-1]]))
        words = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}[self.kind]
        return words if self.above is None else f"{words} above {self.above:g}"


PARAMETERS = {
    "profile": Parameter(str, "checklist (needs CUDA), laptop, or auto", "auto", ("auto", "checklist", "laptop")),
    "steps": Parameter(int, f"training steps; fewer than {JUDGED_STEPS} cannot be judged", above=0),
    "dim": Parameter(int, "model width", above=0),
    "layers": Parameter(int, "blocks", above=0),
    "heads": Parameter(int, "query heads", above=0),
    "groups": Parameter(int, "KV heads; heads must be a multiple", above=0),
    "d_k": Parameter(int, "width of a query or key head, even", above=0),
    "d_v": Parameter(int, "width of a value head", above=0),
    "l": Parameter(int, "compression block in tokens", above=0),
    "d": Parameter(int, "stride of the compression blocks in tokens", above=0),
    "l_sel": Parameter(int, "selection block in tokens", above=0),
    "n_sel": Parameter(int, "selection blocks a query reads, 3 or more", above=2),
    "w": Parameter(int, "sliding window in tokens", above=0),
    "phi": Parameter(str, "compression of a block, mlp or mean", choices=PHIS),
    "vocab": Parameter(int, "tokens in the vocabulary", above=1),
    "seq_len": Parameter(int, "tokens in a sequence", above=0),
    "batch": Parameter(int, "sequences in a step", above=0),
    "dtype": Parameter(str, "of parameters, gradients and optimizer state", choices=DTYPES),
    "grad_checkpointing": Parameter(bool, "compute each layer again in backward"),
    "lr": Parameter(float, "learning rate", 3e-4, above=0),
    "seed": Parameter(int, "of weights and data", 0, above=-1),
    "data": Parameter(str, "synthetic, or the path of a text file read as bytes", "synthetic"),
    "backend": Parameter(str, "selected branch, masked gather or packed", "masked", BACKEND_NAMES),
    "device": Parameter(str, "cuda or cpu; the profile decides", choices=DEVICES),
    "alloc_conf": Parameter(str, "PyTorch allocator setting of the cases"),
    "compile": Parameter(bool, "each layer under torch.compile, needs cuda", False),
    "anomaly": Parameter(bool, "ten steps under anomaly detection", True),
    "profiler": Parameter(bool, "count operators early and late", True),
    "reserved_limit_mib": Parameter(float, "limit of the peak reserved memory", above=0),
    "stall_timeout_s": Parameter(float, "silence that counts as a hang; derived from measured steps", above=0),
    "out_dir": Parameter(str, "where runs/ is kept; the reports folder of the project"),
    "tag": Parameter(str, "label in the name of the run", ""),
    "accept_review": Parameter(bool, "a REVIEW verdict does not fail the notebook", False),
}

CHECKLIST_ALLOC_CONF = "expandable_segments:True,max_split_size_mb:256"

PROFILES: dict[str, dict[str, int | float | str | bool]] = {
    "checklist": {
        "steps": 100, "dim": 768, "layers": 12, "heads": 12, "groups": 12, "d_k": 64, "d_v": 64, "l": 16, "d": 16,
        "l_sel": 64, "n_sel": 16, "w": 512, "phi": "mlp", "vocab": 50257, "seq_len": 2048, "batch": 1,
        "dtype": "bfloat16", "grad_checkpointing": True, "device": "cuda", "alloc_conf": CHECKLIST_ALLOC_CONF,
        "reserved_limit_mib": 70000.0,
    },
    "laptop": {
        "steps": 100, "dim": 128, "layers": 4, "heads": 4, "groups": 4, "d_k": 32, "d_v": 32, "l": 16, "d": 16,
        "l_sel": 64, "n_sel": 4, "w": 128, "phi": "mlp", "vocab": 512, "seq_len": 512, "batch": 1,
        "dtype": "float32", "grad_checkpointing": True, "device": "cpu", "alloc_conf": CHECKLIST_ALLOC_CONF,
    },
}  # fmt: skip
"""What each profile decides. The laptop's memory limit depends on the backend: LAPTOP_KNOWN_RESERVED_MIB."""

LAPTOP_KNOWN_RESERVED_MIB = {"masked": 50.0, "gather": 230.0, "packed": 50.0}
"""Peak reserved memory of the laptop smoke on a CPU, simulated and so the same on every machine."""

LAPTOP_HEADROOM = 1.25
"""The laptop's limit over its known peak."""

SIZES = ("dim", "layers", "heads", "groups", "d_k", "d_v", "l", "d", "l_sel", "n_sel", "w", "phi", "vocab", "seq_len",
         "batch", "dtype", "grad_checkpointing")  # fmt: skip
"""Parameters that make another model, another shape or another memory use; a run that changes one is custom."""

TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}|")


@dataclass(frozen=True)
class Value:
    """An effective parameter: its value, where that came from, and what the checklist says."""

    name: str
    value: int | float | str | bool | None
    origin: str
    """`given`, `profile` or `default`."""
    checklist: int | float | str | bool | None
    """The checklist's value, or None where it says nothing."""

    @property
    def differs(self) -> bool:
        """Whether the checklist says something else."""
        return self.checklist is not None and self.value != self.checklist


def read_value(name: str, value: object) -> int | float | str | bool | None:
    """Return a parameter's value in its declared type. Raises ConfigError if it is not unambiguously of that type."""
    parameter = PARAMETERS[name]
    if parameter.default is None and value in (None, "None"):
        return None
    read = _READERS[parameter.kind](value)
    if read is None:
        raise ConfigError(f"{name}={value!r}: accepts {parameter.accepts}{_hint(parameter, value)}")
    too_small = parameter.above is not None and not read > parameter.above
    if too_small or (parameter.choices and read not in parameter.choices):
        raise ConfigError(f"{name}={value!r}: accepts {parameter.accepts}")
    if name == "tag" and not TAG.fullmatch(read):
        raise ConfigError(f"tag={value!r}: accepts up to 40 letters, digits, '.', '_' and '-', not starting with '.'")
    return read


def _read_int(value: object) -> int | None:
    number = _read_float(value)
    return int(number) if number is not None and number.is_integer() else None


def _read_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read_str(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _read_bool(value: object) -> bool | None:
    return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).lower())


_READERS = {int: _read_int, float: _read_float, str: _read_str, bool: _read_bool}


def _hint(parameter: Parameter, value: object) -> str:
    if parameter.kind is str and isinstance(value, int | float):
        return " (papermill reads digits as a number: pass it with -r instead of -p)"
    return ""


def read_parameters(namespace: Mapping[str, object], cells: Iterable[str]) -> dict[str, object]:
    """Return the values of all parameters, read strictly, from a notebook's namespace.

    Args:
        namespace: the notebook's globals.
        cells: sources of the cells run so far (IPython's `In`), in which names that nobody declared are looked for.

    Raises:
        ConfigError: naming the parameter, for an unknown name or a value that it does not accept.
    """
    for cell in cells:
        refuse_unknown(_assigned_in_parameters_cell(cell))
    return {name: read_value(name, namespace.get(name, p.default)) for name, p in PARAMETERS.items()}


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise ConfigError, naming it, for the first name that is no parameter."""
    for name in names:
        if name not in PARAMETERS:
            raise ConfigError(f"{name}: no such parameter; accepts {', '.join(PARAMETERS)}")


def _assigned_in_parameters_cell(source: str) -> list[str]:
    """Return the names a cell assigns if it is papermill's injected cell or a notebook's parameters cell, else []."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a cell with magics is neither
        return []
    annotated = [s for s in statements if isinstance(s, ast.AnnAssign)]
    if source.startswith("# Parameters"):
        return [target.id for s in statements if isinstance(s, ast.Assign) for target in s.targets]
    if annotated and all(isinstance(s, ast.AnnAssign | ast.Assign) for s in statements):
        return [s.target.id if isinstance(s, ast.AnnAssign) else s.targets[0].id for s in statements]
    return []


def resolve(read: Mapping[str, object], *, profile: str) -> dict[str, Value]:
    """Return the effective value of every parameter under a profile, with its origin and the checklist's value."""
    values = {}
    for name, parameter in PARAMETERS.items():
        given, decided = read[name], PROFILES[profile].get(name)
        if given is not None and given != parameter.default:
            value, origin = given, "given"
        elif decided is not None:
            value, origin = decided, "profile"
        else:
            value, origin = given, "default"
        values[name] = Value(name, value, origin, PROFILES["checklist"].get(name))
    values["profile"] = Value("profile", profile, "given" if read["profile"] == profile else "default", "checklist")
    return _with_laptop_limit(values) if profile == "laptop" else values


def _with_laptop_limit(values: dict[str, Value]) -> dict[str, Value]:
    """Add the laptop's memory limit where its peak is known: on a CPU, at the profile's own sizes."""
    limit = values["reserved_limit_mib"]
    own_sizes = all(values[name].value == PROFILES["laptop"][name] for name in (*SIZES, "device", "alloc_conf"))
    if limit.value is None and own_sizes:
        known = LAPTOP_KNOWN_RESERVED_MIB[str(values["backend"].value)]
        limit = Value("reserved_limit_mib", known * LAPTOP_HEADROOM, "profile", limit.checklist)
    return {**values, "reserved_limit_mib": limit}


def differences(values: Mapping[str, Value], *, profile: str) -> list[str]:
    """Return how a run differs from its profile in model, shapes, dtype, checkpointing, limit or fewer steps."""
    decided = PROFILES[profile]
    changed = [name for name in SIZES if values[name].value != decided[name]]
    if values["steps"].value < decided["steps"]:
        changed.append("steps")
    said = [f"{name}={values[name].value} ({profile}: {decided[name]})" for name in changed]
    limit = values["reserved_limit_mib"]
    if limit.origin == "given" and limit.value != decided.get("reserved_limit_mib"):
        said.append(f"reserved_limit_mib={limit.value:g}")
    return said
