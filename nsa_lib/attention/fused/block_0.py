"""Block 0, which every query reads: several programs share the gradient of its keys and values, to be added up."""

from __future__ import annotations

import torch

from nsa_lib.attention.fused.shape import cdiv, power_of_two

_MOST_SHARES = 32


def empty_shares(pair: torch.Tensor, l_sel: int) -> torch.Tensor:
    """Return a new float32 [B * G, shares, l_sel, width] for the shares of a gradient [B, G, T, width]."""
    batch, groups, length, width = pair.shape
    shares = min(_MOST_SHARES, power_of_two(cdiv(length, l_sel), 1))
    return pair.new_empty(batch * groups, shares, l_sel, width, dtype=torch.float32)


def add_shares(pair: torch.Tensor, shares: torch.Tensor) -> None:
    """Write the sum of the shares, always in the same order, into block 0 of a gradient [B, G, T, width]."""
    block = shares.sum(dim=1).unflatten(0, pair.shape[:2])
    pair[:, :, : shares.shape[2]] = block[:, :, : pair.shape[2]]
