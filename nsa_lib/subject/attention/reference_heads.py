"""How the heads of a tensor lie where `reference_rows` takes some groups together. Letters as there."""

from __future__ import annotations

from torch import Tensor


def split_heads(x: Tensor, width: int) -> Tensor:
    """[B, R, h * width] -> [B, h, R, width]."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def folded(x: Tensor, groups: int) -> Tensor:
    """[B, n h, R, width] -> [Bn, h, R, width]."""
    return x.unflatten(1, (groups, -1)).flatten(0, 1)


def unfolded(x: Tensor, groups: int) -> Tensor:
    """[Bn, h, R, width] -> [B, n h, R, width]."""
    return x.unflatten(0, (-1, groups)).flatten(1, 2)


def joined(x: Tensor) -> Tensor:
    """[B, h, R, width] -> [B, R, h * width]."""
    return x.transpose(1, 2).flatten(2)
