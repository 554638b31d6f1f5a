"""What a user brings for a run, told by three parameters, and the process that tries it before any work.

Nothing of the user's is imported here: her code may print, raise, end its process or never return.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.files import write_text
from nsa_lib.contract.source import PACKAGE
from nsa_lib.runs import environment
from nsa_lib.runs.parameters import Parameter, Value
from nsa_lib.runs.processes import children, end_tree
from nsa_lib.subject.config import BUILT_IN, ConfigError, Own
from nsa_lib.subject.own.spec import is_file, resolved

FORMS = "package.module:name, path/file.py:name or an entry point"

PARAMETERS = {
    "attention": Parameter(str, f"nsa, dense, or yours: {FORMS}", "nsa"),
    "attention_args": Parameter(dict, "what your attention is called with besides the sizes that it names"),
    "model": Parameter(str, f"tinylm, or yours: {FORMS}", "tinylm"),
    "model_args": Parameter(dict, "what your model is called with besides the sizes that it names"),
}
"""The parameters that put a user's attention or model on trial; `backend`, a kernel of hers, stands with the others."""

TRIAL = (sys.executable, "-m", "nsa_lib.worker.own_trial")

TRIAL_LIMIT_S = 300
"""How long a user's code may take to be imported, called and run once."""

PATIENCE_S = 20
"""How much longer its process may take to end."""


class UsersError(ConfigError):
    """A user's code cannot be used: one line, and below it the traceback of her own code."""

    def __init__(self, line: str, user_traceback: str = ""):
        super().__init__(line)
        self.user_traceback = user_traceback

    def _render_traceback_(self) -> list[str]:
        return [f"ConfigError: {self}", *self.user_traceback.splitlines()]


def with_own(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values with every spec as a worker reads it. Raises ConfigError for two at once, or one that is none.

    A user's `attention` or `model` has no selected branch of ours, so a `backend` beside it would be ignored.
    """
    places = environment.user_folders()
    told = {name: values[name] for name in BUILT_IN if name in values and values[name].value is not None}
    read = {name: replace(value, value=resolved(name, str(value.value), places)) for name, value in told.items()}
    own = [name for name, value in read.items() if value.value not in BUILT_IN[name]]
    if own:
        others = [name for name in read if name not in own[:1] and read[name].origin == "given"]
        if others:
            said = ", ".join(f"{name}={read[name].value}" for name in (own[0], *others))
            raise ConfigError(f"{said}: one at a time is on trial; accepts one of {', '.join(BUILT_IN)}")
    for name in ("attention", "model"):
        arguments = values.get(f"{name}_args")
        if arguments is not None and arguments.value is not None and name not in own:
            raise ConfigError(f"{name}_args={arguments.value}: {name}={read[name].value} is ours and takes none")
    return {**values, **read}


def brought(values: Mapping[str, Value]) -> Own | None:
    """Return what a user brings, from values that `with_own` has read, or None."""
    for role, built_in in BUILT_IN.items():
        if role in values and values[role].value is not None and values[role].value not in built_in:
            given = values.get(f"{role}_args")
            spec = str(values[role].value)
            places = () if is_file(spec) else tuple(map(str, environment.user_folders()))
            return Own(role=role, spec=spec, places=places, arguments=(given.value if given else None) or {})
    return None


def try_own(case: CaseConfig) -> dict[str, object]:
    """Load, call and run what a user brings once, in a process of its own, and return what is known of it.

    Raises UsersError, in one line that names parameter, place and Python's reason, if it cannot be used.
    """
    own = case.model.own
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "case.json", case.to_json())
        log = folder / "log"
        command = [*TRIAL, str(folder / "case.json"), str(folder / "outcome.json"), str(TRIAL_LIMIT_S)]
        others = children(os.getpid())
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env=environment.case_environment(case.alloc_conf), stdin=subprocess.DEVNULL, stdout=file,
                stderr=file, start_new_session=True, cwd=folder,
            )  # fmt: skip
            try:
                status = process.wait(TRIAL_LIMIT_S + PATIENCE_S)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                end_tree(process, spare=others)
        said = log.read_text(errors="replace").strip()
        if not (folder / "outcome.json").exists():
            raise UsersError(f"{own.role}={own.spec}: {_how_it_died(status, said)}", _users(said))
        outcome = json.loads((folder / "outcome.json").read_text())
    if "refusal" in outcome:
        raise UsersError(outcome["refusal"], outcome["user_traceback"])
    return outcome


def why_changed(on_trial: Mapping[str, object] | None) -> str:
    """Return why no further case may run what a user brings, because its file is not the one that was tried; or ""."""
    if on_trial is None:
        return ""
    path = Path(str(on_trial["path"]))
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == on_trial["file_sha256"]:
        return ""
    return f"{path} has changed since it was tried; run again"


def _how_it_died(status: int | None, said: str) -> str:
    if status is None or "Timeout (" in said:
        return f"it did not return within {TRIAL_LIMIT_S} s"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    last = (said.splitlines() or [""])[-1]
    how = f"it ended the process with status {status}"
    return f"{how}: {last}" if last else how


def _users(said: str) -> str:
    """Return what a process said before it died, without the frames of a dumped stack that are not the user's."""
    ours = (f'  File "{PACKAGE}{os.sep}', '  File "<frozen ')
    return "\n".join(line for line in said.splitlines() if not line.startswith(ours))
