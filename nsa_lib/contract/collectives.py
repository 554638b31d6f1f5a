"""What ranks send each other when their link is measured, and how a bandwidth is made of a time."""

from __future__ import annotations

from dataclasses import dataclass

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter")
"""Of DDP the first; of FSDP2 the other two."""

SIZES_MIB = {"cpu": (1 / 64, 1 / 4, 4), "cuda": (1, 16, 128, 512)}
"""Bytes of the whole tensor, by device."""

ROUNDS = 6
"""Times that each size is sent; the first ones make buffers and connections."""


@dataclass(frozen=True)
class Transfer:
    """One collective over one size."""

    collective: str
    """One of OPERATIONS."""
    size_mib: float
    """Of the tensor that every rank holds before an all-reduce or a reduce-scatter, and after an all-gather."""


def transfers(device: str) -> tuple[Transfer, ...]:
    """Return every transfer of a measurement, in order, each round of it."""
    return tuple(Transfer(name, mib) for name in OPERATIONS for mib in SIZES_MIB[device] for _ in range(ROUNDS))


def bus_gb_per_s(transfer: Transfer, seconds: float, ranks: int) -> float:
    """Return the bandwidth of the link that a transfer used, in 10^9 bytes a second, as NCCL's tests define it.

    Each rank must send (ranks - 1) / ranks of the tensor, in an all-reduce twice: a bound that no algorithm is under,
    so that the figure can stand beside the rate of the link.
    """
    passes = 2 if transfer.collective == "all_reduce" else 1
    return passes * (ranks - 1) / ranks * transfer.size_mib * 2**20 / seconds / 1e9
