"""torchrun as the process of a case: `python -m nsa_lib.worker.ranks case.json source_sha256 parent_pid`.

Of a case on several nodes it is one of their agents, and is told HOST:PORT of the rendezvous and the node's number
besides. It begins at the first line of its stdin, as a worker does, and hands the arguments on to its ranks. If ranks
fail, it writes failures.json, which says how each of them ended, and exits with 1.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from pathlib import Path

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.files import write_json
from nsa_lib.contract.nodes import ARRIVAL_S, MEETING_S, failures_file
from nsa_lib.contract.process import die_with_parent

RANK = "nsa_lib.worker.ranks.rank"

SCHEMA = 1


def main(case_file: Path, source_sha256: str, parent_pid: int, rendezvous: str = "", node: int = 0) -> None:
    """Start the ranks of a case on this node and wait for them; exit with 1 if one fails or nodes do not meet."""
    die_with_parent(parent_pid)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousTimeoutError

    if not sys.stdin.readline():  # the case is no longer wanted
        return
    case = CaseConfig.from_json(case_file.read_text())
    command = [f"--nproc-per-node={case.ranks // case.nodes}", "--max-restarts=0", *meeting(case, rendezvous, node)]
    try:
        run.main([*command, "--module", RANK, str(case_file), source_sha256, str(os.getpid()), str(node)])
    except (RendezvousConnectionError, RendezvousTimeoutError) as error:
        sys.exit(f"not all of {case.nodes} nodes met at {rendezvous} ({type(error).__name__})")
    except ChildFailedError as error:
        failures = {
            str(rank): {"exit_code": failure.exitcode, "at": failure.timestamp}
            for rank, failure in error.failures.items()
        }
        write_json(case_file.with_name(failures_file(0)), {"schema": SCHEMA, "failures": failures})
        sys.exit(1)


def meeting(case: CaseConfig, rendezvous: str, node: int) -> list[str]:
    """Return how the nodes of a case find each other, in torchrun's options; node 0 holds the store."""
    if case.nodes == 1:
        return ["--standalone"]
    settings = f"is_host={int(node == 0)},join_timeout={MEETING_S:.0f},read_timeout={ARRIVAL_S:.0f}"
    return [
        f"--nnodes={case.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous}", f"--rdzv-id={case.case_id}",
        f"--rdzv-conf={settings}",
    ]  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:5], *map(int, sys.argv[5:6]))
