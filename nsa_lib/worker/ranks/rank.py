"""One rank of a case, started by torchrun: `... nsa_lib.worker.ranks.rank case.json source_sha256 torchrun_pid node`.

It leaves heartbeats, result, stderr and, if it fails or is asked to by SIGUSR2, the collectives that it entered, in a
folder of its own. It exits with 1 unless its result is `ok`, so that torchrun ends the others.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from pathlib import Path

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.heartbeat import rank_folder
from nsa_lib.contract.process import die_with_parent
from nsa_lib.contract.source import require_source


def main(case_file: Path, source_sha256: str, parent_pid: int, node: int) -> None:
    """Run this rank's share of the case and write its result."""
    die_with_parent(parent_pid)
    require_source(source_sha256)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # before there are threads: they inherit it
    import torch._dynamo  # noqa: F401

    from nsa_lib.worker.loop import run_to_result
    from nsa_lib.worker.ranks import flights, group

    require_source(source_sha256)  # again: seconds of imports lie between
    case = CaseConfig.from_json(case_file.read_text())
    with group.joined(case) as rank:
        folder = rank_folder(group.case_folder(case, case_file.parent, node, source_sha256), rank)
        folder.mkdir()
        _log_to(folder / "stderr.log")
        flight = folder / "flight.json"
        flights.write_when_asked(flight, signal.SIGUSR2)
        try:
            run_to_result(case_file, folder)
            ended_well = json.loads((folder / "result.json").read_text())["status"] == "ok"
        except BaseException:
            flights.write(flight)
            raise
        if not ended_well:
            flights.write(flight)
            sys.exit(1)  # without leaving the group: the others may wait in a collective


def _log_to(path: Path) -> None:
    """Send stderr to a file from here on, with the stacks that SIGUSR1 asks for."""
    with path.open("ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
