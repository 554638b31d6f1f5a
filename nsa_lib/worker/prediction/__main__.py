"""Predictions in their own process, started by `runs.predictor`.

It writes prediction.json beside the case.json of each case, one after the other: the prediction, or the reason why
there is none. Any other failure goes to stderr and ends it, and the predictor notices what is missing. It has the
lowest priority, so that it never delays the case that it runs beside.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nsa_lib.contract.process import die_with_parent
from nsa_lib.contract.source import require_source

LOWEST_PRIORITY = 19


def main(parent_pid: int, source_sha256: str, compute_capability: str, folder: Path, case_ids: list[str]) -> None:
    """Predict each case of a folder and write what came of it."""
    die_with_parent(parent_pid)
    require_source(source_sha256)
    os.nice(LOWEST_PRIORITY)
    # torch only now, as in a worker: its import takes seconds.
    from nsa_lib.worker.prediction.predict import predict_to_file

    for case_id in case_ids:
        predict_to_file(folder / "cases" / case_id / "case.json", compute_capability)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]), sys.argv[5:])
