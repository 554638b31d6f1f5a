"""The stop button: Ctrl-C as a flag, so that it never strikes in the middle of what must be whole."""

from __future__ import annotations

import signal


class StopButton:
    """Ctrl-C, which is also JupyterLab's stop button, as a flag for the supervising loop to read.

    As an exception it could strike between the start of a worker and the loop that watches it, and leave the worker
    running; or in the middle of a result. Python hears signals in the main thread only, where notebooks run.
    """

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> StopButton:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self.pressed = True
