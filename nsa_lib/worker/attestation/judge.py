"""All that is found of one recorded step, and the JSON that gates read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch

from nsa_lib.worker.attestation.layer import LayerFound, judge_layer
from nsa_lib.worker.attestation.records import StepRecord
from nsa_lib.worker.attestation.train_step import (
    AdamW,
    GradientsFound,
    LossFound,
    UpdateFound,
    judge_gradients,
    judge_loss,
    judge_update,
)

AREAS = ("attention", "choice", "backward", "train_step")
"""What is found is wrong in one of these: outputs of branches and layers; selected blocks; gradients inside layers; the
loss and its gradients, the gradients of all parameters, the update."""


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
    not_compared: dict[str, str] = field(default_factory=dict)
    """What could not be compared, with the reason."""

    def wrong(self) -> dict[str, dict[str, str]]:
        """Return what is wrong, by area: {name: what was found, in a sentence}."""
        found: dict[str, dict[str, str]] = {area: {} for area in AREAS}
        for area, name, said in (*self._wrong_layers(), *self._wrong_step()):
            found[area][name] = said
        return found

    def to_json(self) -> dict[str, object]:
        """Return it as what `json` can write; a number that is not finite is None."""
        return _finite({**asdict(self), "wrong": self.wrong()})

    def _wrong_layers(self) -> Iterator[tuple[str, str, str]]:
        for layer in self.layers:
            name = f"layer {layer.layer + 1}"
            for part, found in layer.parts.items():
                if not found.ok:
                    yield "backward" if part.startswith("d_") else "attention", f"{name} {part}", found.said
            if layer.choice is not None and not layer.choice.ok:
                yield "choice", f"{name} choice", layer.choice.said
            if layer.input_shape is not None:
                yield "attention", f"{name} input", f"its shape is {list(layer.input_shape)}, not that of the step"
            if layer.recomputed_differently:
                rows = layer.recomputed_differently
                yield "attention", f"{name} recomputation", f"{rows} rows have other bits when computed again"

    def _wrong_step(self) -> Iterator[tuple[str, str, str]]:
        if self.loss is not None:
            for name, said in self.loss.wrong.items():
                yield "train_step", name, said
        for kind in ("missing", "not_finite", "zero"):
            for name in getattr(self.gradients, kind):
                yield "train_step", f"gradient {name}", kind.replace("_", " ")
        for name, ratio in (self.update.wrong if self.update else {}).items():
            times = "not finite, or not made at all" if ratio is None else f"{ratio:.3g} times what rounding explains"
            yield "train_step", f"update {name}", f"its distance from AdamW's rule is {times}"


def judge(
    record: StepRecord,
    loss: float,
    *,
    step: int | None = None,
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
        step: its number, from 1, which the optimizer must have counted too; None if it is not known.
        loss_chunk: tokens whose logits the run holds at a time.
        rule: the update that was asked for; None for a step without one.
        device: where the judge computes.
        alive: called now and then, for whoever watches.
    """
    layers = [
        judge_layer(index, layer, record.sample, device=device, alive=alive) for index, layer in record.layers.items()
    ]
    found_loss = judge_loss(record, loss, chunk=loss_chunk, device=device, alive=alive)
    return StepFound(
        compared=record.sample.said,
        dtype=None if record.hidden is None else str(record.hidden.dtype).removeprefix("torch."),
        layers=layers,
        loss=found_loss,
        gradients=judge_gradients(record.entries),
        update=None if rule is None else judge_update(record.entries, rule, step),
        not_compared=_not_compared(record, layers, found_loss),
    )


def _not_compared(record: StepRecord, layers: list[LayerFound], loss: LossFound | None) -> dict[str, str]:
    """Return what could not be compared, with the reason."""
    found = {f"layer {one.layer + 1} {part}": why for one in layers for part, why in one.not_compared.items()}
    if record.why_no_layers is not None:
        found["layers"] = record.why_no_layers
    if loss is None:
        return found | {"loss": "the final norm was not called"}
    return found | loss.not_compared


def _finite(value: object) -> object:
    """Return it with None in the place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
