"""Record what code a training step runs, from inside the step: backend and passes of every layer, dtypes, devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from unittest.mock import patch

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.utils._python_dispatch import _disable_current_modes

from nsa_lib.subject.attention.protocol import ROUTE_PREFIX
from nsa_lib.subject.distributed import own_part
from nsa_lib.subject.model import TinyLM
from nsa_lib.subject.own.model import OwnModel
from nsa_lib.worker.attestation.shown import listening, shown_by


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
    held_share: float | None = None
    """Share of the parameters that this process holds, less than 1 where ranks share them; asked after the step."""
    detects_anomalies: bool = False
    """Whether autograd's anomaly detection was in force in forward."""
    allocator: dict[str, object] = field(default_factory=dict)
    """The `setting` that the memory allocator obeyed, and its options; what torch does not tell is left out."""
    eager_layers: list[int] = field(default_factory=list)
    """Layers, from 0, that ran as Python although they are to be compiled."""
    compiled: dict[str, object] | None = None
    """What torch.compile made up to the end of the step (`graphs`); None where layers are not compiled."""

    def take_from(self, captured: Execution) -> None:
        """Take over what a captured step executed: of its replays no Python runs, and they can do nothing else."""
        self.routes, self.passes, self.eager_layers = captured.routes, captured.passes, captured.eager_layers
        self.detects_anomalies = captured.detects_anomalies
        self.dtypes |= {what: found for what, found in captured.dtypes.items() if what == "activations"}

    def to_json(self) -> dict[str, object]:
        """Return it as what `json` can write."""
        return asdict(self)


@contextmanager
def executing(model: TinyLM, optimizer: torch.optim.Optimizer | None) -> Iterator[Execution]:
    """Record what a step inside executes. Hooks count passes; a range that is entered tells its name and layer.

    Layers under torch.compile are seen if they show themselves (`shown`), as operators of their graphs.
    """
    layers = model.attention_layers
    found = Execution(routes=[[] for _ in layers], passes=[0] * len(layers))
    running: list[int] = []
    forward_ended: list[bool] = []
    enter = record_function.__enter__

    def entered(self: record_function) -> record_function:
        route = self.name.removeprefix(ROUTE_PREFIX)
        if running and route != self.name and route not in found.routes[running[-1]]:
            found.routes[running[-1]].append(route)
        return enter(self)

    with ExitStack() as hooks:
        hooks.enter_context(patch.object(record_function, "__enter__", entered))
        if model.is_compiled:
            hooks.enter_context(listening(_Passing(running, found, layers)))
        else:
            for index, layer in enumerate(layers):
                hooks.enter_context(_counted(layer, index, running, found))
                if isinstance(model, OwnModel):
                    hooks.enter_context(_recomputed(layer, index, forward_ended, found))
        hooks.callback(model.norm.register_forward_hook(_noting_output(found, model)).remove)
        hooks.callback(model.norm.register_forward_hook(lambda *_: forward_ended.append(True)).remove)
        yield found
    _note_tensors(model, optimizer, found)


class _Passing:
    """Counts the passes of layers that show themselves, and says which one is running: the one that showed last.

    A compiler may keep a part of a layer from one pass to the other: as many passes count as each part has run.
    """

    def __init__(self, running: list[int], found: Execution, layers: Sequence[nn.Module]):
        self._running, self._found = running, found
        self._shown = [dict.fromkeys(shown_by(layer), 0) for layer in layers]

    def show(self, layer: int, name: str, value: torch.Tensor, beside: Mapping[str, torch.Tensor]) -> None:
        self._running[:] = [layer]
        self._shown[layer][name] += 1
        self._found.passes[layer] = min(self._shown[layer].values())

    def show_gradient(self, layer: int, name: str, gradient: torch.Tensor) -> None:
        """Do nothing: a gradient is no pass."""

    def ran_eagerly(self, layer: int) -> None:
        self._found.eager_layers = sorted({*self._found.eager_layers, layer})


@contextmanager
def _counted(layer: nn.Module, index: int, running: list[int], found: Execution) -> Iterator[None]:
    def begin(*_: object) -> None:
        running.append(index)
        found.passes[index] += 1

    def end(*_: object) -> None:
        running.pop()

    # Recomputation ends by an exception as soon as it has what it needs.
    handles = layer.register_forward_pre_hook(begin), layer.register_forward_hook(end, always_call=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recomputed(layer: nn.Module, index: int, forward_ended: Sequence[bool], found: Execution) -> Iterator[None]:
    """Count a pass in backward that only a layer's parts tell of.

    A user's model may checkpoint inside a layer's call, past the hooks of the layer: `transformers` does.
    """
    called = {"layer": False, "parts": False}

    def noting(what: str) -> Callable[..., None]:
        def note(*_: object) -> None:
            called[what] |= bool(forward_ended)

        return note

    handles = [
        part.register_forward_pre_hook(noting("layer" if part is layer else "parts")) for part in layer.modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        found.passes[index] += called["parts"] and not called["layer"]


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


def held_share(model: TinyLM) -> float:
    """Return the share of the parameters that this process holds. It calls operators where they are sharded."""
    with _disable_current_modes():
        held = sum(own_part(parameter.detach()).numel() for parameter in model.parameters())
    return held / sum(parameter.numel() for parameter in model.parameters())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
