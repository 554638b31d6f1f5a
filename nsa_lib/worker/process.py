"""What a process of a worker knows of itself: whose child it is, which its life is bound to, and how it was started."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, however it dies. Exit if the parent has already died."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("the process that started this case is gone")


def started_with(name: str) -> str:
    """Return what the environment that this process was started with says of a name; "" if nothing."""
    entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(entry.decode(errors="replace").partition("=")[::2] for entry in entries).get(name, "")
