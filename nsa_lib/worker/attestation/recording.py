"""Record what a training step computes, from inside the step, without changing it.

The step is a measured one, the very step that trains the model: there is no second call of the code on trial. Hooks on
the sampled layers copy, as it passes, the input x and the gradient of the output whole, and the rows that are judged of
all else. Copies lie on the host: on CUDA nothing is allocated on the device, on the CPU the copies are made where the
memory meter does not look, so a recorded step has the peak that it has without them, and the same operators. It takes
longer by the copies: its time is no figure of the run.

With checkpointing a layer runs twice. What it made the first time is recorded, and whether the rows of its output are
the same bits the second time; the gradients belong to the second.

Layers under torch.compile show themselves in every step (`shown`); here only somebody listens. Of a step that is one
CUDA graph no Python runs but when it is captured: what is shown then is copied into buffers of the graph (`holding`),
and read from there after a recorded step. These buffers are memory of the run: as much as is said next.

Host memory a recorded step: two tensors [B, T, dim] and the block choice [B, G, T, n_sel] a sampled layer, and two of
[B, T, dim] for the loss.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nsa_lib.subject.attention import NSAttention
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.attestation.recorder import OnDevice, OnHost, Recorder, copied
from nsa_lib.worker.attestation.records import Entries, LayerRecord, StepRecord
from nsa_lib.worker.attestation.sample import Sample
from nsa_lib.worker.attestation.shown import INPUT, OUTPUT, listening, shows_always

RUNS = 16
RUN_ENTRIES = 64
"""Of a parameter, and of its optimizer state, so many runs of so many neighbouring entries are followed."""
WHOLE_ENTRIES = 2**22
"""Entries of parameters that are followed whole in a step, together: all of a small model, of a large one others in
each step."""
STATE = ("exp_avg", "exp_avg_sq", "step")
FROM_A_PASS = ("passes", "x", "shown", "output", "recomputed", "d_output", "d_x")
"""What of a layer's record is shown in a pass."""


@dataclass
class Held:
    """What a captured step shows, in buffers of its graph that each replay fills."""

    layers: dict[int, LayerRecord]
    copies: OnDevice
    """What makes them; replays read the rows that it holds."""
    hidden: Tensor | None = None
    d_hidden: Tensor | None = None


@contextmanager
def recording(
    model: TinyLM,
    tokens: Tensor,
    sample: Sample,
    optimizer: torch.optim.Optimizer | None = None,
    held: Held | None = None,
) -> Iterator[StepRecord]:
    """Record the one training step that is taken inside; the record is whole when the context ends.

    Args:
        model: in training. Layers are recorded if they are NSAttention, and if they show themselves where compiled.
        tokens: of the step, [B, T + 1].
        sample: which layers and rows.
        optimizer: the step's; None for a step without update.
        held: what a captured step shows; the step inside is a replay of it, and `sample` that of `holding`.
    """
    with _disable_current_modes():
        record = _prepared(model, tokens, sample, optimizer)
    take = partial(_take_gradients, model, record)
    with ExitStack() as hooks:
        if held is None:
            _watch(hooks, model, record, OnHost(sample))
            if optimizer is not None:
                hooks.enter_context(_removed(optimizer.register_step_pre_hook(lambda *_: take())))
        yield record
    if held is not None:
        _read(held, record)
    if held is not None or optimizer is None:
        take()
    with _disable_current_modes():
        for name, parameter in model.named_parameters():
            record.entries[name].after = values_at(parameter, optimizer, record.entries[name].places)


@contextmanager
def holding(model: TinyLM, sample: Sample) -> Iterator[Held]:
    """Let the step that is captured inside copy what it shows into buffers of its graph."""
    indices = () if _why_no_layers(model) else sample.layers
    asked = sample.asked
    held = Held(
        {i: LayerRecord(asked.nsa, asked.backend, parameters={}) for i in indices},
        OnDevice(sample, next(model.parameters()).device),
    )
    with ExitStack() as hooks:
        _watch(hooks, model, held, held.copies)
        yield held


def _prepared(model: TinyLM, tokens: Tensor, sample: Sample, optimizer: torch.optim.Optimizer | None) -> StepRecord:
    """Return the record of what is known before the step."""
    why = _why_no_layers(model)
    return StepRecord(
        sample,
        tokens=copied(tokens),
        head=None if model.head is None else copied(model.head.weight),
        layers={} if why else {i: _layer_record(model, i, sample) for i in sample.layers},
        shapes={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
        entries=_entries(model, tokens, sample, optimizer),
        why_no_layers=why,
    )


def _why_no_layers(model: TinyLM) -> str | None:
    layers = model.attention_layers
    if not layers or not isinstance(layers[0], NSAttention):
        return "the reference knows NSAttention alone"
    if model.is_compiled and not shows_always(layers[0]):
        return "compiled without what shows it: a hook on a layer would be compiled in, and the run be another"
    return None


def _watch(hooks: ExitStack, model: TinyLM, record: StepRecord | Held, copies: OnHost | OnDevice) -> None:
    """Copy what the sampled layers and the final norm show into `record` until `hooks` are closed."""
    recorder = Recorder(record.layers, copies)
    if model.is_compiled:
        hooks.enter_context(listening(recorder))
    else:
        for index in record.layers:
            hooks.enter_context(_shown_to(recorder, index, model.blocks[index].attention))
    hooks.enter_context(_removed(model.norm.register_forward_hook(partial(_record_hidden, record, copies))))


@contextmanager
def _shown_to(recorder: Recorder, index: int, attention: NSAttention) -> Iterator[None]:
    """Let a layer that runs eagerly show what it makes to a recorder."""

    def show(name: str, value: Tensor, **beside: Tensor) -> Tensor:
        recorder.show(index, name, value, beside)
        if value.requires_grad and name in (INPUT, OUTPUT):
            value.register_hook(lambda gradient: recorder.show_gradient(index, name, gradient))
        return value

    def before(module: nn.Module, arguments: tuple) -> None:
        show(INPUT, arguments[0])

    def after(module: nn.Module, arguments: tuple, output: Tensor) -> None:
        show(OUTPUT, output)

    attention.observe = show
    try:
        with (
            _removed(attention.register_forward_pre_hook(before)),
            _removed(attention.register_forward_hook(after)),
        ):
            yield
    finally:
        attention.observe = None


def _record_hidden(
    record: StepRecord | Held, copies: OnHost | OnDevice, module: nn.Module, arguments: tuple, output: Tensor
) -> None:
    record.hidden = copies.whole(output)
    if output.requires_grad:
        output.register_hook(lambda gradient: setattr(record, "d_hidden", copies.whole(gradient)))


def _read(held: Held, record: StepRecord) -> None:
    """Copy what a replay left in the buffers of its graph."""

    def on_host(x: object) -> object:
        if isinstance(x, dict):
            return {name: on_host(y) for name, y in x.items()}
        return copied(x) if isinstance(x, Tensor) else x

    for index, layer in record.layers.items():
        for name in FROM_A_PASS:
            setattr(layer, name, on_host(getattr(held.layers[index], name)))
    record.hidden, record.d_hidden = on_host(held.hidden), on_host(held.d_hidden)


def _take_gradients(model: TinyLM, record: StepRecord) -> None:
    """Copy the gradients as the optimizer finds them."""
    for index, layer in record.layers.items():
        parameters = model.blocks[index].attention.named_parameters()
        layer.gradients = {n: None if p.grad is None else copied(p.grad) for n, p in parameters if p.requires_grad}
    if model.head is not None and _is_shared(model, model.head.weight):
        record.why_no_d_head = "its weight is an embedding too, and holds the gradients of both"
    elif model.head is not None and model.head.weight.grad is not None:
        record.d_head = copied(model.head.weight.grad)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            entries = record.entries[name]
            entries.gradient = runs_of(parameter.grad, entries.places)
            with _disable_current_modes():
                wide = torch.promote_types(parameter.grad.dtype, torch.float32)
                entries.gradient_norm = float(torch.linalg.vector_norm(parameter.grad.detach(), dtype=wide))
                entries.largest_gradient = float(torch.linalg.vector_norm(parameter.grad.detach(), ord=torch.inf))


def _is_shared(model: TinyLM, weight: Tensor) -> bool:
    return sum(one is weight for _, one in model.named_parameters(remove_duplicate=False)) > 1


def _layer_record(model: TinyLM, index: int, sample: Sample) -> LayerRecord:
    attention, asked = model.blocks[index].attention, sample.asked
    parameters = {name: copied(parameter) for name, parameter in attention.named_parameters()}
    return LayerRecord(asked.nsa, asked.backend, parameters, is_compiled=model.is_compiled)


def _entries(
    model: TinyLM, tokens: Tensor, sample: Sample, optimizer: torch.optim.Optimizer | None
) -> dict[str, Entries]:
    """Choose the entries that are followed: of some parameters all, of the others some runs."""
    draw, left, found = random.Random(repr(sample)), WHOLE_ENTRIES, {}
    some = [int(token) for token in copied(tokens[0, :RUNS])]
    parameters = list(model.named_parameters())
    for name, parameter in draw.sample(parameters, len(parameters)):
        rows = some if model.head is not None and parameter.shape == model.head.weight.shape else []
        is_whole = parameter.numel() <= left
        left -= parameter.numel() if is_whole else 0
        places = (slice(None),) if is_whole else _runs(parameter, rows, draw)
        values = values_at(parameter, optimizer, places)
        found[name] = Entries(places, values, parameter.numel(), trained=parameter.requires_grad)
    return {name: found[name] for name, _ in parameters}


def _runs(parameter: nn.Parameter, rows: list[int], draw: random.Random) -> tuple[slice, ...]:
    """Return runs of entries: at both ends, at random, and at the beginnings of some rows."""
    last = max(0, parameter.numel() - RUN_ENTRIES)
    starts = {0, last, *(draw.randint(0, last) for _ in range(RUNS - 2))}
    starts |= {min(last, row * parameter.shape[-1]) for row in rows}
    return tuple(slice(start, start + RUN_ENTRIES) for start in sorted(starts))


def values_at(
    parameter: nn.Parameter, optimizer: torch.optim.Optimizer | None, places: tuple[slice, ...]
) -> dict[str, Tensor]:
    """Return a parameter's entries, and those of its optimizer state where there is one, by name."""
    state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    held = {"parameter": parameter, **{name: state[name] for name in STATE if name in state}}
    return {name: runs_of(x, places) if x.numel() == parameter.numel() else copied(x) for name, x in held.items()}


def runs_of(x: Tensor, places: tuple[slice, ...]) -> Tensor:
    """Copy some runs of entries, one after the other: each is contiguous, so that the device allocates nothing."""
    with _disable_current_modes():
        flat = x.detach().reshape(-1)
        return torch.cat([flat[place].to("cpu", copy=True) for place in places])


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Remove a hook at the end."""
    try:
        yield
    finally:
        handle.remove()
