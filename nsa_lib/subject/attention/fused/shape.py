"""What the launchers share: layouts, padded widths, and what the kernels can take.

Layout `by token` is [B, T, heads, width] without gaps, seen as [B, heads, T, width]: what a projection leaves, and what
the next one reads.
"""

from __future__ import annotations

import torch

from nsa_lib.subject.config import FUSED_DTYPES, FUSED_WIDEST

_ALIGNED = 16
"""Bytes that a load reads at once; off such a boundary it would read element by element."""

_DTYPES = tuple(getattr(torch, name) for name in FUSED_DTYPES)


def require(*tensors: torch.Tensor) -> None:
    """Raise ValueError, naming the reason, unless the kernels can take the tensors [B, heads, T, width]."""
    for x in tensors:
        if x.dtype not in _DTYPES or x.dtype != tensors[0].dtype:
            raise ValueError(f"backend='fused': dtype {x.dtype}, accepts one of {', '.join(FUSED_DTYPES)} for all")
        if x.shape[-1] > FUSED_WIDEST:
            raise ValueError(f"backend='fused': heads {x.shape[-1]} wide, accepts up to {FUSED_WIDEST}")


def aligned(x: torch.Tensor) -> torch.Tensor:
    """Return x, copied only if its rows have gaps inside or do not lie at multiples of _ALIGNED bytes."""
    lies_so = x.stride(-1) == 1 and not any(step * x.element_size() % _ALIGNED for step in x.stride()[:-1])
    return x if lies_so else x.contiguous()


def by_token(x: torch.Tensor) -> torch.Tensor:
    """Return x [B, heads, T, width] laid out by token, copied only if it is not."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def empty_by_token(like: torch.Tensor, width: int) -> torch.Tensor:
    """Return a new [B, heads, T, width] laid out by token, its dtype and other sizes those of `like`."""
    batch, heads, length, _ = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def empty_outputs(q: torch.Tensor, width: int, branches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return new outputs [branches, B, H, T, width], by token, and float32 log2-sum-exps [branches, B, H, T]."""
    batch, heads, length, _ = q.shape
    outputs = q.new_empty(branches, batch, length, heads, width).transpose(2, 3)
    return outputs, q.new_empty(branches, batch, heads, length, dtype=torch.float32)


def empty_pair(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return new room for the gradients of keys and values [B, G, keys, width]: all of one, then all of the other."""
    return k.new_empty(k.numel() + v.numel())


def two(pair: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients that a pair holds, of the shapes of k and v and laid out by token."""
    parts = pair.split([k.numel(), v.numel()])
    return tuple(part.view(x.transpose(1, 2).shape).transpose(1, 2) for part, x in zip(parts, (k, v), strict=True))


def strides(*tensors: torch.Tensor) -> list[int]:
    """Return the strides over batch, heads and rows of each tensor."""
    return [step for x in tensors for step in x.stride()[:3]]


def power_of_two(size: int, least: int = 16) -> int:
    """Return the smallest power of two that is not below a size or `least`, the shortest side of a product."""
    return max(least, 1 << (size - 1).bit_length())


def widths(q: torch.Tensor, v: torch.Tensor) -> dict[str, object]:
    """Return the constants of a kernel that hang on widths and dtype."""
    d, e = q.shape[-1], v.shape[-1]
    # float32 means float32: without this, Triton would round the factors of a product to TF32.
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    return {"D": d, "DP": power_of_two(d), "E": e, "EP": power_of_two(e), "PRECISION": precision}


def tile_class(q: torch.Tensor, v: torch.Tensor) -> str:
    """Return which tile sizes fit: `float32`, or by the wider head `narrow` (up to 64) or `wide`."""
    if q.dtype == torch.float32:
        return "float32"
    return "narrow" if max(q.shape[-1], v.shape[-1]) <= 64 else "wide"


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)
