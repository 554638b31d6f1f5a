"""Files that are written whole: a reader sees the old one or the new one, never half of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file, whole. JSON has no NaN and no infinity: they become null."""
    write_text(path, json.dumps(finite(content), indent=1, allow_nan=False))


def finite(value: object) -> object:
    """Return a value of mappings and lists with None in the place of every number that is not finite."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # JSON can hold half a surrogate pair


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path to write to; what was written replaces the file once it is whole, and goes if it never is.

    An OSError names the file that was to be written.
    """
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp")  # of this process alone: some disks have no locks
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary):
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)
