"""What a process of a worker knows of how it was started."""

from __future__ import annotations

from pathlib import Path


def started_with(name: str) -> str:
    """Return what the environment that this process was started with says of a name; "" if nothing."""
    entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(entry.decode(errors="replace").partition("=")[::2] for entry in entries).get(name, "")
