"""torchrun as the process of a case: `python -m nsa_lib.worker.ranks case.json source_sha256 parent_pid`.

It begins at the first line of its stdin, as a worker does, and hands the arguments on to its ranks. If ranks fail, it
writes failures.json, which says how each of them ended, and exits with 1.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from pathlib import Path

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.files import write_json
from nsa_lib.contract.process import die_with_parent

RANK = "nsa_lib.worker.ranks.rank"

SCHEMA = 1


def main(case_file: Path, source_sha256: str, parent_pid: int) -> None:
    """Start the ranks of a case and wait for them; exit with 1 if one fails."""
    die_with_parent(parent_pid)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not sys.stdin.readline():  # the case is no longer wanted
        return
    case = CaseConfig.from_json(case_file.read_text())
    command = ["--standalone", f"--nproc-per-node={case.ranks}", "--max-restarts=0", "--module", RANK]
    try:
        run.main([*command, str(case_file), source_sha256, str(os.getpid())])
    except ChildFailedError as error:
        failures = {
            str(rank): {"exit_code": failure.exitcode, "at": failure.timestamp}
            for rank, failure in error.failures.items()
        }
        write_json(case_file.with_name("failures.json"), {"schema": SCHEMA, "failures": failures})
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
