"""Hash what a training computes while it runs: every loss, and of some steps what layers made and all parameters.

Outputs and choices of blocks are copied to the host as they pass, where no meter looks, and hashed there. Gradients and
parameters are hashed where they lie, between steps, a chunk at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.files import write_json
from nsa_lib.contract.fingerprint import FILE, SCHEMA, fingerprint_steps, made_of, why_not_deterministic
from nsa_lib.subject.attention import NSAttention
from nsa_lib.subject.distributed import own_part
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.digest import hash_of
from nsa_lib.worker.places import here


class FingerprintRecorder:
    """Records the fingerprint of a training, step by step; of one that asks for none, nothing.

    Layers are the first, a middle and the last. Where they are compiled there is nothing to look at in them.
    """

    def __init__(self, model: TinyLM, case: CaseConfig):
        self._model = model
        self._steps = fingerprint_steps(case.steps) if case.fingerprint else ()
        layers = model.attention_layers
        indices = sorted({0, len(layers) // 2, len(layers) - 1}) if layers and not case.compile else []
        self._layers = {index: layers[index] for index in indices}
        self._losses: list[str] = []
        self._found: dict[str, dict[str, object]] = {}

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Hash what layers make in the step inside, if it is one of those that are recorded."""
        if step not in self._steps:
            yield
            return
        layers: dict[str, dict[str, str]] = {str(index): {} for index in self._layers}
        self._found[str(step)] = {"layers": layers}
        with ExitStack() as hooks:
            for index, attention in self._layers.items():
                hooks.enter_context(_hashing(attention, layers[str(index)]))
            yield

    def after(self, step: int, loss: float) -> None:
        """Take notice of a step that has ended, with its loss in nats. The gradients are still there."""
        if not self._steps:
            return
        self._losses.append(struct.pack(">d", loss).hex())
        if step in self._steps:
            with _disable_current_modes():
                for index, attention in self._layers.items():
                    gradients = [own_part(p.grad) for p in attention.parameters() if p.grad is not None]
                    self._found[str(step)]["layers"][str(index)]["gradients"] = hash_of(gradients)
                parameters = hash_of(own_part(p.detach()) for p in self._model.parameters())
            self._found[str(step)]["parameters"] = parameters

    @property
    def found(self) -> dict[str, object]:
        """What was recorded so far: `losses` and `steps`, as `contract.fingerprint` says."""
        return {"losses": self._losses, "steps": self._found}


@contextmanager
def _hashing(attention: nn.Module, found: dict[str, str]) -> Iterator[None]:
    """Put into `found` the hashes of a layer's output and choice, of its first pass inside."""

    def after(module: nn.Module, arguments: tuple, output: Tensor) -> None:
        if "output" not in found:
            found["output"] = _hash(output)

    with ExitStack() as undone:
        undone.callback(attention.register_forward_hook(after).remove)
        if isinstance(attention, NSAttention):
            undone.callback(setattr, attention, "observe", attention.observe)
            attention.observe = _choosing(attention.observe, found)
        yield


def _choosing(others: object, found: dict[str, str]) -> object:
    """Return an `observe` that hashes the choice of blocks, and passes all on to who observes already."""

    def observe(name: str, value: Tensor, **beside: Tensor) -> Tensor:
        for part, made in beside.items():
            if part.startswith("block") and "choice" not in found:
                found["choice"] = _hash(made)
        return value if others is None else others(name, value, **beside)

    return observe


def _hash(x: Tensor) -> str:
    with _disable_current_modes():
        return hash_of([x.detach().to("cpu", copy=True)])


def write_fingerprint(folder: Path, case: CaseConfig, facts: Mapping[str, object], found: Mapping[str, object]) -> None:
    """Write the fingerprint of a case, or of a rank of it, into its folder.

    Args:
        folder: of the case, or of the rank.
        case: what ran.
        facts: its origin, and `on_trial` if it has a user's code.
        found: `losses` and `steps`, and what else is known.
    """
    why_not = why_not_deterministic(case)
    where = {"host": facts["host"], "gpu_uuid": facts["gpu_uuid"], "place": here(case.device)}
    told = {"of": made_of(case, facts), "deterministic": not why_not, "why_not": why_not, "where": where}
    write_json(folder / FILE, {"schema": SCHEMA, **told, "again": [], **found})
