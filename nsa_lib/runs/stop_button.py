"""The stop button: Ctrl-C as a flag, so that it never strikes in the middle of what must be whole."""

from __future__ import annotations

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and the polite end that a papermill stopped by Ctrl-C sends its kernel two and a half seconds later, as batch
systems do: five seconds after the first comes one that nobody hears, and until then the run can be recorded."""


class StopButton:
    """Ctrl-C, which is also JupyterLab's stop button, as a flag for the supervising loop to read.

    As an exception it could strike between the start of a worker and the loop that watches it, and leave the worker
    running; or in the middle of a result. Python hears signals in the main thread only, where notebooks run.
    """

    def __init__(self):
        """Hear Ctrl-C and SIGTERM once entered."""
        self.pressed = False

    def __enter__(self) -> StopButton:
        self._before = {number: signal.signal(number, self._press) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _press(self, *_: object) -> None:
        self.pressed = True
