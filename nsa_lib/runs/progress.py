"""Live progress of a run: where it is, a bar, what is left, loss and memory, in JupyterLab, papermill and a console.

A display is updated in place, at most once a second; inline SVG, because JupyterLab freezes an updated plotly chart at
its first frame. A line printed now and then shows life where displays are not logged; those lines stay in the report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from IPython import get_ipython
from IPython.display import DisplayHandle, display

from nsa_lib.contract.figures import duration, step_time
from nsa_lib.contract.lines import folded
from nsa_lib.contract.thinning import thinned
from nsa_lib.runs.environment import in_jupyter
from nsa_lib.runs.panel import in_corner, write_page

PERIOD_S = 1.0

PRINT_PERIOD_S = 20.0


class Progress:
    """The progress of one run, case after case."""

    def __init__(
        self,
        case_steps: dict[str, int],
        *,
        where: Path | None = None,
        limit_mib: float | None = None,
        notices: Sequence[str] = (),
    ):
        """Begin.

        Args:
            case_steps: how many steps each case takes, in their order.
            where: the run folder; its page shows the same after a reload, which no display survives.
            limit_mib: what the peak of reserved memory is judged against.
            notices: what to say of the run as long as it goes on.
        """
        self._case_steps, self._where, self._limit_mib, self._notices = case_steps, where, limit_mib, notices
        self._handle: DisplayHandle | None = None
        self._shown_at = 0.0
        self._printed_at = time.monotonic()
        self._told = ""
        self._at, self._since = ("", 0), 0.0

    def tell(self, notice: str) -> None:
        """Print what a user should know now, once for as long as it is the same."""
        if notice and notice != self._told:
            self._print(notice)
        self._told = notice

    def show(
        self,
        case_id: str,
        step: int,
        step_s: float | None,
        memory_mib: Sequence[float],
        *,
        phase: str,
        loss: float | None = None,
        reserved_mib: float | None = None,
        said: str = "",
    ) -> None:
        """Show that a case has done `step` steps; throttled.

        Args:
            case_id: the case that runs.
            step: steps done.
            step_s: median time of a step so far, or None before the first.
            memory_mib: peak allocated memory of each step so far.
            phase: phase of the last heartbeat.
            loss: of the last step.
            reserved_mib: highest peak of reserved memory so far.
            said: the last line that the worker printed.
        """
        words = self._words(case_id, step, step_s, phase) + self._figures(loss, memory_mib, reserved_mib)
        if time.monotonic() - self._shown_at >= PERIOD_S:
            last = f"<br><code>{escape(said)}</code>" if said else ""
            drawing = _bar(step, self._case_steps[case_id]) + sparkline_svg(memory_mib)
            self._update(words, f"<div>{escape(words)}{drawing}{last}{self._around()}</div>")
        if time.monotonic() - self._printed_at >= PRINT_PERIOD_S:
            self._print(words)

    def _words(self, case_id: str, step: int, step_s: float | None, phase: str) -> str:
        """Return where a run is and what is left of its case."""
        total = self._case_steps[case_id]
        words = f"{case_id}: step {step} of {total}" if step or phase == "step" else f"{case_id}: {phase}"
        if len(self._case_steps) > 1:
            words = f"case {list(self._case_steps).index(case_id) + 1} of {len(self._case_steps)}, {words}"
        if phase == "judge":
            words += ", now judged"
        elif step_s is not None:
            words += f", {step_time(1000 * step_s)} a step, {self._left(case_id, step, (total - step) * step_s)}"
        return words

    def _left(self, case_id: str, step: int, seconds: float) -> str:
        """Return what is left of a case, or for how long its step has taken if that is more: checks are not alike."""
        now = time.monotonic()
        if self._at != (case_id, step):
            self._at, self._since = (case_id, step), now
        waited = now - self._since
        return f"{duration(seconds)} to go" if waited <= seconds else f"the next for {duration(waited)}"

    def _figures(self, loss: float | None, memory_mib: Sequence[float], reserved_mib: float | None) -> str:
        words = "" if loss is None else f", loss {loss:.3f}"
        if memory_mib:
            words += f", peak {memory_mib[-1]:,.1f} MiB"
        if reserved_mib is not None and self._limit_mib is not None:
            words += f", reserved {reserved_mib:,.0f} of {self._limit_mib:,.0f} MiB"
        return words

    def end(self, case_id: str, status: str, reason: str, seconds: float) -> None:
        """Show how a case ended."""
        self._print(f"{case_id}: {status} after {duration(seconds)}" + (f" ({reason})" if reason else ""))
        self._update("", "<div></div>")

    def _around(self) -> str:
        lines = [*self._notices, *([f"recorded in {self._where}"] if self._where else ())]
        return "".join(f'<br><small style="opacity:.7">{escape(line)}</small>' for line in lines)

    def _print(self, words: str) -> None:
        self._printed_at = time.monotonic()
        print(folded(words), flush=True)

    def _update(self, words: str, html: str) -> None:
        if get_ipython() is None:
            return
        self._shown_at = time.monotonic()
        if words and self._where and in_jupyter():
            write_page(self._where, html)
        corner = in_corner(html) if words and in_jupyter() else ""
        bundle = {"text/html": html + corner, "text/plain": words}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _bar(step: int, total: int) -> str:
    return f'<br><progress max="{total}" value="{step}" style="width:320px"></progress>'


def sparkline_svg(values: Sequence[float], *, width: int = 320, height: int = 40) -> str:
    """Return a small line through the values, lowest to highest, as inline SVG; "" for fewer than 2.

    Of more values than it has pixels across, the lowest and the highest of every few are drawn.
    """
    if len(values) < 2:
        return ""
    last, low, high = len(values) - 1, min(values), max(values)
    shown = thinned(np.asarray(values, dtype=float), width)  # a run may have many thousand steps; a spike stays
    points = " ".join(
        f"{i * width / last:.1f},{height - 2 - (values[i] - low) / ((high - low) or 1) * (height - 4):.1f}"
        for i in shown
    )
    return (
        f'<br><svg width="{width}" height="{height}" role="img"><title>peak allocated memory, {low:,.1f} to {high:,.1f}'
        f' MiB</title><polyline points="{points}" fill="none" stroke="currentColor"/></svg>'
    )
