"""Witness a case: record its first, middle and last step as they run, and judge them when nothing is measured any more.

What code ran is recorded of every case, tensors only of those that are to be attested.

Recorded steps are the case's own, warm-up and last step among them. There is no extra one: code that is wrong in
training alone, or only where it is not looked at, would know it from the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.attestation.execution import Execution, executing
from nsa_lib.worker.attestation.graphs import compiled_graphs
from nsa_lib.worker.attestation.judge import judge
from nsa_lib.worker.attestation.recording import StepRecord, recording
from nsa_lib.worker.attestation.sample import Sample, sample
from nsa_lib.worker.attestation.train_step import AdamW


class Witness:
    """What is recorded of a case's steps; layers in the first and last, the train step in the middle one as well."""

    def __init__(self, case: CaseConfig, allocator: Callable[[], Mapping[str, object]]):
        """Begin with a case; `allocator` tells the memory setting in force, as a meter does."""
        self._case, self._allocator = case, allocator
        self._records: dict[int, StepRecord] = {}
        self._executions: dict[int, Execution] = {}
        self._losses: dict[int, float] = {}
        self.steps = tuple(sorted({1, (1 + case.steps) // 2, case.steps}))
        """The steps that are recorded."""

    @contextmanager
    def watching(
        self, step: int, model: TinyLM, tokens: Tensor, optimizer: torch.optim.Optimizer | None
    ) -> Iterator[None]:
        """Record what runs inside if the step is one of `steps`: the step, from before it to after it is measured."""
        if step not in self.steps:
            yield
            return
        with ExitStack() as watching:
            execution = watching.enter_context(executing(model, optimizer))
            if self._case.attest:
                record = watching.enter_context(recording(model, tokens, self._sample(step), optimizer))
                self._records[step] = record
            yield
        execution.allocator = dict(self._allocator())
        execution.compiled = compiled_graphs() if model.is_compiled else None
        self._executions[step] = execution

    def _sample(self, step: int) -> Sample:
        c = self._case
        rows = sample(c.model, batch=c.batch, length=c.seq_len, seed=c.seed + step)
        judged = c.model.has_reference and step in (1, c.steps)
        return rows if judged else replace(rows, layers=(), gradient_layers=())

    @property
    def executed(self) -> list[dict[str, object]]:
        """What ran in the steps recorded so far, as what `json` can write."""
        return [{"step": step, **execution.to_json()} for step, execution in self._executions.items()]

    def returned(self, step: int, loss: float) -> None:
        """Say what loss a step returned, in nats."""
        self._losses[step] = loss

    def judge(self, device: str | torch.device, *, alive: Callable[[], None] = lambda: None) -> list[dict[str, object]]:
        """Return what is found of each recorded step, as what `json` can write, and forget the records.

        It allocates on `device`: call it after the last measurement.
        """
        c, found = self._case, []
        rule = AdamW(lr=c.lr) if c.work == "train" else None
        for step, record in sorted(self._records.items()):
            verdict = judge(record, self._losses[step], loss_chunk=c.loss_chunk, rule=rule, device=device, alive=alive)
            found.append({"step": step, **verdict.to_json()})
        self._records.clear()
        return found
