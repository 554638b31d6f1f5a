"""The compressed and the sliding branch: attention to the keys of a band, forward and backward (kernels/band.py)."""

from __future__ import annotations

import torch

from nsa_lib.subject.attention.fused import tma
from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, power_of_two, strides, tile_class, widths
from nsa_lib.subject.config import NSAConfig

_SHORT = 4096
"""Queries up to which other tiles of queries keep more of a GPU busy."""

_MEDIUM = 16384
"""Queries up to which smaller tiles of compressed keys do; with a window they always do."""

_FORWARD = {
    "short": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 4},
    "narrow": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 3, "maxnreg": 128},
    "wide": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 2},
    "float32": {"M": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
    "narrow, TMA": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 3},
    "narrow, window, TMA": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 2},
    "wide, TMA": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 3},
}
_QUERY_GRADIENT = {
    "short": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 3},
    "narrow": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 3, "maxnreg": 168},
    "wide": {"M": 128, "BN": 64, "num_warps": 8, "num_stages": 3},
    "float32": {"M": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
    "narrow, TMA": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 3},
    "wide, TMA": {"M": 128, "BN": 64, "num_warps": 8, "num_stages": 3},
    "wide, window, TMA": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 2},
}
_KEY_GRADIENT = {
    "short": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 1},
    "narrow": {"M": 32, "BN": 128, "num_warps": 4, "num_stages": 3},
    "wide": {"M": 64, "BN": 128, "num_warps": 8, "num_stages": 1},
    "narrow, window": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 1},
    "wide, window": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 1},
    "float32": {"M": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
    "narrow, TMA": {"M": 128, "BN": 64, "num_warps": 4, "num_stages": 2},
    "wide, TMA": {"M": 64, "BN": 128, "num_warps": 8, "num_stages": 2},
    "wide, window, TMA": {"M": 32, "BN": 64, "num_warps": 4, "num_stages": 3},
}
"""By class of tile (see `tile_class`); the rows of TMA are for compute capability 9.0, the others for all before."""

_PROGRAMS = 700
"""Programs that fill a GPU: compressed keys are few, so their queries are shared out until there are as many."""

_MOST_PARTS = 16


def compressed(config: NSAConfig) -> tuple[int, int, int, float]:
    """Return stride, offset, window and scale of the compressed branch: a block once it has ended (Eq. 8)."""
    return config.d, config.l - 1, 0, config.d_k**-0.5


def sliding(config: NSAConfig) -> tuple[int, int, int, float]:
    """Return stride, offset, window and scale of the sliding branch: the last w tokens, own included."""
    return 1, 0, config.w, config.d_k**-0.5


def gradient(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    d_out: torch.Tensor,
    state: torch.Tensor,
    stride: int,
    offset: int,
    window: int,
    scale: float,
) -> torch.Tensor:
    """Return the pair of gradients of keys and values (see `empty_pair`); `state` is that of the rows, [B, H, 2, T]."""
    parts = _parts(q, k, v, window)
    pairs = k.new_empty(parts, k.numel() + v.numel(), dtype=q.dtype if parts == 1 else torch.float32)
    _key_gradient(q, k, v, d_out, state, pairs, stride, offset, window, scale)
    return pairs[0] if parts == 1 else pairs.sum(dim=0).to(q.dtype)


def _row(table: dict[str, dict], window: int, short: int, q: torch.Tensor, *read: torch.Tensor) -> dict:
    """Return the row of a table, and whether what is read comes by TMA; `short` is how many queries are few."""
    kind, by = tile_class(q, read[-1]), ", TMA" if tma.takes(*read) else ""
    if kind == "narrow" and not by and q.shape[2] <= short:
        kind = "short"
    windowed = f"{kind}, window{by}"
    return {"TMA": bool(by), **table[windowed if window and windowed in table else kind + by]}


def _parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> int:
    """Return into how many shares the queries of a tile of keys go; with a window they are few.

    By tiles of one size, whatever the device: how much memory it takes is then known anywhere.
    """
    if window or k.shape[2] == 0:
        return 1
    kind = tile_class(q, v)
    tiles = _KEY_GRADIENT["short" if kind == "narrow" and q.shape[2] <= _MEDIUM else kind]
    programs = cdiv(k.shape[2], tiles["BN"]) * k.shape[0] * k.shape[1]
    return min(
        _MOST_PARTS, power_of_two(cdiv(_PROGRAMS, programs), 1), power_of_two(cdiv(q.shape[2], tiles["M"]), 2) // 2
    )


def _constants(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, stride: int, offset: int, window: int) -> dict:
    share = q.shape[1] // k.shape[1]
    return {"STRIDE": stride, "OFFSET": offset, "WINDOWED": window > 0, "GS": share, **widths(q, v)}


@op(
    "band_forward(Tensor q, Tensor k, Tensor v, Tensor(a!) outputs, Tensor(b!) lse, int branch, Tensor? gates, "
    "Tensor(c!)? mixed, int stride, int offset, int window, float scale)"
)
def attend(q, k, v, outputs, lse, branch, gates, mixed, stride, offset, window, scale):
    """Attend to the keys j that end at stride j + offset, at or before a query and less than `window` back.

    A window of 0 has no end. Write output and log2-sum-exp of that branch; with gates also the gated sum of all, whose
    other outputs must be there.
    """
    from nsa_lib.subject.attention.fused.kernels.band import band_forward

    (batch, heads, length, _), tiles = q.shape, _row(_FORWARD, window, _SHORT, q, k, v)
    mixes = gates is not None
    band_forward[batch * heads, cdiv(length, tiles["M"])](
        q, *tma.sources(tiles["TMA"], tiles["BN"], k, v), outputs, lse, *((gates, mixed) if mixes else (q, outputs)),
        *strides(q, k, v), length, k.shape[2], heads, window, batch * heads * length, scale,
        BRANCH=branch, BRANCHES=len(outputs), MIX=mixes, **_constants(q, k, v, stride, offset, window), **tiles,
    )  # fmt: skip


def launch_query_gradient(q, k, v, d_out, state, dq, adds, stride, offset, window, scale) -> None:
    """Write dq, or add to it; `state` is that of the rows, [B, H, 2, T]. For an operator to call (see `rows`)."""
    from nsa_lib.subject.attention.fused.kernels.band import band_query_gradient

    (batch, heads, length, _), tiles = q.shape, _row(_QUERY_GRADIENT, window, _SHORT, q, k, v)
    band_query_gradient[batch * heads, cdiv(length, tiles["M"])](
        q, *tma.sources(tiles["TMA"], tiles["BN"], k, v), d_out, state, dq, *strides(q, k, v),
        length, k.shape[2], heads, window, scale,
        ADD=adds, **_constants(q, k, v, stride, offset, window), **tiles,
    )  # fmt: skip


@op(
    "band_key_gradient(Tensor q, Tensor k, Tensor v, Tensor d_out, Tensor state, Tensor(a!) pairs, "
    "int stride, int offset, int window, float scale)"
)
def _key_gradient(q, k, v, d_out, state, pairs, stride, offset, window, scale):
    from nsa_lib.subject.attention.fused.kernels.band import band_key_gradient

    if k.shape[2] == 0:
        return
    (batch, groups, keys, _), parts = k.shape, len(pairs)
    tiles = _row(_KEY_GRADIENT, window, _MEDIUM, q, q, d_out, k, v)
    queries, d_outs = tma.sources(tiles["TMA"], tiles["M"], q, d_out)
    band_key_gradient[batch * groups * parts, cdiv(keys, tiles["BN"])](
        queries, *tma.sources(tiles["TMA"], tiles["BN"], k, v), d_outs, state, pairs, *strides(q, k, v),
        q.shape[2], keys, q.shape[1], window, parts, batch * groups * keys, scale,
        **_constants(q, k, v, stride, offset, window), **tiles,
    )  # fmt: skip
