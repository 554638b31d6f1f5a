"""The launcher `local`: a member on each visible GPU of this machine; without one, so many processes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable

from nsa_lib.runs import environment
from nsa_lib.runs.launchers.member import Task, own_gpu
from nsa_lib.runs.stop_button import StopButton

POLL_S = 0.2

SAVES_S = 120.0
"""How long members that are told to end may take to save their notebooks."""


def run_members(task: Task, members: int, *, visible: list[str], stop: StopButton, tell: Callable[[], None]) -> None:
    """Run all members at the same time, to their end.

    The stop button is passed on to each, which is judged by what it has recorded. Pressed again it ends those that did
    not heed it, as one that hangs.

    Args:
        task: what they run.
        members: how many.
        visible: GPUs of this machine; [] without any.
        stop: hears the user.
        tell: is called again and again while they run.
    """
    running: list[subprocess.Popen] = []
    presses = iter((signal.SIGINT,))
    try:
        for rank in range(members):
            gpu = own_gpu(visible, rank, members) if visible else None
            running.append(_start(task, rank, environment.pinned_environment(gpu, sharing=members)))
        while any(process.poll() is None for process in running):
            if stop.pressed:
                stop.pressed = False
                _signal(running, next(presses, signal.SIGKILL))
            tell()
            time.sleep(POLL_S)
    finally:  # also if the supervision itself fails: members must not outlive it
        _signal(running, signal.SIGTERM)
        _end(running)


def _start(task: Task, rank: int, pinned: dict[str, str]) -> subprocess.Popen:
    command = task.command(rank)
    with task.place(rank).with_suffix(".log").open("wb") as log:
        # In a session of its own it hears Ctrl-C from here alone, and has the time to save the notebook.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=pinned, start_new_session=True
        )


def _end(processes: list[subprocess.Popen]) -> None:
    """Wait until processes that were told to end have done so; kill those that do not."""
    deadline = time.monotonic() + SAVES_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _signal(processes: list[subprocess.Popen], number: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)
