"""Predict the memory of cases, in processes of lowest priority beside the cases that run.

A prediction that fails leaves its reason and nothing else. It is advice: no run waits long for it, or ends for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nsa_lib.contract.files import write_json
from nsa_lib.contract.source import package_sha256
from nsa_lib.runs import environment

SCHEMA = 1

COMMAND = (sys.executable, "-m", "nsa_lib.worker.prediction")

POLL_S = 0.1

HOPPER = "9.0"
"""Compute capability that is assumed where there is no device."""


class Predictor:
    """Processes that write prediction.json beside the case.json of each case of a folder."""

    def __init__(self, folder: Path, case_ids: Sequence[str], facts: Mapping[str, object], *, processes: int = 1):
        """Start. `facts` are those of the machine; with n processes, each takes every n-th case."""
        folder = folder.resolve()
        self._paths = [folder / "cases" / case_id / "prediction.json" for case_id in case_ids]
        self._log = folder / "prediction.log"
        capability = str(facts.get("compute_capability") or HOPPER)
        shares = [case_ids[first::processes] for first in range(processes)]
        with self._log.open("wb") as log:
            self._processes = [
                subprocess.Popen(
                    [*COMMAND, str(os.getpid()), package_sha256(), capability, str(folder), *share],
                    env=environment.prediction_environment(),
                    cwd=folder,  # and not the user's, whose modules are not the real ones
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                for share in shares
                if share
            ]

    @property
    def done(self) -> int:
        """Cases that have their prediction, or the reason why there is none."""
        return sum(path.exists() for path in self._paths)

    @property
    def pids(self) -> list[int]:
        """Ids of its processes."""
        return [process.pid for process in self._processes]

    def wait(
        self,
        patience_s: float,
        *,
        stopped: Callable[[], bool],
        watch: Callable[[int], None] = lambda n: None,
        each: bool = False,
    ) -> None:
        """Wait for the processes to end, `patience_s` at most, and less if `stopped` says so; `watch` sees `done`.

        With `each` that is the patience with each prediction, and not with all: many of a deep model, on a machine
        that has much else to do, may take any time.
        """
        deadline, seen = time.monotonic() + patience_s, self.done
        while any(p.poll() is None for p in self._processes) and time.monotonic() < deadline and not stopped():
            watch(self.done)
            if each and self.done > seen:
                deadline, seen = time.monotonic() + patience_s, self.done
            time.sleep(POLL_S)

    def end(self) -> None:
        """End the processes, and leave the reason for each case that has no prediction."""
        in_time = all(process.poll() is not None for process in self._processes)
        for process in self._processes:
            process.kill()  # it has no children, and leaves nothing half-written
            process.wait()
        said = self._log.read_text(errors="replace").strip().splitlines()
        reason = (said[-1] if said else "its process ended without one") if in_time else "it was not ready in time"
        for path in self._paths:
            if not path.exists():
                write_json(path, {"schema": SCHEMA, "reason": reason})
