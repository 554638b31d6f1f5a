"""Witness a case: record its first, last and one other step as they run, and judge them when nothing is measured.

What code ran is recorded of every case, tensors only of those that are to be attested.

Recorded steps are the case's own, warm-up and last step among them. There is no extra one: code that is wrong in
training alone would know it from the others. Which step between first and last is recorded, the seed decides; and so
that code which behaves only where it is looked at is found, some that were not recorded are taken again (`replay`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace

import torch
from torch import Tensor

from nsa_lib.contract.case import CAPTURED_STEP, CaseConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.subject.training import StepResult
from nsa_lib.worker.attestation.blocks import judge_blocks
from nsa_lib.worker.attestation.blocks_recording import BlocksRecord, recording_blocks
from nsa_lib.worker.attestation.coverage import BLOCKS, TRAIN_STEP
from nsa_lib.worker.attestation.execution import Execution, executing, held_share
from nsa_lib.worker.attestation.followed import Followed
from nsa_lib.worker.attestation.graphs import compiled_graphs
from nsa_lib.worker.attestation.judge import judge
from nsa_lib.worker.attestation.recording import Held, holding, recording
from nsa_lib.worker.attestation.records import StepRecord
from nsa_lib.worker.attestation.replay import Span, span_of
from nsa_lib.worker.attestation.sample import Sample, sample
from nsa_lib.worker.attestation.start import wrong_start
from nsa_lib.worker.attestation.tokens import asked_tokens, wrong_tokens
from nsa_lib.worker.attestation.update import AdamW


class Witness:
    """What is recorded of a case's steps; layers in the first and last, the train step in another one as well.

    Where steps are replays of a CUDA graph, the first of these is recorded too, and all are judged in the same rows.
    It must live as long as that graph, which reads these rows.
    """

    def __init__(self, case: CaseConfig, allocator: Callable[[], Mapping[str, object]]):
        """Begin with a case whose model is made; `allocator` tells the memory setting in force, as a meter does."""
        self._case, self._allocator = case, allocator
        self._records: dict[int, StepRecord] = {}
        self._blocks: dict[int, BlocksRecord] = {}
        self._span = Span(span_of(case.steps, case.seed) if case.attest else range(0))
        follows = case.attest and case.work == "train" and not case.is_launched
        self._followed = Followed(case.seed, AdamW(lr=case.lr) if follows else None)
        self._seeded_with = torch.initial_seed()
        self._executions: dict[int, Execution] = {}
        self._returned: dict[int, tuple[float, float]] = {}
        self._held: Held | None = None
        steps = {1, _inner_step(case), case.steps} | ({CAPTURED_STEP} if case.is_graph else set())
        self.steps = tuple(sorted(step for step in steps if step <= case.steps))
        """The steps that are recorded."""

    @contextmanager
    def watching(
        self, step: int, model: TinyLM, tokens: Tensor, optimizer: torch.optim.Optimizer | None
    ) -> Iterator[None]:
        """Record what runs inside if the step is one of `steps`: the step, from before it to after it is measured."""
        self._span.before(step, model, tokens, optimizer)
        self._followed.before(step, model, optimizer)
        if step not in self.steps:
            yield
            return
        with ExitStack() as watching:
            execution = watching.enter_context(executing(model, optimizer))
            if self._case.attest:
                if self._captures(step):
                    self._held = watching.enter_context(holding(model, self._sample(step)))
                self._record(watching, step, model, tokens, self._sample(step), optimizer)
            yield
        execution.allocator = dict(self._allocator())
        execution.compiled = compiled_graphs() if model.is_compiled else None
        if self._replays(step) and not self._captures(step):
            execution.take_from(self._executions[CAPTURED_STEP])
        self._executions[step] = execution

    def _record(
        self, watching: ExitStack, step: int, model: TinyLM, tokens: Tensor, rows: Sample,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:  # fmt: skip
        held = self._held if self._replays(step) else None
        self._records[step] = watching.enter_context(recording(model, tokens, rows, optimizer, held))
        self._blocks[step] = watching.enter_context(
            recording_blocks(model, tokens, rows, optimizer, is_graph=self._case.is_graph)
        )

    def _replays(self, step: int) -> bool:
        return self._case.is_graph and step >= CAPTURED_STEP

    def _captures(self, step: int) -> bool:
        return self._case.is_graph and step == CAPTURED_STEP

    def _sample(self, step: int) -> Sample:
        rows = self._all_layers(step)
        judged = step in (1, self._case.steps) or self._captures(step)
        return rows if judged else replace(rows, layers=(), gradient_layers=())

    def _all_layers(self, step: int) -> Sample:
        c = self._case
        seed = c.seed + (CAPTURED_STEP if self._replays(step) else step)  # a graph has its rows built in
        rows = sample(c.model, batch=c.batch, length=c.seq_len, seed=seed)
        return rows if c.model.has_reference else replace(rows, layers=(), gradient_layers=())

    @property
    def executed(self) -> list[dict[str, object]]:
        """What ran in the steps recorded so far, as what `json` can write."""
        return [{"step": step, **execution.to_json()} for step, execution in self._executions.items()]

    def returned(
        self, step: int, loss: float, grad_norm: float, model: TinyLM, optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Say what loss, in nats, and gradient norm a step returned."""
        self._returned[step] = loss, grad_norm
        if step in self._executions:  # only now: it calls operators, and those of the step have been counted
            self._executions[step].held_share = held_share(model)
        self._span.after(step, loss, grad_norm, model, optimizer)
        self._followed.after(step, model, optimizer)

    def judge(self, device: str | torch.device, *, alive: Callable[[], None] = lambda: None) -> list[dict[str, object]]:
        """Return what is found of each recorded step, as what `json` can write, and forget the records.

        It allocates on `device`: call it after the last measurement.
        """
        asked = asked_tokens(self._case, self._records)
        found = [self._judged(step, asked[step], device, alive) for step in sorted(self._records)]
        self._records.clear()
        self._blocks.clear()
        return found

    def _judged(
        self, step: int, tokens: Tensor, device: str | torch.device, alive: Callable[[], None]
    ) -> dict[str, object]:
        c, record = self._case, self._records[step]
        blocks = judge_blocks(self._blocks[step], device=device, alive=alive)
        rule = AdamW(lr=c.lr) if c.work == "train" else None
        loss, grad_norm = self._returned[step]
        found = judge(
            record, loss, grad_norm=grad_norm, step=step, loss_chunk=c.loss_chunk, rule=rule, device=device, alive=alive
        )
        wrong = {**found.wrong(), BLOCKS: blocks.wrong}
        wrong[TRAIN_STEP] = wrong_tokens(record.tokens, tokens) | wrong[TRAIN_STEP]
        if step == 1:
            wrong[TRAIN_STEP] |= wrong_start(record, seed=c.seed, seeded_with=self._seeded_with)
        return {
            "step": step,
            **found.to_json(),
            "blocks": {name: part.ratio for name, part in blocks.parts.items()},
            "coverage": [asdict(part) for part in (*found.coverage, *blocks.coverage)],
            "wrong": wrong,
        }

    def replay(
        self,
        model: TinyLM,
        optimizer: torch.optim.Optimizer | None,
        take: Callable[[Tensor], StepResult],
        device: str | torch.device,
        *,
        alive: Callable[[], None] = lambda: None,
    ) -> dict[str, object]:
        """Take some steps again, recorded, and return what came out otherwise, and what the judge finds of one of them.

        It changes the model: call it after everything else.
        """
        steps, draw = self._span.steps, random.Random(f"judged {self._case.seed}")
        model.grad_checkpointing = self._case.grad_checkpointing  # whoever looked at the model may have changed it
        judged = draw.choice(steps) if steps else None

        def watched(step: int, tokens: Tensor) -> StepResult:
            alive()
            with ExitStack() as watching:
                watching.enter_context(executing(model, optimizer))
                self._record(watching, step, model, tokens, self._all_layers(step), optimizer)
                result = take(tokens)
            if step != judged:
                del self._records[step], self._blocks[step]
            self._returned[step] = result.loss.item(), result.grad_norm.item()
            return result

        same, wrong = self._span.again(model, optimizer, watched)
        found = {"steps": list(steps), "same_bits": same, "wrong": wrong | self._followed.wrong, "judged": None}
        found["followed"] = self._followed.steps
        if judged is not None:
            self._keep_one_layer(judged, draw)
            found["judged"] = self._judged(judged, asked_tokens(self._case, [judged])[judged], device, alive)
        return found

    def _keep_one_layer(self, step: int, draw: random.Random) -> None:
        """Leave one layer of a record to be judged: the others were in the first and in the last step."""
        record = self._records[step]
        if record.layers:
            kept = draw.choice(sorted(record.layers))
            record.layers = {kept: record.layers[kept]}
            record.sample = replace(record.sample, layers=(kept,), gradient_layers=(kept,))


def _inner_step(case: CaseConfig) -> int:
    """Return the step between first and last that is recorded, so that code which counts steps cannot know it."""
    return random.Random(f"recorded {case.seed}").randint(2, case.steps - 1) if case.steps > 2 else case.steps
