"""All that is found of one recorded step, and the JSON that gates read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from nsa_lib.attestation.layer import LayerFound, judge_layer
from nsa_lib.attestation.recording import StepRecord
from nsa_lib.attestation.train_step import (
    AdamW,
    GradientsFound,
    LossFound,
    UpdateFound,
    judge_gradients,
    judge_loss,
    judge_update,
)


@dataclass(frozen=True)
class StepFound:
    """What was found of a step."""

    compared: str
    """Layers, rows and length, in one line."""
    dtype: str | None
    """Of the hidden states that were recorded."""
    layers: list[LayerFound]
    loss: LossFound | None
    gradients: GradientsFound
    update: UpdateFound | None
    """None for a step without one."""

    def to_json(self) -> dict[str, object]:
        """Return it as what `json` can write."""
        return asdict(self)


def judge(
    record: StepRecord,
    loss: float,
    *,
    loss_chunk: int,
    rule: AdamW | None,
    device: str | torch.device = "cpu",
    alive: Callable[[], None] = lambda: None,
) -> StepFound:
    """Judge a recorded step.

    It allocates on `device` and takes seconds: call it when nothing is measured any more.

    Args:
        record: the step.
        loss: what the step returned, in nats.
        loss_chunk: tokens whose logits the run holds at a time.
        rule: the update that was asked for; None for a step without one.
        device: where the judge computes.
        alive: called now and then, for whoever watches.
    """
    layers = [
        judge_layer(index, layer, record.sample, device=device, alive=alive) for index, layer in record.layers.items()
    ]
    return StepFound(
        compared=record.sample.said,
        dtype=None if record.hidden is None else str(record.hidden.dtype).removeprefix("torch."),
        layers=layers,
        loss=judge_loss(record, loss, chunk=loss_chunk, device=device, alive=alive),
        gradients=judge_gradients(record.entries),
        update=None if rule is None else judge_update(record.entries, rule),
    )
