"""Record what code a training step runs, from inside the step: backend and passes of every layer, dtypes, devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from unittest.mock import patch

import torch
from torch import nn
from torch.autograd.profiler import record_function

from nsa_lib.subject.attention.protocol import ROUTE_PREFIX
from nsa_lib.subject.model import TinyLM


@dataclass
class Execution:
    """What ran in one step."""

    routes: list[list[str]]
    """For each layer the backends that its passes entered, as the running code named itself, each once."""
    passes: list[int]
    """For each layer how often forward ran: twice with checkpointing."""
    dtypes: dict[str, list[str]] = field(default_factory=dict)
    """Of `parameters`, `gradients`, `optimizer` state and `activations`."""
    devices: list[str] = field(default_factory=list)
    """Kinds of device that hold the parameters."""
    detects_anomalies: bool = False
    """Whether autograd's anomaly detection was in force in forward."""
    allocator: dict[str, object] = field(default_factory=dict)
    """The `setting` that the memory allocator obeyed, and its options; what torch does not tell is left out."""
    compiled: dict[str, object] | None = None
    """What torch.compile made up to the end of the step (`graphs`); None where layers are not compiled."""

    def to_json(self) -> dict[str, object]:
        """Return it as what `json` can write."""
        return asdict(self)


@contextmanager
def executing(model: TinyLM, optimizer: torch.optim.Optimizer | None) -> Iterator[Execution]:
    """Record what a step inside executes. Hooks count passes; a range that is entered tells its name and layer.

    Layers under torch.compile cannot be seen: a hook would be compiled in. Theirs stay without routes and passes.
    """
    layers = model.attention_layers
    found = Execution(routes=[[] for _ in layers], passes=[0] * len(layers))
    running: list[int] = []
    enter = record_function.__enter__

    def entered(self: record_function) -> record_function:
        route = self.name.removeprefix(ROUTE_PREFIX)
        if running and route != self.name and route not in found.routes[running[-1]]:
            found.routes[running[-1]].append(route)
        return enter(self)

    with ExitStack() as hooks:
        if not model.is_compiled:
            hooks.enter_context(patch.object(record_function, "__enter__", entered))
            for index, layer in enumerate(layers):
                hooks.enter_context(_counted(layer, index, running, found))
        hooks.callback(model.norm.register_forward_hook(_noting_output(found, model)).remove)
        yield found
    _note_tensors(model, optimizer, found)


@contextmanager
def _counted(layer: nn.Module, index: int, running: list[int], found: Execution) -> Iterator[None]:
    def begin(*_: object) -> None:
        running.append(index)
        found.passes[index] += 1

    def end(*_: object) -> None:
        running.pop()

    handles = layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noting_output(found: Execution, model: TinyLM):
    def note(module: nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        if model.head is not None:  # a user's logits may be wider than what they are made of
            found.dtypes["activations"] = [_name(output.dtype)]
        found.detects_anomalies = torch.is_anomaly_enabled()

    return note


def _note_tensors(model: TinyLM, optimizer: torch.optim.Optimizer | None, found: Execution) -> None:
    parameters = list(model.parameters())
    states = optimizer.state.values() if optimizer else ()
    held = {
        "parameters": parameters,
        "gradients": [parameter.grad for parameter in parameters if parameter.grad is not None],
        # `step` counts, in float32 whatever the state is.
        "optimizer": [x for state in states for name, x in state.items() if name != "step"],
    }
    found.dtypes |= {what: sorted({_name(x.dtype) for x in tensors}) for what, tensors in held.items()}
    found.devices = sorted({parameter.device.type for parameter in parameters})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
