"""What runs on this machine now."""

from contextlib import suppress
from pathlib import Path


def command_lines():
    """Return the words of each process's command line, by its pid."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            found[int(path.parent.name)] = path.read_bytes().decode(errors="replace").split("\0")
    return found
