"""All that is found of one recorded step, and the JSON that gates read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

import torch

from nsa_lib.contract.figures import counted
from nsa_lib.worker.attestation.coverage import ATTENTION, BACKWARD, CHOICE, TRAIN_STEP, Part
from nsa_lib.worker.attestation.layer import LayerFound, judge_layer, not_judged
from nsa_lib.worker.attestation.records import StepRecord
from nsa_lib.worker.attestation.shapes import wrong_shapes
from nsa_lib.worker.attestation.train_step import GradientsFound, LossFound, judge_gradients, judge_loss
from nsa_lib.worker.attestation.update import AdamW, UpdateFound, in_words, judge_update

AREAS = (ATTENTION, CHOICE, BACKWARD, TRAIN_STEP)
"""What is found is wrong in one of these."""

ALL_ALIKE = "every token of the step is the same: keys have no gradient but what rounding leaves"


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
    shapes: dict[str, str] = field(default_factory=dict)
    """Parameters that are not those asked for, in a sentence each."""
    coverage: list[Part] = field(default_factory=list)
    """What was compared, and what could not be."""

    @property
    def not_compared(self) -> list[Part]:
        """What could not be compared."""
        return [part for part in self.coverage if part.why_not is not None]

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
            for area, parts in ((ATTENTION, layer.parts), (BACKWARD, layer.gradients)):
                for part, found in parts.items():
                    if not found.ok:
                        yield area, f"{name} {part}", found.said
            if layer.choice is not None and not layer.choice.ok:
                yield CHOICE, f"{name} choice", layer.choice.said
            if layer.input_shape is not None:
                yield ATTENTION, f"{name} input", f"its shape is {list(layer.input_shape)}, not that of the step"
            if layer.recomputed_differently:
                rows = layer.recomputed_differently
                yield ATTENTION, f"{name} recomputation", f"other bits in {counted(rows, 'row')} when computed again"

    def _wrong_step(self) -> Iterator[tuple[str, str, str]]:
        if self.loss is not None:
            for name, said in self.loss.wrong.items():
                yield TRAIN_STEP, name, said
        for name, said in self.shapes.items():
            yield TRAIN_STEP, f"parameter {name}", said
        for kind in ("missing", "not_finite", "zero"):
            for name in getattr(self.gradients, kind):
                yield TRAIN_STEP, f"gradient {name}", kind.replace("_", " ")
        if not self.gradients.norm_ok:
            said = f"{self.gradients.norm:.6g}, but that of the gradients is {self.gradients.exact_norm:.6g}"
            yield TRAIN_STEP, "gradient norm", said
        for name, ratio in (self.update.wrong if self.update else {}).items():
            yield TRAIN_STEP, f"update {name}", in_words(ratio)


def judge(
    record: StepRecord,
    loss: float,
    *,
    grad_norm: float | None = None,
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
        grad_norm: what it returned; None if it is not known.
        step: its number, from 1, which the optimizer must have counted too; None if it is not known.
        loss_chunk: tokens whose logits the run holds at a time.
        rule: the update that was asked for; None for a step without one.
        device: where the judge computes.
        alive: called now and then, for whoever watches.
    """
    shapes = wrong_shapes(record.shapes, record.sample.asked)
    layers = list(_judged_layers(record, shapes, device, alive))
    found_loss = judge_loss(record, loss, chunk=loss_chunk, device=device, alive=alive)
    update = None if rule is None else judge_update(record.entries, rule, step, device=device, alive=alive)
    gradients = judge_gradients(record.entries, grad_norm)
    return StepFound(
        compared=record.sample.said,
        dtype=None if record.hidden is None else str(record.hidden.dtype).removeprefix("torch."),
        layers=layers,
        loss=found_loss,
        gradients=gradients if record.tells_keys_apart else replace(gradients, zero=()),
        update=update,
        shapes=shapes,
        coverage=_coverage(record, layers, found_loss, update),
    )


def _judged_layers(
    record: StepRecord, shapes: Mapping[str, str], device: str | torch.device, alive: Callable[[], None]
) -> Iterator[LayerFound]:
    sample = record.sample if record.tells_keys_apart else replace(record.sample, gradient_layers=())
    for index, layer in record.layers.items():
        if any(name.startswith(f"blocks.{index}.attention.") for name in shapes):
            yield not_judged(index, "its parameters are not those asked for")
        else:
            found = judge_layer(index, layer, sample, device=device, alive=alive)
            if not record.tells_keys_apart:
                found.leave_out(ALL_ALIKE, **{BACKWARD: "d_x"})
            yield found


def _coverage(
    record: StepRecord, layers: list[LayerFound], loss: LossFound | None, update: UpdateFound | None
) -> list[Part]:
    found = [part for layer in layers for part in layer.coverage]
    if record.why_no_layers is not None:
        found += [Part(area, "layers", why_not=record.why_no_layers) for area in (ATTENTION, CHOICE, BACKWARD)]
    found += [] if update is None else [Part(TRAIN_STEP, "update")]
    return found + (loss.coverage if loss else [Part(TRAIN_STEP, "loss", why_not="the final norm was not called")])


def _finite(value: object) -> object:
    """Return it with None in the place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
