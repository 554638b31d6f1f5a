"""Copies of what layers show, on the host or in buffers of a CUDA graph, and who makes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nsa_lib.worker.attestation.records import LayerRecord
from nsa_lib.worker.attestation.sample import Sample
from nsa_lib.worker.attestation.shown import INPUT, OUTPUT

BY_UNION = "by_union"

OF_CHOICE = ("blocks", "block_bits", BY_UNION)
"""What tells of the choice, and is kept of all queries."""


def copied(x: Tensor) -> Tensor:
    """Copy a tensor to the host, where no meter looks."""
    with _disable_current_modes():
        return x.detach().to("cpu", copy=True)


class OnHost:
    """Copies on the host, where no meter looks and nothing of the device is taken."""

    def __init__(self, sample: Sample):
        self._sample = sample

    def whole(self, x: Tensor) -> Tensor:
        return copied(x)

    def rows(self, x: Tensor, dim: int) -> Tensor:
        """Copy the judged rows of a tensor; of one that is too short, those that there are."""
        with _disable_current_modes():
            positions = torch.tensor(self._sample.positions)
            return x.detach().cpu().index_select(dim, positions[positions < x.shape[dim]])


class OnDevice:
    """Copies on the device of what is copied, as a CUDA graph can make them."""

    def __init__(self, sample: Sample, device: torch.device):
        self._positions = torch.tensor(sample.positions, device=device)

    def whole(self, x: Tensor) -> Tensor:
        return x.detach().clone()

    def rows(self, x: Tensor, dim: int) -> Tensor:
        return x.detach().index_select(dim, self._positions)


class Recorder:
    """Fills the records of layers with what they show."""

    def __init__(self, layers: Mapping[int, LayerRecord], copies: OnHost | OnDevice):
        self._layers, self._copies = layers, copies

    def show(self, index: int, name: str, value: Tensor, beside: Mapping[str, Tensor]) -> None:
        if (layer := self._layers.get(index)) is None:
            return
        if name == INPUT:
            layer.passes += 1
            layer.x = self._copies.whole(value) if layer.x is None else layer.x
        elif name == OUTPUT and layer.output is None:
            layer.output = self._copies.rows(value, 1)
        elif name == OUTPUT:
            layer.recomputed = self._copies.rows(value, 1)
        for part, made in beside.items():
            if part not in layer.shown:
                layer.shown[part] = self._whole_choice(made) if part in OF_CHOICE else self._copies.rows(made, 2)

    def show_gradient(self, index: int, name: str, gradient: Tensor) -> None:
        if (layer := self._layers.get(index)) is None:
            return
        if name == INPUT:
            layer.d_x = self._copies.rows(gradient, 1)
        elif name == OUTPUT:
            layer.d_output = self._copies.whole(gradient)

    def ran_eagerly(self, index: int) -> None:
        """Do nothing: what it shows is recorded all the same."""

    def _whole_choice(self, blocks: Tensor) -> Tensor:
        """Copy a choice of blocks; as int32, half of what int64 takes."""
        copied = self._copies.whole(blocks)
        with _disable_current_modes():
            return copied.to(torch.int32)
