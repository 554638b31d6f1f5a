"""How a user names what she brings: `package.module:name`, `path/file.py:name`, or an installed entry point.

Nothing is imported here: a user's module may print, raise, end its process or never return. A worker loads it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from nsa_lib.subject.config import BUILT_IN, ENTRY_POINTS, ConfigError

DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def resolved(role: str, value: str, places: Sequence[Path]) -> str:
    """Return a spec as a worker reads it: a built-in name as it is, the path of a file absolute.

    Args:
        role: the parameter.
        value: as the user wrote it.
        places: folders that a path may be relative to, in this order.

    Raises:
        ConfigError: in one line, for what is no spec, a file that is missing, an entry point that is not installed.
    """
    if value in BUILT_IN[role]:
        return value
    module, colon, name = value.rpartition(":")
    if not colon:
        return _entry_point(role, value)
    if not DOTTED.fullmatch(name):
        raise _refusal(role, value, f"it names nothing behind the colon of {module}:")
    if not is_file(value):
        if not DOTTED.fullmatch(module):
            raise _refusal(role, value, f"{module!r} is neither a module nor a .py file")
        return value
    path = Path(module).expanduser()
    found = next((place / path for place in places if (place / path).is_file()), None)
    if found is None:
        looked = "" if path.is_absolute() else f" in {' or '.join(dict.fromkeys(map(str, places)))}"
        raise _refusal(role, value, f"no file {module}{looked}")
    return f"{found.resolve()}:{name}"


def is_file(spec: str) -> bool:
    """Return whether a spec names a file, and not a module or an entry point."""
    return spec.rpartition(":")[0].endswith(".py")


def _entry_point(role: str, value: str) -> str:
    if any(True for _ in entry_points(group=ENTRY_POINTS[role], name=value)):
        return value
    if value.endswith(".py") or "/" in value:
        raise _refusal(role, value, "it names a file and nothing in it")
    raise _refusal(role, value, f"no built-in of this name and no entry point of the group {ENTRY_POINTS[role]}")


def _refusal(role: str, value: str, why: str) -> ConfigError:
    forms = "package.module:name, path/file.py:name, or an entry point"
    return ConfigError(f"{role}={value!r}: {why}; accepts {', '.join(BUILT_IN[role])}, {forms}")
