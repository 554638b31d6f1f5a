"""Block 0, which every query reads: several programs share the gradient of its keys and values, to be added up."""

from __future__ import annotations

import torch

from nsa_lib.subject.attention.fused.shape import cdiv, power_of_two, two

_MOST_SHARES = 32


def empty_shares(k: torch.Tensor, v: torch.Tensor, l_sel: int) -> torch.Tensor:
    """Return a new float32 [B * G, shares, l_sel, d_k + d_v] for shares of the gradient of keys and values."""
    batch, groups, length, d_k = k.shape
    shares = min(_MOST_SHARES, power_of_two(cdiv(length, l_sel), 1))
    return k.new_empty(batch * groups, shares, l_sel, d_k + v.shape[-1], dtype=torch.float32)


def add_shares(pair: torch.Tensor, shares: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Write the sum of the shares, always in the same order, into block 0 of a pair (see `empty_pair`)."""
    blocks = shares.sum(dim=1).unflatten(0, k.shape[:2]).split([k.shape[-1], v.shape[-1]], dim=-1)
    for gradient, block in zip(two(pair, k, v), blocks):
        here = gradient[:, :, : block.shape[2]]
        here.copy_(block[:, :, : here.shape[2]])
