"""How layers under torch.compile show what they make: by an operator that is in their graphs for the whole run.

A hook that is set for a recorded step would be compiled in, and that step run other code than all others. So layers get
hooks and an `observe`, before they are compiled, that put this operator into their graphs: at their input, at their
output, and where the branches have been mixed. It hands what it is given to whoever listens, which is the case in
recorded steps alone, and returns a copy: without one, compilers would leave it out. The operator of its backward does
the same with the gradient. It changes nothing, so it may stand in a checkpointed region, and is called again by the
recomputation.

Cost a layer and step: three copies of a tensor of the layer's width in each pass, two in backward, and on the host a
call of Python for each: 12 compiled layers of S = 2,048 took 5 of 52 ms a step on an H200, in a CUDA graph 0.2 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from nsa_lib.subject.attention import NSAttention
from nsa_lib.subject.model import TinyLM
from nsa_lib.subject.own.attention import OwnAttention

INPUT, MIXED, OUTPUT = SHOWN = "x", "mixed", "output"
"""Names under which a layer shows its input, the gated sum of its branches, and its output."""


class Listener(Protocol):
    """Who is told what layers show."""

    def show(self, layer: int, name: str, value: Tensor, beside: Mapping[str, Tensor]) -> None:
        """Take notice of a value that a layer goes on with, and of what it made beside it."""

    def show_gradient(self, layer: int, name: str, gradient: Tensor) -> None:
        """Take notice of the gradient of a value."""

    def ran_eagerly(self, layer: int) -> None:
        """Take notice that a layer ran as Python, and not as compiled code."""


_listeners: list[Listener] = []
_layers: dict[int, int] = {}
"""Layers by the addresses of the tensors that stand for them."""


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let somebody be told what layers show inside."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def show_always(model: TinyLM) -> None:
    """Let the layers of a model show what they make from now on. Call it before they are compiled.

    Of a user's attention only input and output are known; dense layers and those of a user's model show nothing.
    """
    for index, attention in enumerate(model.attention_layers):
        if not isinstance(attention, NSAttention | OwnAttention):
            continue
        shown = _Shown(index)
        attention.register_forward_pre_hook(shown.input)
        attention.register_forward_hook(shown.output)
        if isinstance(attention, NSAttention):
            attention.observe = shown


def shows_always(attention: nn.Module) -> bool:
    """Return whether a layer does."""
    return isinstance(getattr(attention, "observe", None), _Shown)


def shown_by(layer: nn.Module) -> tuple[str, ...]:
    """Return the names under which a layer shows values."""
    return SHOWN if isinstance(layer, NSAttention) else (INPUT, OUTPUT)


class _Shown:
    """What puts the operator into one layer."""

    def __init__(self, layer: int):
        # A tensor: a number would be a constant of the graph, and each layer be compiled by itself. It is known by its
        # address: to read its value would be an operator of recorded steps alone.
        self._layer = torch.tensor([layer])
        _layers[self._layer.data_ptr()] = layer

    def __call__(self, name: str, value: Tensor, **beside: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            _say_eager(self._layer)
        return torch.ops.nsa_worker.shown(value, list(beside.values()), self._layer, ",".join((name, *beside)))

    def input(self, module: nn.Module, arguments: tuple) -> tuple:
        return self(INPUT, arguments[0]), *arguments[1:]

    def output(self, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        return self(OUTPUT, output)


def _say_eager(layer: Tensor) -> None:
    for listener in _listeners:
        listener.ran_eagerly(_layers[layer.data_ptr()])


def _show(value: Tensor, beside: Sequence[Tensor], layer: Tensor, names: str) -> Tensor:
    if _listeners:
        name, *others = names.split(",")
        for listener in _listeners:
            listener.show(_layers[layer.data_ptr()], name, value, dict(zip(others, beside, strict=True)))
    return value.clone()


def _show_gradient(gradient: Tensor, layer: Tensor, names: str) -> Tensor:
    for listener in _listeners:
        listener.show_gradient(_layers[layer.data_ptr()], names.partition(",")[0], gradient)
    return gradient.clone()


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    _, beside, layer, ctx.names = inputs
    ctx.others = len(beside)
    ctx.save_for_backward(layer)


def _backward(ctx, gradient: Tensor) -> tuple:
    (layer,) = ctx.saved_tensors
    return torch.ops.nsa_worker.shown_gradient(gradient, layer, ctx.names), [None] * ctx.others, None, None


_LIBRARY = torch.library.Library("nsa_worker", "DEF")
_LIBRARY.define("shown(Tensor value, Tensor[] beside, Tensor layer, str names) -> Tensor")
_LIBRARY.define("shown_gradient(Tensor gradient, Tensor layer, str names) -> Tensor")
_LIBRARY.impl("shown", _show, "CompositeExplicitAutograd")
_LIBRARY.impl("shown_gradient", _show_gradient, "CompositeExplicitAutograd")
torch.library.register_fake("nsa_worker::shown", lambda value, *_: value.clone(), lib=_LIBRARY)
torch.library.register_fake("nsa_worker::shown_gradient", lambda gradient, *_: gradient.clone(), lib=_LIBRARY)
torch.library.register_autograd("nsa_worker::shown", _backward, setup_context=_keep, lib=_LIBRARY)
