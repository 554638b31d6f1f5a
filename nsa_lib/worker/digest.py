"""Short records of what a case computed, by which two cases, or two ranks, can be compared without their tensors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from nsa_lib.subject.distributed import whole

CHUNKS = {"cpu": 2**16, "cuda": 2**20}
"""Elements that are read at a time, by device: what a digest needs besides is 50 bytes for each of them."""

PROJECTIONS = 4
"""Random directions that a tensor is projected on; from their differences its distance from another is estimated."""

MULTIPLIER, INCREMENT = 0x5851F42D4C957F2D, 0x14057B7EF767814F
"""Of Knuth's linear congruential generator MMIX, mod 2^64."""


def hash_of(tensors: Iterable[Tensor]) -> str:
    """Return a hash of the bits of tensors, the same wherever it is computed: any one bit that differs changes it.

    The sum of all elements, as whole numbers, each times an odd number of its place, mod 2^64: the difference of one
    element is multiplied by an odd number, and never becomes 0. It is computed where the tensor is; on the host by
    numpy, in this thread: torch would wake all others for each chunk, and wait for them.
    """
    return _combined(_bits_sum(tensor.detach()) for tensor in tensors)


def _combined(sums: Iterable[int]) -> str:
    total = 0
    for own in sums:
        total = (total * MULTIPLIER + INCREMENT + own) % 2**64
    return f"{total:016x}"


def _bits_sum(tensor: Tensor) -> int:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits, total = tensor.contiguous().view(kinds[tensor.element_size()]).flatten(), 0
    chunk, on_host = CHUNKS[bits.device.type], bits.device.type == "cpu"
    for start in range(0, len(bits), chunk):
        part = bits[start : start + chunk]
        if on_host:
            places, values = np.arange(start, start + len(part)), part.numpy().astype(np.int64)
        else:
            places, values = torch.arange(start, start + len(part), device=part.device), part.long()
        total += int((values * _odd(places)).sum())
    return total


def _odd(places: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Return an odd number for each place, spread over 64 bits: int64 arithmetic wraps around."""
    mixed = places * MULTIPLIER + INCREMENT
    return (mixed ^ (mixed >> 29)) * 2 + 1


def sequences_hash(tokens: Tensor) -> list[str]:
    """Return a hash of each sequence of a batch."""
    return [hash_of([row]) for row in tokens]


def parameters_digest(parameters: Iterable[Tensor], parts: int) -> dict[str, object]:
    """Return a hash of all parameters, and norm and projections of each of `parts` parts of them.

    The parts are those that FSDP2 gives to its ranks: of each parameter a range of rows. All ranks must call it.
    """
    bits: list[int] = []
    sums = [[0.0] * (1 + PROJECTIONS) for _ in range(parts)]
    for number, parameter in enumerate(parameters):
        tensor = whole(parameter.detach())
        bits.append(_bits_sum(tensor))
        for part, rows in enumerate(tensor.chunk(parts)):
            for place, value in enumerate(_projected(rows, number)):
                sums[part][place] += value
    norms = [{"norm": squares**0.5, "projections": projections} for squares, *projections in sums]
    return {"hash": _combined(bits), "parts": norms}


def _projected(rows: Tensor, seed: int) -> list[float]:
    """Return the sum of squares of a tensor, and its products with PROJECTIONS tensors of random signs."""
    found = [0.0] * (1 + PROJECTIONS)
    flat = rows.flatten()
    chunk = CHUNKS[flat.device.type]
    for start in range(0, len(flat), chunk):
        values = flat[start : start + chunk].double()
        places = torch.arange(start, start + len(values), device=values.device)
        found[0] += float(values.square().sum())
        mixed = _odd(places + seed * 2**32)
        for number in range(PROJECTIONS):
            signs = ((mixed >> (40 + number)) & 1) * 2 - 1
            found[1 + number] += float((values * signs).sum())
    return found


def part_norms(gradients: Iterable[Tensor], parts: int) -> list[float]:
    """Return the 2-norm of each of `parts` parts of all gradients together, as `parameters_digest` divides them."""
    rows: list[list[Tensor]] = [[] for _ in range(parts)]
    for gradient in gradients:
        for part, own in enumerate(gradient.chunk(parts)):
            rows[part].append(own)
    norms = [torch.linalg.vector_norm(torch.stack(torch._foreach_norm(own)).float()) for own in rows]
    return torch.stack(norms).tolist()
