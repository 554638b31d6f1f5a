"""Faults of one rank over NCCL, on a machine with two GPUs: `python -m tests.worker.ranks.on_gpus RESULTS.json`.

Each case is supervised as in a run. It prints a line a fault, and exits with 1 if a rank was not named.
"""

import json
import sys
import tempfile
from pathlib import Path

from tests.worker.ranks.cases import run_pair

EXPECTED = {
    "none": ("ok", ""),
    "sigkill": ("crashed", "rank 1: killed by SIGKILL"),
    "oom": ("oom", "rank 1: "),
    "hang_forward": ("stalled", "rank 1 has not entered it"),
    "hang_collective": ("stalled", "rank 1 has not entered it"),
    "mismatched_shapes": (None, "rank 1 entered"),
}
"""By fault the status, and what the reason must hold; NCCL may hang, fail or go on with what it got."""

TRIED = {"ddp": tuple(EXPECTED), "fsdp2": ("none", "hang_forward", "mismatched_shapes")}


def main(path):
    """Run the faults and write what came of them."""
    found = []
    for strategy, faults in TRIED.items():
        for fault in faults:
            status, words = EXPECTED[fault]
            with tempfile.TemporaryDirectory() as folder:
                result = run_pair(Path(folder), device="cuda", strategy=strategy, fault=fault, profile_operators=False)
                flights = {p.parent.name: json.loads(p.read_text()) for p in Path(folder).glob("rank*/flight.json")}
            right = status in (None, result["status"]) and words in result["reason"]
            told = {name: result[name] for name in ("status", "reason", "seconds", "steps_done", "stderr_tail")}
            last = {rank: flight["entries"][-5:] for rank, flight in flights.items()}
            found.append({"strategy": strategy, "fault": fault, "right": right, **told, "last_collectives": last})
            print("ok " if right else "NOT", strategy, fault, result["status"], result["reason"], flush=True)
            path.write_text(json.dumps(found, indent=1))
    return 0 if all(one["right"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
