"""What is recorded of a step so that ranks, and cases with other numbers of them, can be compared step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch

from nsa_lib.contract.case import FSDP2, CaseConfig
from nsa_lib.subject.distributed import own_part
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import digest
from nsa_lib.worker.ranks.share import OwnTime

PERIOD = 10
"""Steps from one digest of the parameters to the next."""


class StepRecorder:
    """Records a rank's own time, which data it had, the norms of gradients by part, digests of the parameters.

    Use as a context manager around the steps. A case that is neither launched nor compared leaves nothing.
    """

    def __init__(self, model: TinyLM, case: CaseConfig):
        self._model, self._case = model, case
        self._own_time = OwnTime(model, case.device) if case.is_launched else None
        self._digests: list[dict[str, object]] = []
        self._open = ExitStack()

    def __enter__(self) -> StepRecorder:
        if self._own_time:
            self._open.enter_context(self._own_time)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def figures(self, tokens: torch.Tensor) -> dict[str, object]:
        """Return what a step that has just ended adds to its heartbeat; `tokens` are those of this rank."""
        found: dict[str, object] = {"own_ms": self._own_time.read_ms()} if self._own_time else {}
        if self._case.digest_parts:
            gradients = [own_part(p.grad) for p in self._model.parameters()]
            parts = 1 if self._case.strategy == FSDP2 else self._case.digest_parts
            found |= {"data": digest.sequences_hash(tokens), "part_norms": digest.part_norms(gradients, parts)}
        return found

    def after(self, step: int) -> Iterator[dict[str, object]]:
        """Yield the digests so far, after each PERIOD steps and the last; all ranks do it together."""
        if self._case.digest_parts and (step % PERIOD == 0 or step == self._case.steps):
            found = digest.parameters_digest(self._model.parameters(), self._case.digest_parts)
            self._digests.append({"step": step, **found})
            yield {"digests": self._digests}
