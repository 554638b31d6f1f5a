"""The group of ranks that a process belongs to, as torchrun's environment tells torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.files import write_json
from nsa_lib.contract.nodes import PLACE_FILE
from nsa_lib.contract.origin import case_sha256

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""What carries the collectives, by device."""


@contextmanager
def joined(case: CaseConfig) -> Iterator[int]:
    """Join the other ranks of a case, on a device of this rank's own; give its rank, and leave after the last step."""
    own = {}
    if case.device == "cuda":
        device = torch.device("cuda", distributed.get_node_local_rank())
        torch.cuda.set_device(device)
        own = {"device_id": device}
    distributed.init_process_group(BACKENDS[case.device], **own)
    yield distributed.get_rank()
    distributed.barrier()  # a rank that leaves while others still send breaks their connections
    distributed.destroy_process_group()


def case_folder(case: CaseConfig, own: Path, node: int, source_sha256: str) -> Path:
    """Return node 0's folder of a case, in which all ranks leave their files; on other nodes note where it is.

    All ranks must call it, with their node's folder of the case. Raises RuntimeError if the nodes run other sources or
    cases, or do not share a disk.
    """
    if case.nodes == 1:
        return own
    told: list[tuple] = [()] * case.ranks
    case_hash = case_sha256((own / "case.json").read_text())
    distributed.all_gather_object(told, (node, str(own), {"source": source_sha256, "case": case_hash}))
    expected = next(of for number, _, of in told if number == 0)
    for number, _, of in told:
        if differ := [name for name in of if of[name] != expected[name]]:
            raise RuntimeError(f"node {number} has another {' and '.join(differ)} than node 0")
    shared = Path(next(path for number, path, _ in told if number == 0))
    if node != 0:
        if not (shared / "case.json").exists():
            raise RuntimeError(
                f"node {node} does not see {shared} of node 0: out_dir must lie on a disk that all share"
            )
        write_json(own / PLACE_FILE, {"folder": str(shared)})
    return shared


def rank_and_count() -> tuple[int, int]:
    """Return this process's rank and how many there are: 0 of 1 for a process that torchrun did not start."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
