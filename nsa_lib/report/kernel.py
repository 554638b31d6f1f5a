"""The kernel of a notebook that papermill executes: how it is stopped, and how it is ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop

from nsa_lib.runs.stop_button import SIGNALS

QUIET = "--IPKernelApp.log_level=40"
"""Errors of the kernel, without its warning that it talks in plain text: it does so on the loopback alone."""

IDLE_S, POLL_S = 1.0, 0.02
"""How long a kernel that is to end may take to fall idle, and how often it is looked at meanwhile."""


@contextmanager
def signals_given_back() -> Iterator[None]:
    """Give the signals, at the end, back to whoever heard them before a `StoppableKernel` did.

    A process that executes a notebook may go on: it would be deaf to Ctrl-C, and its next notebook would hear, at its
    start, a signal that was sent long before.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        loop = ensure_event_loop()  # nbclient's for this thread
        for number, handler in before.items():
            if loop.remove_signal_handler(number):
                signal.signal(number, handler)


class StoppableKernel(AsyncKernelManager):
    """A kernel for which Ctrl-C, and SIGTERM, are JupyterLab's stop button: what was recorded is judged and shown.

    A second signal ends the kernel. nbclient's own handlers, which this replaces, do so at the first. From the start of
    the kernel on the signals are this one's, after its end too, while the report is written: see `signals_given_back`.
    """

    async def start_kernel(self, **kwargs):
        """Start the kernel and listen for the signals."""
        self._is_stopping = False
        with suppress(RuntimeError):  # not the main thread: signals are not ours to hear
            for number in SIGNALS:
                asyncio.get_running_loop().add_signal_handler(number, self._stop)
        await super().start_kernel(**kwargs)

    async def shutdown_kernel(self, now=False, restart=False):
        """End the kernel: an idle one by a message alone.

        jupyter_client interrupts it first, for it may be busy. That interrupt often comes while the kernel returns from
        the last question that papermill asks it, and is then logged as an error.
        """
        if now or not await self._falls_idle():
            await super().shutdown_kernel(now=now, restart=restart)
            return
        self.shutting_down = True
        await self.request_shutdown(restart=restart)
        await self.finish_shutdown(restart=restart)
        await self.cleanup_resources(restart=restart)

    async def _falls_idle(self) -> bool:
        """Return whether the kernel runs no cell, or will soon run none: then it ignores interrupts."""
        for _ in range(int(IDLE_S / POLL_S)):
            if not await self.is_alive():
                return False
            if _ignores_interrupts(self.provisioner.pid):
                return True
            await asyncio.sleep(POLL_S)
        return False

    def _stop(self):
        stopping = self.shutdown_kernel(now=True) if self._is_stopping else self.interrupt_kernel()
        self._is_stopping = True
        self._stopping = asyncio.ensure_future(stopping)  # kept: a task that nobody holds may vanish


def _ignores_interrupts(pid: int) -> bool:
    with suppress(OSError):  # it has ended meanwhile
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigIgn:"):
                return bool(int(line.split()[1], 16) >> signal.SIGINT - 1 & 1)
    return False
