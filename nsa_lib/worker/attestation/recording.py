"""Record what a training step computes, from inside the step, without changing it.

The step is a measured one, the very step that trains the model: there is no second call of the code on trial. Hooks on
the sampled layers copy, as it passes, the input x and the gradient of the output whole, and the rows that are judged of
all else. Copies lie on the host: on CUDA nothing is allocated on the device, on the CPU the copies are made where the
memory meter does not look, so a recorded step has the peak that it has without them, and the same operators. It takes
longer by the copies: its time is no figure of the run.

With checkpointing a layer runs twice. What it made the first time is recorded, and whether the rows of its output are
the same bits the second time; the gradients belong to the second.

Not recorded: layers under torch.compile. A hook on them would be compiled in, and the run be another. Of a compiled
step only the final hidden states, the loss, gradients and updates are judged.

Host memory a recorded step: two tensors [B, T, dim] and the block choice [B, G, T, n_sel] a sampled layer, and two of
[B, T, dim] for the loss.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nsa_lib.subject.attention import NSAttention
from nsa_lib.subject.config import NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.attestation.sample import Sample

RUNS = 4
RUN_ENTRIES = 64
"""Of each parameter, and of its optimizer state, so many runs of so many neighbouring entries are followed."""
STATE = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class LayerRecord:
    """What one attention layer did in a step."""

    config: NSAConfig
    backend: str
    parameters: dict[str, Tensor]
    """Before the update."""
    passes: int = 0
    """Times that forward ran."""
    x: Tensor | None = None
    """Input, [B, T, dim]."""
    shown: dict[str, Tensor] = field(default_factory=dict)
    """What the layer showed on its way, rows alone: `cmp`, `slc`, `win`, `branch_gates`; all rows of `blocks`."""
    output: Tensor | None = None
    """Rows of the output, [B, R, dim]."""
    recomputed: Tensor | None = None
    """The same rows of the last pass, if there were several."""
    d_output: Tensor | None = None
    """Gradient of the output, [B, T, dim]."""
    d_x: Tensor | None = None
    """Rows of the gradient of x, [B, R, dim]."""
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    """Of the parameters."""


@dataclass
class Entries:
    """Some entries of a parameter: values and optimizer state before and after the update, and the gradient."""

    starts: tuple[int, ...]
    """First entry of each run."""
    before: dict[str, Tensor]
    gradient: Tensor | None = None
    after: dict[str, Tensor] = field(default_factory=dict)
    largest_gradient: float | None = None
    """Largest |gradient| of the whole parameter; NaN if one is, None without a gradient."""
    trained: bool = True
    """Whether it wants a gradient."""


@dataclass
class StepRecord:
    """What a training step did."""

    sample: Sample
    labels: Tensor
    """[B, T]."""
    head: Tensor | None
    """Before the update, [vocab, dim]; None where the hidden states are logits."""
    layers: dict[int, LayerRecord]
    entries: dict[str, Entries]
    why_no_layers: str | None = None
    """Why none is recorded."""
    hidden: Tensor | None = None
    """What the head reads, [B, T, dim]."""
    d_hidden: Tensor | None = None
    d_head: Tensor | None = None
    why_no_d_head: str = "no gradient reached the head"


@contextmanager
def recording(
    model: TinyLM, tokens: Tensor, sample: Sample, optimizer: torch.optim.Optimizer | None = None
) -> Iterator[StepRecord]:
    """Record the one training step that is taken inside; the record is whole when the context ends.

    Args:
        model: in training. Layers are recorded if they are NSAttention and not compiled.
        tokens: of the step, [B, T + 1].
        sample: which layers and rows.
        optimizer: the step's; None for a step without update.
    """
    with _disable_current_modes():
        record = _prepared(model, tokens, sample, optimizer)
    with ExitStack() as hooks:
        hooks.enter_context(_removed(model.norm.register_forward_hook(partial(_record_hidden, record))))
        for index, layer in record.layers.items():
            hooks.enter_context(_watched(model.blocks[index].attention, layer, sample))
        take = partial(_take_gradients, model, record)
        if optimizer is not None:
            hooks.enter_context(_removed(optimizer.register_step_pre_hook(lambda *_: take())))
        yield record
    if optimizer is None:
        take()
    with _disable_current_modes():
        for name, parameter in model.named_parameters():
            record.entries[name].after = _values(parameter, optimizer, record.entries[name].starts)


def _prepared(model: TinyLM, tokens: Tensor, sample: Sample, optimizer: torch.optim.Optimizer | None) -> StepRecord:
    """Return the record of what is known before the step."""
    why = _why_no_layers(model)
    return StepRecord(
        sample,
        labels=_copied(tokens[:, 1:]),
        head=None if model.head is None else _copied(model.head.weight),
        layers={} if why else {i: _layer_record(model.blocks[i].attention) for i in sample.layers},
        entries=_entries(model, tokens, optimizer),
        why_no_layers=why,
    )


def _why_no_layers(model: TinyLM) -> str | None:
    if model.is_compiled:
        return "compiled: a hook on a layer would be compiled in, and the run be another"
    layers = model.attention_layers
    if not layers or not isinstance(layers[0], NSAttention):
        return "the reference knows NSAttention alone"
    return None


@contextmanager
def _watched(attention: NSAttention, layer: LayerRecord, sample: Sample) -> Iterator[None]:
    """Record into `layer` what an attention layer does inside."""

    def show(name: str, value: Tensor) -> None:
        if layer.passes == 0:
            layer.shown[name] = _whole_choice(value) if name.startswith("block") else _rows(value, sample, dim=2)

    attention.observe = show
    try:
        with _removed(attention.register_forward_hook(partial(_record_pass, layer, sample))):
            yield
    finally:
        attention.observe = None


def _record_pass(layer: LayerRecord, sample: Sample, module: nn.Module, arguments: tuple, output: Tensor) -> None:
    x = arguments[0]
    layer.passes += 1
    if layer.passes == 1:
        layer.x, layer.output = _copied(x), _rows(output, sample, dim=1)
    else:
        layer.recomputed = _rows(output, sample, dim=1)
    if output.requires_grad:
        output.register_hook(lambda gradient: setattr(layer, "d_output", _copied(gradient)))
    if x.requires_grad:
        x.register_hook(lambda gradient: setattr(layer, "d_x", _rows(gradient, sample, dim=1)))


def _record_hidden(record: StepRecord, module: nn.Module, arguments: tuple, output: Tensor) -> None:
    record.hidden = _copied(output)
    if output.requires_grad:
        output.register_hook(lambda gradient: setattr(record, "d_hidden", _copied(gradient)))


def _take_gradients(model: TinyLM, record: StepRecord) -> None:
    """Copy the gradients as the optimizer finds them."""
    for index, layer in record.layers.items():
        parameters = model.blocks[index].attention.named_parameters()
        layer.gradients = {n: None if p.grad is None else _copied(p.grad) for n, p in parameters if p.requires_grad}
    if model.head is not None and _is_shared(model, model.head.weight):
        record.why_no_d_head = "its weight is an embedding too, and holds the gradients of both"
    elif model.head is not None and model.head.weight.grad is not None:
        record.d_head = _copied(model.head.weight.grad)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            entries = record.entries[name]
            entries.gradient = _taken(parameter.grad, entries.starts)
            with _disable_current_modes():
                entries.largest_gradient = float(torch.linalg.vector_norm(parameter.grad.detach(), ord=torch.inf))


def _is_shared(model: TinyLM, weight: Tensor) -> bool:
    return sum(one is weight for _, one in model.named_parameters(remove_duplicate=False)) > 1


def _layer_record(attention: NSAttention) -> LayerRecord:
    parameters = {name: _copied(parameter) for name, parameter in attention.named_parameters()}
    return LayerRecord(attention.config, attention.backend, parameters)


def _entries(model: TinyLM, tokens: Tensor, optimizer: torch.optim.Optimizer | None) -> dict[str, Entries]:
    """Choose the entries that are followed: both ends, random runs, and for a row a token those of some tokens."""
    draw, found = random.Random(0), {}
    some = [int(token) for token in _copied(tokens[0, :RUNS])]
    for name, parameter in model.named_parameters():
        last = max(0, parameter.numel() - RUN_ENTRIES)
        starts = {0, last, *(draw.randint(0, last) for _ in range(RUNS - 2))}
        if model.head is not None and parameter.dim() == 2 and len(parameter) == len(model.head.weight):
            starts |= {min(last, token * parameter.shape[1]) for token in some}
        starts = tuple(sorted(starts))
        found[name] = Entries(starts, _values(parameter, optimizer, starts), trained=parameter.requires_grad)
    return found


def _values(
    parameter: nn.Parameter, optimizer: torch.optim.Optimizer | None, starts: tuple[int, ...]
) -> dict[str, Tensor]:
    """Return a parameter's entries, and those of its optimizer state where there is one, by name."""
    state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    held = {"parameter": parameter, **{name: state[name] for name in STATE if name in state}}
    return {name: _taken(x, starts) if x.numel() == parameter.numel() else _copied(x) for name, x in held.items()}


def _taken(x: Tensor, starts: tuple[int, ...]) -> Tensor:
    """Copy some runs of entries, one after the other: each is contiguous, so that the device allocates nothing."""
    with _disable_current_modes():
        flat = x.detach().reshape(-1)
        return torch.cat([flat[start : start + RUN_ENTRIES].to("cpu", copy=True) for start in starts])


def _copied(x: Tensor) -> Tensor:
    """Copy a tensor to the host, where no meter looks."""
    with _disable_current_modes():
        return x.detach().to("cpu", copy=True)


def _rows(x: Tensor, sample: Sample, *, dim: int) -> Tensor:
    """Copy the judged rows of a tensor to the host; of one that is too short, those that there are."""
    with _disable_current_modes():
        positions = torch.tensor(sample.positions)
        return x.detach().cpu().index_select(dim, positions[positions < x.shape[dim]])


def _whole_choice(blocks: Tensor) -> Tensor:
    """Copy a choice of blocks to the host; as int32, half of what int64 takes."""
    with _disable_current_modes():
        return blocks.detach().to("cpu", copy=True).to(torch.int32)


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Remove a hook at the end."""
    try:
        yield
    finally:
        handle.remove()
