"""Live progress of a run: a bar, an ETA and the memory so far, in JupyterLab, under papermill and on a console.

A display is updated in place, at most once a second; inline SVG, because JupyterLab freezes an updated plotly chart at
its first frame. A line printed now and then shows life where displays are not logged; those lines stay in the report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

from IPython import get_ipython
from IPython.display import DisplayHandle, display

PERIOD_S = 1.0

PRINT_PERIOD_S = 20.0


class Progress:
    """The progress of one run, case after case."""

    def __init__(self, case_steps: dict[str, int]):
        self._case_steps = case_steps
        self._handle: DisplayHandle | None = None
        self._shown_at = 0.0
        self._printed_at = time.monotonic()

    def show(self, case_id: str, step: int, step_s: float | None, memory_mib: Sequence[float], *, phase: str) -> None:
        """Show that a case has done `step` steps; throttled.

        Args:
            case_id: the case that runs.
            step: steps done.
            step_s: median time of a step so far, or None before the first.
            memory_mib: peak allocated memory of each step so far.
            phase: phase of the last heartbeat.
        """
        total = self._case_steps[case_id]
        words = f"{case_id}: {phase}" if step == 0 else f"{case_id}: step {step} of {total}"
        if step_s is not None:
            words += f", {1000 * step_s:.0f} ms a step, {_duration((total - step) * step_s)} to go"
        if memory_mib:
            words += f", peak {memory_mib[-1]:,.1f} MiB"
        if time.monotonic() - self._shown_at >= PERIOD_S:
            self._update(words, _bar(step, total) + sparkline_svg(memory_mib))
        if time.monotonic() - self._printed_at >= PRINT_PERIOD_S:
            self._print(words)

    def end(self, case_id: str, status: str, reason: str, seconds: float) -> None:
        """Show how a case ended."""
        self._print(f"{case_id}: {status} after {_duration(seconds)}" + (f" ({reason})" if reason else ""))
        self._update("", "")

    def _print(self, words: str) -> None:
        self._printed_at = time.monotonic()
        print(words, flush=True)

    def _update(self, words: str, drawing: str) -> None:
        if get_ipython() is None:
            return
        self._shown_at = time.monotonic()
        bundle = {"text/html": f"<div>{escape(words)}{drawing}</div>", "text/plain": words}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _bar(step: int, total: int) -> str:
    return f'<br><progress max="{total}" value="{step}" style="width:320px"></progress>'


def sparkline_svg(values: Sequence[float], *, width: int = 320, height: int = 40) -> str:
    """Return a small line through the values, lowest to highest, as inline SVG; "" for fewer than 2."""
    if len(values) < 2:
        return ""
    values = values[:: -(-len(values) // width)]  # a point a pixel: a run may have many thousand steps
    low, high = min(values), max(values)
    points = " ".join(
        f"{i * width / (len(values) - 1):.1f},{height - 2 - (v - low) / ((high - low) or 1) * (height - 4):.1f}"
        for i, v in enumerate(values)
    )
    return (
        f'<br><svg width="{width}" height="{height}" role="img"><title>peak allocated memory, {low:,.1f} to {high:,.1f}'
        f' MiB</title><polyline points="{points}" fill="none" stroke="currentColor"/></svg>'
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
