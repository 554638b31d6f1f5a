"""Tiles by tensor descriptors: the copy engine (TMA) of compute capability 9.0 fetches them and reckons the addresses.

Kernels that can read either way have a constant TMA, set in the row of their table that is for such a device: with it
they are given descriptors, without it the tensors themselves.
"""

from __future__ import annotations

from functools import cache

import torch

from nsa_lib.subject.attention.fused.shape import power_of_two, tile_class

_MAJOR = 9
_ALIGNED = 16
"""Bytes at whose multiples a described tensor begins; `shape.aligned` sees to its strides."""


def takes(*tensors: torch.Tensor) -> bool:
    """Return whether tiles of the tensors come through descriptors: their device has a copy engine, and all suit it.

    It takes none that is empty, begins off a boundary, or is one row seen as many. float32 goes without hurry.
    """

    def suits(x: torch.Tensor) -> bool:
        repeats = any(step == 0 and size > 1 for step, size in zip(x.stride(), x.shape, strict=True))
        return x.dtype != torch.float32 and x.numel() > 0 and x.data_ptr() % _ALIGNED == 0 and not repeats

    return has_engine(tensors[0]) and all(map(suits, tensors))


def has_engine(x: torch.Tensor) -> bool:
    """Return whether the device of x has the copy engine."""
    return x.is_cuda and _major(x.device) == _MAJOR


def described(x: torch.Tensor, rows: int):
    """Return a descriptor of x [B, heads, T, width], aligned, that hands out `rows` rows of a head, 0 beyond the last.

    A tile is as wide as a power of two; it is 0 beyond the width too.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, power_of_two(x.shape[-1])])


def row(table: dict[str, dict], *read: torch.Tensor) -> dict:
    """Return the row of a table for what is read, keys and values last, and whether it is read by TMA."""
    by = ", TMA" if takes(*read) else ""
    return {"TMA": bool(by), **table[tile_class(*read[-2:]) + by]}


def sources(tma: bool, rows: int, *tensors: torch.Tensor) -> list:
    """Return what a kernel reads tiles of so many rows from: descriptors of the tensors, or the tensors themselves."""
    return [described(x, rows) for x in tensors] if tma else list(tensors)


@cache
def _major(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]
