"""One case in a process of its own: `python -m nsa_lib.worker case.json source_sha256 parent_pid`.

It begins at the first line of its stdin: the runner starts it ahead, so that its imports are done when its turn comes.
It appends heartbeats to heartbeat.jsonl. If it gets to an end that it can name, it writes result.json and exits with 0.
The runner deals with every other end: tracebacks of exceptions and stacks of signals go to stderr.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
from pathlib import Path

from nsa_lib.contract.process import die_with_parent
from nsa_lib.contract.source import require_source


def main(case_file: Path, source_sha256: str, parent_pid: int) -> None:
    """Run the case and write its result. Exits before any work if this is not the source of that hash."""
    die_with_parent(parent_pid)
    require_source(source_sha256)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)
    # torch only now: its import takes seconds, in which the process must already be bound to its parent. Optimizers and
    # dispatch modes import torch._dynamo when they are first used; here it costs no case its time.
    import torch._dynamo  # noqa: F401

    from nsa_lib.worker.loop import run_to_result

    if sys.stdin.readline():  # end of file means that the case is no longer wanted
        require_source(source_sha256)  # again: seconds of imports, and a wait, lie between
        run_to_result(case_file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
