"""Record what a model does around its attention in a training step, from inside: what each block read and made.

Blocks under torch.compile have no hooks, which would be compiled in: the model's call of a block tells what goes in and
out of it, and the attention in it shows itself (`shown`). Not recorded: steps that are one CUDA graph.

Host memory a recorded step: seven tensors [B, T, dim] a sampled layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.attestation.recorder import copied
from nsa_lib.worker.attestation.sample import Sample
from nsa_lib.worker.attestation.shown import INPUT, OUTPUT, listening

GRAPHED = "the step is one CUDA graph: nothing runs between its blocks that could be asked"

SHOWN_AS = {INPUT: "attended", OUTPUT: "attention"}
"""What a compiled attention shows, by the names under which it is kept."""


@dataclass
class BlocksRecord:
    """What the sampled blocks of a model did in a step, by index, and the embedding and the norm around them.

    `kept` holds by block: `x` its input, `attended` what its attention read, `attention` and `output` what attention
    and block returned, `passed` what the next one got, and the gradient of each, `d_<name>`; all [B, T, dim].
    """

    tokens: Tensor
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """Of blocks, norm and embedding, before the update."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[str, Tensor] = field(default_factory=dict)
    """`x` that the final norm read, `output` what it made, and their gradients."""
    why_not: str | None = None


@contextmanager
def recording_blocks(
    model: TinyLM,
    tokens: Tensor,
    sample: Sample,
    optimizer: torch.optim.Optimizer | None,
    *,
    is_graph: bool = False,
) -> Iterator[BlocksRecord]:
    """Record the blocks of the one training step that is taken inside, without changing it."""
    record = BlocksRecord(copied(tokens[:, :-1]), why_not=GRAPHED if is_graph else None)
    if record.why_not or not sample.layers:
        yield record
        return
    names = [name for name, _ in model.named_parameters() if _is_judged(name, sample.layers)]
    record.parameters = {name: copied(model.get_parameter(name)) for name in names}

    def take(*_: object) -> None:
        found = {name: model.get_parameter(name).grad for name in names}
        record.gradients = {name: copied(gradient) for name, gradient in found.items() if gradient is not None}

    with ExitStack() as hooks:
        for handle in _hooked(model, sample.layers, record):
            hooks.callback(handle.remove)
        if model.is_compiled:
            hooks.enter_context(listening(_WhatIsShown(record.kept)))
            hooks.enter_context(_told_by_calls(model, record.kept))
        if optimizer is not None:
            hooks.callback(optimizer.register_step_pre_hook(take).remove)
        yield record
    if optimizer is None:
        take()


def _is_judged(name: str, layers: tuple[int, ...]) -> bool:
    if name in ("embedding.weight", "norm.weight"):
        return True
    block = name.split(".")
    return block[0] == "blocks" and int(block[1]) in layers and block[2] != "attention"


def _hooked(
    model: TinyLM, layers: tuple[int, ...], record: BlocksRecord
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    parts = [*model.blocks, model.norm]
    for index in layers:
        kept, block, following = record.kept.setdefault(index, {}), parts[index], parts[index + 1]
        if not model.is_compiled:
            yield block.register_forward_pre_hook(_keeping_input(kept, "x"))
            yield block.attention.register_forward_pre_hook(_keeping_input(kept, "attended"))
            yield block.attention.register_forward_hook(_keeping_output(kept, "attention"))
            yield block.register_forward_hook(_keeping_output(kept, "output"))
        if not model.is_compiled or following is model.norm:  # the norm is never compiled
            yield following.register_forward_pre_hook(_keeping_input(kept, "passed"))
    yield model.norm.register_forward_pre_hook(_keeping_input(record.hidden, "x"))
    yield model.norm.register_forward_hook(_keeping_output(record.hidden, "output"))


@contextmanager
def _told_by_calls(model: TinyLM, kept: Mapping[int, dict[str, Tensor]]) -> Iterator[None]:
    """Keep what the model hands to each block and gets back, outside of compiled code."""
    original, places = model.run_block, {id(block): index for index, block in enumerate(model.blocks)}

    def run_block(block: nn.Module, x: Tensor, *arguments: object) -> Tensor:
        index = places[id(block)]
        for place, name in ((index, "x"), (index - 1, "passed")):
            if place in kept:
                _keep(kept[place], name, x)
        output = original(block, x, *arguments)
        if index in kept:
            _keep(kept[index], "output", output)
        return output

    model.run_block = run_block
    try:
        yield
    finally:
        model.run_block = original


class _WhatIsShown:
    """Keeps what compiled attention layers show: values of the first pass, gradients of the one that has a backward."""

    def __init__(self, kept: Mapping[int, dict[str, Tensor]]):
        self._kept = kept

    def show(self, layer: int, name: str, value: Tensor, beside: Mapping[str, Tensor]) -> None:
        if layer in self._kept and name in SHOWN_AS and SHOWN_AS[name] not in self._kept[layer]:
            self._kept[layer][SHOWN_AS[name]] = copied(value)

    def show_gradient(self, layer: int, name: str, gradient: Tensor) -> None:
        if layer in self._kept and name in SHOWN_AS:
            self._kept[layer][f"d_{SHOWN_AS[name]}"] = copied(gradient)

    def ran_eagerly(self, layer: int) -> None:
        """Do nothing: what it shows is kept all the same."""


def _keeping_input(kept: dict[str, Tensor], name: str) -> Callable:
    return lambda module, arguments: _keep(kept, name, arguments[0])


def _keeping_output(kept: dict[str, Tensor], name: str) -> Callable:
    return lambda module, arguments, output: _keep(kept, name, output)


def _keep(kept: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Keep a value of the first pass; of the pass that has a backward, its gradient."""
    if name not in kept:
        kept[name] = copied(value)
    if value.requires_grad:
        value.register_hook(lambda gradient: kept.__setitem__(f"d_{name}", copied(gradient)))
