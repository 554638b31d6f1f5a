"""The verdict of a run in its notebook: written by the last cell, read again by the report.

The notebook carries the record as an output of its own MIME type. A notebook says GO only if it ran from top to bottom
without an error and its last cell left one well-formed record. The gates are judged elsewhere; nothing here can improve
a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from IPython.display import display

from nsa_lib.contract.lines import folded
from nsa_lib.report.session import session_mark, sessions

if TYPE_CHECKING:  # a kernel reads no notebook, and the import takes a second
    from nbformat import NotebookNode

MIME = "application/vnd.nsa.verdict+json"

COMMAND_MIME = "application/vnd.nsa.command+json"
"""Of the output that tells how to make the report: once that is made it is of no use, so no report shows it."""

SCHEMA = 1

OUTCOME_KEY = "nsa_run"
"""Where the papermill engine leaves `{"outcome": ...}` in a notebook's metadata."""

FINISHED = "finished"

STYLES = {"GO": ("✔", "success"), "REVIEW": ("▲", "warn"), "NO-GO": ("✘", "error"), "INCOMPLETE": ("○", "warn")}
"""Icon and JupyterLab colour of each verdict."""

LAPTOP_NOTE = "A laptop GO clears no GPU."


class VerdictError(Exception):
    """Stops a notebook whose verdict is not GO, so that papermill exits non-zero; leaves one line, no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"VerdictError: {self}"]


@dataclass(frozen=True)
class Verdict:
    """What a notebook says about its run. Without a record all but word, headline and reasons is empty."""

    word: str
    headline: str
    reasons: tuple[str, ...] = ()
    run_id: str = ""
    notebook: str = ""
    profile: str = ""
    custom: tuple[str, ...] = ()
    on_trial: str = ""
    """What a user brought, and how it was judged."""

    @classmethod
    def from_record(cls, record: Mapping) -> Verdict:
        """Return the verdict that a record holds. Raises ValueError if it is malformed or of a newer schema."""
        if not isinstance(record, Mapping):
            raise ValueError("it is not a mapping")
        if type(record.get("schema")) is not int:
            raise ValueError("it has no schema")
        if record["schema"] > SCHEMA:
            raise ValueError(f"its schema {record['schema']} is newer than {SCHEMA}; use the nsa_lib that wrote it")
        if record.get("verdict") not in tuple(STYLES):
            raise ValueError(f"its verdict is none of {', '.join(STYLES)}")
        for name in ("headline", "run_id", "notebook", "profile"):
            if not isinstance(record.get(name), str):
                raise ValueError(f"{name} is not a text")
        for name in ("reasons", "custom"):
            if not isinstance(record.get(name), list) or not all(isinstance(item, str) for item in record[name]):
                raise ValueError(f"{name} is not a list of texts")
        texts = {name: record[name] for name in ("headline", "run_id", "notebook", "profile")}
        lists = {name: tuple(record[name]) for name in ("reasons", "custom")}
        return cls(record["verdict"], **lists, on_trial=str(record.get("on_trial") or ""), **texts)

    @property
    def icon(self) -> str:
        """The sign shown beside the word."""
        return STYLES[self.word][0]

    @property
    def colour(self) -> str:
        """JupyterLab's name of the colour: `success`, `warn` or `error`."""
        return STYLES[self.word][1]

    @property
    def notes(self) -> list[str]:
        """What a reader must know besides the reasons: the profile, what was changed, what a laptop cannot say."""
        notes = [f"On trial: {self.on_trial}."] if self.on_trial else []
        notes += [f"Profile: {self.profile}."] if self.profile else []
        if self.custom:
            notes.append(f"Custom run, differs from the profile in: {', '.join(self.custom)}.")
        if self.profile == "laptop" and self.word == "GO":
            notes.append(LAPTOP_NOTE)
        return notes


def conclude(run, *, command: str, accept_review: bool = False) -> None:
    """Show the verdict of `run` and record it in the notebook; call it once, in the last cell.

    `run` has the `summary` of its run folder, with a `headline`; `command` makes the HTML report, "" if that is made
    anyway.

    Raises VerdictError for anything but GO; for REVIEW only if `accept_review` is off.
    """
    names = ("run_id", "notebook", "profile", "custom", "verdict", "headline", "reasons", "on_trial")
    record = {"schema": SCHEMA, **{name: run.summary[name] for name in names if name in run.summary}}
    verdict = Verdict.from_record(record)
    shown = {MIME: record, "text/html": _notebook_html(verdict), "text/plain": _text(verdict)}
    display(shown, raw=True, metadata=session_mark())
    if command:
        display({COMMAND_MIME: command, "text/html": _command_html(command), "text/plain": _said(command)}, raw=True)
    accepted = ("GO", "REVIEW") if accept_review else ("GO",)
    if verdict.word not in accepted:
        raise VerdictError(f"{verdict.word}: {verdict.headline}")


def read_verdict(nb: NotebookNode) -> Verdict:
    """Return the verdict of a notebook, INCOMPLETE with the reason if anything it rests on is missing or in doubt."""
    outcome = nb.metadata.get(OUTCOME_KEY, {}).get("outcome", FINISHED)
    if outcome != FINISHED:
        return _incomplete(f"the run did not finish: {outcome}")
    cells = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    records = [(cell, output["data"][MIME]) for cell in cells for output in cell.outputs if is_record(output)]
    for cell in cells:
        for output in cell.outputs:
            if output.output_type == "error" and not _is_verdict_error(output, cell, records):
                when = "after a verdict was recorded" if records else "before a verdict"
                return _incomplete(f"stopped {when}: {output.ename}: {output.evalue}".strip(": "))
    unrun = sum(cell.execution_count is None for cell in cells)
    if unrun:
        return _incomplete(f"{unrun} of {len(cells)} code cells did not run")
    if not records:
        return _incomplete("no verdict was recorded")
    if len(records) > 1:
        return _incomplete(f"{len(records)} verdicts were recorded, where one is expected")
    if not _of_one_session(cells, records[0][0]):
        return _incomplete("its outputs are of several sessions; run the notebook from top to bottom in one kernel")
    counts = [cell.execution_count for cell in cells]
    if records[0][0] is not cells[-1] or counts != sorted(set(counts)):
        return _incomplete("cells ran after the verdict or out of order; run the notebook from top to bottom")
    return _recorded_verdict(*records[0])


def _of_one_session(cells: list[NotebookNode], home: NotebookNode) -> bool:
    """Return whether what the notebook shows was shown by the kernel that recorded the verdict."""
    found = sessions(output for cell in cells for output in cell.outputs)
    return not found or found == sessions(filter(is_record, home.outputs))


def wants_verdict(nb: NotebookNode) -> bool:
    """Return whether a report must show a verdict: always, unless the notebook declares that it gives none.

    It declares so in its metadata, `"nsa": {"verdict": false}`. That does not count if it recorded a verdict after all.
    """
    said = nb.metadata.get("nsa")
    silent = isinstance(said, Mapping) and said.get("verdict") is False
    outputs = [output for cell in nb.cells if cell.cell_type == "code" for output in cell.outputs]
    return not silent or any(map(is_record, outputs))


def is_record(output: Mapping) -> bool:
    """Return whether a cell's output holds a verdict record."""
    return MIME in output.get("data", {})


def is_command(output: Mapping) -> bool:
    """Return whether a cell's output tells how to make the report."""
    return COMMAND_MIME in output.get("data", {})


def is_verdict_error(output: Mapping) -> bool:
    """Return whether a cell's output is the line that VerdictError leaves."""
    return output.output_type == "error" and output.ename == VerdictError.__name__


def _is_verdict_error(output: Mapping, cell: NotebookNode, records: list) -> bool:
    return is_verdict_error(output) and any(cell is home for home, _ in records)


def _recorded_verdict(cell: NotebookNode, record: object) -> Verdict:
    try:
        verdict = Verdict.from_record(record)
    except ValueError as error:
        return _incomplete(f"the verdict record cannot be read: {error}")
    if verdict.word == "GO" and any(map(is_verdict_error, cell.outputs)):
        return _incomplete("the verdict record says GO, yet its cell stopped with a VerdictError")
    return verdict


def _incomplete(reason: str) -> Verdict:
    return Verdict("INCOMPLETE", reason.splitlines()[0])


def _text(verdict: Verdict) -> str:
    lines = [f"{verdict.icon} {verdict.word}: {verdict.headline}", *(f"  - {reason}" for reason in verdict.reasons)]
    return folded("\n".join([*lines, *verdict.notes]))


def _said(command: str) -> str:
    return f"HTML report, from any terminal:\n{command}"


COPY = (
    "const s=getSelection();s.selectAllChildren(this.previousElementSibling);document.execCommand('copy');"
    "s.removeAllRanges();this.textContent='copied'"
)
"""Copies the text before a button. The newer clipboard needs https, which a Jupyter on a GPU box seldom has."""


def _command_html(command: str) -> str:
    """Return a command with a button that copies it."""
    button = f'<button type="button" onclick="{COPY}">copy</button>'
    return f"<p>HTML report, from any terminal: <code style='user-select:all'>{escape(command)}</code> {button}</p>"


def _notebook_html(verdict: Verdict) -> str:
    """Return the banner for JupyterLab, in its own colours so that it follows the theme."""
    colour = f"var(--jp-{verdict.colour}-color0)"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    notes = "".join(f"<p style='margin:.3em 0;opacity:.8'>{escape(note)}</p>" for note in verdict.notes)
    return (
        f"<div role='status' style='border-left:6px solid {colour};padding:.4em 1em'>"
        f"<p style='margin:.2em 0;font-size:1.6em;font-weight:700;color:{colour}'>{verdict.icon} {verdict.word}</p>"
        f"<p style='margin:.2em 0;font-size:1.1em'>{escape(verdict.headline)}</p><ul>{reasons}</ul>{notes}</div>"
    )
