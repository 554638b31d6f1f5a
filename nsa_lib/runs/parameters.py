"""The parameters of the notebooks: what each accepts, and the strict reading of what was given.

papermill hands over `'true'`, `'1e-4'` and `10000.0` as typed. A value that is unambiguous is read, any other refused.
Undeclared names are refused too: papermill only warns of them, and a mistyped parameter would pass unnoticed.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from nsa_lib.contract.case import DTYPES
from nsa_lib.subject.config import PHIS, ConfigError

_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "True or False",
    list: "a list of ascending whole numbers",
    dict: "a mapping of names to values",
}


Read = int | float | str | bool | tuple[int, ...] | tuple[str, ...] | dict[str, object] | None
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
    also: tuple[str, ...] = ()
    """Texts that are accepted beside its type."""

    @property
    def accepts(self) -> str:
        """What it accepts, in words."""
        if self.choices and self.kind is list:
            return f"one or more of {', '.join(self.choices)}"
        if self.choices:
            return " or ".join(filter(None, [", ".join(self.choices[:-1]), self.choices[-1]]))
        words = " or ".join((_KINDS[self.kind], *self.also))
        return words if self.above is None else f"{words} above {self.above:g}"


SIZES = {
    # LayerNorm makes of two numbers the same ones, whatever they are, and a width of 8 learns too little to be judged.
    "dim": Parameter(int, "model width, 16 or more", above=15),
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

WHOLE = re.compile(r"[+-]?[0-9]{1,30}")

TAG_WORDS = "accepts up to 40 letters, digits, '.', '_' and '-', not starting with '.'"

TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}|")


def read_value(declared: Mapping[str, Parameter], name: str, value: object) -> Read:
    """Return a parameter's value in its declared type. Raises ConfigError if it is not unambiguously of that type."""
    parameter = declared[name]
    if parameter.default is None and value in (None, "None"):
        return None
    if value in parameter.also:
        return value
    named = parameter.kind is list and parameter.choices
    read = _read_names(value) if named else _READERS[parameter.kind](value)
    if read is None:
        raise ConfigError(f"{name}={value!r}: accepts {parameter.accepts}{_hint(parameter, value)}")
    smallest = min(read) if isinstance(read, tuple) else read
    too_small = parameter.above is not None and not smallest > parameter.above
    chosen = read if named else (read,)
    if too_small or (parameter.choices and not set(chosen) <= set(parameter.choices)):
        raise ConfigError(f"{name}={value!r}: accepts {parameter.accepts}")
    if name in ("tag", "fleet") and not TAG.fullmatch(read):
        raise ConfigError(
            f"{name}={value!r}: accepts up to 40 letters, digits, '.', '_' and '-', not starting with '.'"
        )
    return read


LARGEST_INT = 2**63 - 1
"""What torch takes as a size or a seed."""


def _read_int(value: object) -> int | None:
    """Return a whole number exactly: a float holds none beyond 2^53."""
    if isinstance(value, str) and WHOLE.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) <= LARGEST_INT else None
    number = _read_float(value)
    return int(number) if number is not None and number.is_integer() and abs(number) <= 2**53 else None


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


def _read_mapping(value: object) -> dict[str, object] | None:
    """Return a mapping of names to values that a file can keep."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return None
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return None
    try:
        return json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError):
        return None


def _read_names(value: object) -> tuple[str, ...] | None:
    """Return names that differ: of a list, or of a text that is one or separates them by commas."""
    if isinstance(value, str):
        value = [name.strip(" '\"") for name in value.strip(" []()").split(",")]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) and name for name in value):
        return None
    return tuple(value) if len(set(value)) == len(value) else None


_READERS = {
    int: _read_int, float: _read_float, str: _read_str, bool: _read_bool, list: _read_list, dict: _read_mapping,
}  # fmt: skip


def _hint(parameter: Parameter, value: object) -> str:
    if parameter.kind is str and isinstance(value, int | float):
        return " (papermill reads digits as a number: pass it with -r instead of -p)"
    return ""


def refuse_unknown(notebook: str, declared: Mapping[str, Parameter], names: Iterable[str]) -> None:
    """Raise ConfigError, naming it, for the first name that is no parameter."""
    for name in names:
        if name not in declared:
            raise ConfigError(unknown(name, f"parameter of {notebook}", declared))


def unknown(name: str, what: str, accepted: Iterable[str]) -> str:
    """Return why a name is refused: the one that it may be meant for, and all that are accepted."""
    names = list(accepted)
    near = get_close_matches(name, names, n=1)
    meant = f"did you mean {near[0]}? It accepts" if near else "accepts"
    return f"{name}: no such {what}; {meant} {', '.join(names)}"


@dataclass(frozen=True)
class Value:
    """An effective parameter: its value, where that came from, and what the checklist says."""

    name: str
    value: Read
    origin: str
    """`given`, `profile`, `default`, or `auto` for a backend that the machine decided."""
    checklist: Read
    """The checklist's value, or None where it says nothing."""

    @property
    def differs(self) -> bool:
        """Whether the checklist says something else."""
        return self.checklist is not None and self.value != self.checklist
