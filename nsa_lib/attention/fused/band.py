"""The compressed and the sliding branch: attention to the keys of a band, forward and backward (kernels/band.py)."""

from __future__ import annotations

import torch

from nsa_lib.attention.fused.op import op
from nsa_lib.attention.fused.shape import (
    by_token,
    cdiv,
    empty_by_token,
    power_of_two,
    require,
    rows,
    strides,
    tile_class,
    widths,
)

_SHORT = 4096
"""Queries up to which smaller tiles keep more of a GPU busy."""

_FORWARD = {
    "short": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 4},
    "narrow": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 3, "maxnreg": 128},
    "wide": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 2},
    "float32": {"M": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
}
_QUERY_GRADIENT = {
    "short": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 2, "maxnreg": 128},
    "narrow": {"M": 128, "BN": 64, "num_warps": 8, "num_stages": 3, "maxnreg": 128},
    "wide": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 2},
    "float32": {"M": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
}
_KEY_GRADIENT = {
    "short": {"M": 32, "BN": 64, "num_warps": 4, "num_stages": 2, "maxnreg": 168},
    "narrow": {"M": 32, "BN": 128, "num_warps": 4, "num_stages": 3},
    "wide": {"M": 32, "BN": 64, "num_warps": 4, "num_stages": 3},
    "float32": {"M": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
}
_PROGRAMS = 700
"""Programs that fill a GPU: compressed keys are few, so their queries are shared out until there are as many."""

_MOST_PARTS = 16


def compressed_attention(
    q: torch.Tensor, k_cmp: torch.Tensor, v_cmp: torch.Tensor, *, l: int, d: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to the compressed tokens (Eq. 8); return the output and each row's log-sum-exp.

    Args:
        q: rotated queries, [B, H, T, D].
        k_cmp: rotated compressed keys, [B, G, C, D].
        v_cmp: compressed values, [B, G, C, d_v].
        l: tokens in a block.
        d: tokens from one block to the next.
        scale: of the logits, above 0.

    Returns:
        [B, H, T, d_v] and float32 [B, H, T] in nats, without gradient; a row that sees no block gives 0 and -inf.
    """
    return _Band.apply(q, k_cmp, v_cmp, d, l - 1, 0, scale)


def sliding_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, w: int, scale: float) -> torch.Tensor:
    """Attend to the last w tokens, own included; arguments and result as in `attention.sliding_attention`."""
    return _Band.apply(q, k, v, 1, 0, w, scale)[0]


class _Band(torch.autograd.Function):
    """Softmax attention to the keys j that end at stride j + offset, at or before a query and less than `window` back.

    A window of 0 has no end.
    """

    @staticmethod
    def forward(ctx, q, k, v, stride, offset, window, scale):
        require(q, k, v)
        q, k, v = rows(q), rows(k), rows(v)
        out = empty_by_token(q, v.shape[-1])
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        _forward(q, k, v, out, lse, stride, offset, window, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.band = stride, offset, window, scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx, d_out, _):
        q, k, v, out, lse = ctx.saved_tensors
        d_out = by_token(d_out)
        delta, dq = torch.empty_like(lse), empty_by_token(q, q.shape[-1])
        _query_gradient(q, k, v, out, d_out, lse, delta, dq, *ctx.band)
        parts = _parts(q, k, v, ctx.band[2])
        dk, dv = (_empty_parts(x, parts) for x in (k, v))
        _key_gradient(q, k, v, d_out, lse, delta, dk, dv, *ctx.band)
        dk, dv = (x[0] if parts == 1 else x.sum(dim=0).to(q.dtype) for x in (dk, dv))
        return dq, dk.transpose(1, 2), dv.transpose(1, 2), None, None, None, None


def _class(q: torch.Tensor, v: torch.Tensor) -> str:
    kind = tile_class(q, v)
    return "short" if kind == "narrow" and q.shape[2] <= _SHORT else kind


def _parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> int:
    """Return into how many shares the queries of a tile of keys go; with a window they are few."""
    if window or k.shape[2] == 0:
        return 1
    tiles = _KEY_GRADIENT[_class(q, v)]
    programs = cdiv(k.shape[2], tiles["BN"]) * k.shape[0] * k.shape[1]
    return min(
        _MOST_PARTS, power_of_two(cdiv(_PROGRAMS, programs), 1), power_of_two(cdiv(q.shape[2], tiles["M"]), 2) // 2
    )


def _empty_parts(x: torch.Tensor, parts: int) -> torch.Tensor:
    """Return a new [parts, B, C, G, width] for the gradient of keys or values, float32 if it is yet to be added up."""
    batch, groups, keys, width = x.shape
    return x.new_empty(parts, batch, keys, groups, width, dtype=x.dtype if parts == 1 else torch.float32)


def _constants(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, stride: int, offset: int, window: int) -> dict:
    share = q.shape[1] // k.shape[1]
    return {"STRIDE": stride, "OFFSET": offset, "WINDOWED": window > 0, "GS": share, **widths(q, v)}


@op(
    "band_forward(Tensor q, Tensor k, Tensor v, Tensor(a!) out, Tensor(b!) lse, "
    "int stride, int offset, int window, float scale)"
)
def _forward(q, k, v, out, lse, stride, offset, window, scale):
    from nsa_lib.attention.fused.kernels.band import band_forward

    (batch, heads, length, _), tiles = q.shape, _FORWARD[_class(q, v)]
    band_forward[batch * heads, cdiv(length, tiles["M"])](
        q, k, v, out, lse, *strides(q, k, v), length, k.shape[2], heads, window, scale,
        **_constants(q, k, v, stride, offset, window), **tiles,
    )  # fmt: skip


@op(
    "band_query_gradient(Tensor q, Tensor k, Tensor v, Tensor out, Tensor d_out, Tensor lse, Tensor(a!) delta, "
    "Tensor(b!) dq, int stride, int offset, int window, float scale)"
)
def _query_gradient(q, k, v, out, d_out, lse, delta, dq, stride, offset, window, scale):
    from nsa_lib.attention.fused.kernels.band import band_query_gradient

    (batch, heads, length, _), tiles = q.shape, _QUERY_GRADIENT[_class(q, v)]
    band_query_gradient[batch * heads, cdiv(length, tiles["M"])](
        q, k, v, out, d_out, lse, delta, dq, *strides(q, k, v), length, k.shape[2], heads, window, scale,
        **_constants(q, k, v, stride, offset, window), **tiles,
    )  # fmt: skip


@op(
    "band_key_gradient(Tensor q, Tensor k, Tensor v, Tensor d_out, Tensor lse, Tensor delta, Tensor(a!) dk, "
    "Tensor(b!) dv, int stride, int offset, int window, float scale)"
)
def _key_gradient(q, k, v, d_out, lse, delta, dk, dv, stride, offset, window, scale):
    from nsa_lib.attention.fused.kernels.band import band_key_gradient

    if k.shape[2] == 0:
        return
    (batch, groups, keys, _), tiles, parts = k.shape, _KEY_GRADIENT[_class(q, v)], len(dk)
    band_key_gradient[batch * groups * parts, cdiv(keys, tiles["BN"])](
        q, k, v, d_out, lse, delta, dk, dv, *strides(q, k, v), q.shape[2], keys, q.shape[1], window, parts, scale,
        **_constants(q, k, v, stride, offset, window), **tiles,
    )  # fmt: skip
