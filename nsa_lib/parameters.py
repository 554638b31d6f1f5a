"""The parameters of the notebooks: what each accepts, and the strict reading of what was given.

papermill hands over `'true'`, `'1e-4'` and `10000.0` as typed; what is unambiguous is read, the rest is refused. Names
that nobody declared are refused too: papermill only warns of them, and a mistyped parameter would pass unnoticed.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nsa_lib.config import AUTO, BACKEND_NAMES, DEVICES, DTYPES, JUDGED_STEPS, PHIS, ConfigError
from nsa_lib.fault_table import FAULTS
from nsa_lib.operators import FEWEST_STEPS

_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "True or False",
    list: "a list of ascending whole numbers",
}


Read = int | float | str | bool | tuple[int, ...] | None
"""What a parameter's value may be once it is read."""


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
        words = _KINDS[self.kind]
        return words if self.above is None else f"{words} above {self.above:g}"


SIZES = {
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
}
"""Parameters that make another model, another shape or another memory use."""

_PROFILE = {
    "profile": Parameter(str, "checklist (needs CUDA), laptop, or auto", "auto", ("auto", "checklist", "laptop")),
}
_MACHINE = {
    "lr": Parameter(float, "learning rate", 3e-4, above=0),
    "seed": Parameter(int, "of weights and data", 0, above=-1),
    "device": Parameter(str, "cuda or cpu; the profile decides", choices=DEVICES),
    "alloc_conf": Parameter(str, "PyTorch allocator setting of the cases"),
    "device_budget_gib": Parameter(float, "emulate a device with this much memory on a larger one", above=0),
}
_BACKEND = {
    "backend": Parameter(str, "masked, gather, packed, fused (needs CUDA), or auto", "masked", (*BACKEND_NAMES, AUTO))
}
_RUN = {
    "stall_timeout_s": Parameter(float, "silence that counts as a hang; derived from measured steps", above=0),
    "out_dir": Parameter(str, "where runs/ is kept; the reports folder of the project"),
    "tag": Parameter(str, "label in the name of the run", ""),
    "accept_review": Parameter(bool, "a REVIEW verdict does not fail the notebook", False),
}
_FAULT = {"fault": Parameter(str, "seeded fault, to test the workbook itself", "none", tuple(FAULTS))}

PARAMETERS: dict[str, dict[str, Parameter]] = {
    "preflight": {**_PROFILE, **SIZES, **_BACKEND, **_MACHINE, **_FAULT, **_RUN},
    "backward_scaling": {
        **_PROFILE,
        "seq_lens": Parameter(list, "lengths whose backward is measured, ascending", above=0),
        "steps": Parameter(int, "counted iterations at each length, after 3 of warm-up", above=0),
        **SIZES,
        **_BACKEND,
        **_MACHINE,
        **_RUN,
        **_FAULT,
    },
    "smoke": {
        **_PROFILE,
        "steps": Parameter(int, f"training steps; fewer than {JUDGED_STEPS} cannot be judged", above=0),
        **SIZES,
        "data": Parameter(str, "synthetic, or the path of a text file read as bytes", "synthetic"),
        **_BACKEND,
        **_MACHINE,
        "compile": Parameter(bool, "each layer under torch.compile, needs cuda", False),
        "anomaly": Parameter(bool, "ten steps under anomaly detection", True),
        "profiler": Parameter(bool, "count operators early and late", True),
        "reserved_limit_mib": Parameter(float, "limit of the peak reserved memory", above=0),
        **_RUN,
        **_FAULT,
    },
    "backend_contrast": {
        **_PROFILE,
        "seq_lens": Parameter(list, "lengths of the sweep, ascending", above=0),
        "steps": Parameter(int, f"training steps, {FEWEST_STEPS} or more to be judged", above=0),
        "rounds": Parameter(int, "interleaved rounds of every timing", above=0),
        **SIZES,
        **_MACHINE,
        **_RUN,
        **_FAULT,
    },
    "readiness": {
        "runs": Parameter(str, "newest, or names, paths or globs of run folders, separated by commas", "newest"),
        **{name: parameter for name, parameter in _RUN.items() if name != "stall_timeout_s"},
    },
    "capacity": {
        "profile": Parameter(str, "whose sizes; needs no device", "checklist", ("checklist",)),
        "device_gib": Parameter(float, "memory of the device", 80.0, above=0),
        "seq_lens": Parameter(list, "lengths that are predicted, ascending", above=0),
        "batches": Parameter(list, "batches that are predicted, ascending", above=0),
        **SIZES,
        **_BACKEND,
        "device": Parameter(str, "whose memory, cuda or cpu", choices=DEVICES),
        "alloc_conf": _MACHINE["alloc_conf"],
        "out_dir": _RUN["out_dir"],
    },
    "explore": {
        "run": Parameter(str, "a run folder, the name of one in runs/, or newest", "newest"),
        "other": Parameter(str, "a second run to lay over it, named in the same ways", ""),
        "out_dir": _RUN["out_dir"],
    },
}
"""Parameters of each notebook, in the order in which it declares them."""

TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}|")


def read_value(declared: Mapping[str, Parameter], name: str, value: object) -> Read:
    """Return a parameter's value in its declared type. Raises ConfigError if it is not unambiguously of that type."""
    parameter = declared[name]
    if parameter.default is None and value in (None, "None"):
        return None
    read = _READERS[parameter.kind](value)
    if read is None:
        raise ConfigError(f"{name}={value!r}: accepts {parameter.accepts}{_hint(parameter, value)}")
    smallest = min(read) if isinstance(read, tuple) else read
    too_small = parameter.above is not None and not smallest > parameter.above
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


def _read_list(value: object) -> tuple[int, ...] | None:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return None
    if not isinstance(value, list | tuple) or not value:
        return None
    numbers = [_read_int(item) for item in value]
    ascending = None not in numbers and numbers == sorted(set(numbers))
    return tuple(numbers) if ascending else None


_READERS = {int: _read_int, float: _read_float, str: _read_str, bool: _read_bool, list: _read_list}


def _hint(parameter: Parameter, value: object) -> str:
    if parameter.kind is str and isinstance(value, int | float):
        return " (papermill reads digits as a number: pass it with -r instead of -p)"
    return ""


def read_parameters(notebook: str, namespace: Mapping[str, object], cells: Iterable[str]) -> dict[str, object]:
    """Return the values of all parameters, read strictly, from a notebook's namespace.

    Args:
        notebook: name of the notebook.
        namespace: its globals.
        cells: sources of the cells run so far (IPython's `In`), in which names that nobody declared are looked for.

    Raises:
        ConfigError: naming the parameter, for an unknown name or a value that it does not accept.
    """
    declared = PARAMETERS[notebook]
    for cell in cells:
        refuse_unknown(notebook, _assigned_in_parameters_cell(cell))
    return {name: read_value(declared, name, namespace.get(name, p.default)) for name, p in declared.items()}


def refuse_unknown(notebook: str, names: Iterable[str]) -> None:
    """Raise ConfigError, naming it, for the first name that is no parameter."""
    for name in names:
        if name not in PARAMETERS[notebook]:
            raise ConfigError(f"{name}: no such parameter of {notebook}; accepts {', '.join(PARAMETERS[notebook])}")


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
