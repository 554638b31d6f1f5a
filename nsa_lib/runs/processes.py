"""End a process with everything that descends from it, whatever groups and sessions its children made.

A child that leaves its session survives the end of the group, and once its parent is dead nothing tells whose it was.
So this process adopts orphans, and ends those that it did not start itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def children(parent_pid: int) -> set[int]:
    """Return the processes that a process is the parent of."""
    return {pid for pid, parent in _parents().items() if parent == parent_pid}


def descendants(pid: int) -> set[int]:
    """Return the children of a process, their children, and so on."""
    parents, found, new = _parents(), set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def processes_with(module: str, ending: str) -> list[str]:
    """Return, of every process that runs a module of Python, the argument that ends so."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended meanwhile
            words = path.read_bytes().decode(errors="replace").split("\0")
            found += [word for word in words if word.endswith(ending)] if module in words else []
    return found


def _parents() -> dict[int, int]:
    """Return the parent of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            # The name, in parentheses, may hold anything; behind it stand the state and the parent.
            found[int(path.parent.name)] = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
    return found


def end_tree(process: subprocess.Popen, *, spare: Collection[int], dump_stacks: bool = False) -> None:
    """End a process and its descendants, with a dump of its stacks to stderr first if asked for.

    Also after a process that ended by itself: it may have left children. A process in the kernel's uninterruptible
    sleep survives even SIGKILL, so the last wait is bounded.

    Args:
        process: the leader of a group of its own.
        spare: children of this process that do not descend from it.
        dump_stacks: send SIGUSR1 to all of them first; `faulthandler` writes the stacks, also from C code that holds
            Python's lock.
    """
    if dump_stacks and process.poll() is None:
        for pid in (process.pid, *descendants(process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        time.sleep(1)
    left = descendants(process.pid)
    for how, patience_s in ((signal.SIGTERM, 2), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
    process.poll()
    _end_orphans(left | (children(os.getpid()) - {process.pid, *spare}))


def _end_orphans(pids: Collection[int]) -> None:
    """Kill processes, with what they have started meanwhile, and take their exit status where they are ours."""
    for pid in {*pids, *(pid for parent in pids for pid in descendants(parent))}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
