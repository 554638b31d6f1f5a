"""What the kernels share: rows of a tensor, and the steps of a softmax over tiles."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)
"""The maximum of a row that has seen nothing: finite, so that it can be subtracted from -inf."""


@triton.jit
def load_rows(base, stride, rows, valid, D: tl.constexpr, DP: tl.constexpr):
    """Load some rows, [rows, DP], 0 where a row is not valid or beyond D."""
    column = tl.arange(0, DP)
    mask = valid[:, None]
    if D < DP:
        mask = mask & (column < D)[None, :]
    return tl.load(base + rows.to(tl.int64)[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def load_tile(base, stride, first, N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """Load N rows from `first` on, all of which exist, [N, DP]."""
    column = tl.arange(0, DP)
    pointers = base + tl.cast(first, tl.int64) * stride + tl.arange(0, N)[:, None] * stride + column[None, :]
    if D < DP:
        return tl.load(pointers, mask=(column < D)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def gather_rows(base, stride, rows, D: tl.constexpr, DP: tl.constexpr):
    """Load rows all of which exist, [rows, DP], by offsets as wide as `rows` are."""
    column = tl.arange(0, DP)
    pointers = base + (rows * stride)[:, None] + column[None, :]
    if D < DP:
        return tl.load(pointers, mask=(column < D)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def load_head_tile(
    X, b, h, x_b, x_h, x_t, first, end, N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, WHOLE: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """Load N rows of a head from `first` on, [N, DP], 0 from row `end` on; WHOLE says that all of them exist.

    With TMA X is a descriptor, which knows strides and end (see `tma.py`).
    """
    if TMA:
        x = tl.reshape(X.load([tl.cast(b, tl.int32), tl.cast(h, tl.int32), first, 0]), (N, DP))
    elif WHOLE:
        x = load_tile(X + b * x_b + h * x_h, x_t, first, N, D, DP)
    else:
        rows = first + tl.arange(0, N)
        x = load_rows(X + b * x_b + h * x_h, x_t, rows, rows < end, D, DP)
    return x


@triton.jit
def store_rows(base, stride, rows, valid, x, D: tl.constexpr, DP: tl.constexpr):
    """Store rows [rows, DP] in the dtype of their tensor, those that are valid, up to D."""
    column = tl.arange(0, DP)
    mask = valid[:, None]
    if D < DP:
        mask = mask & (column < D)[None, :]
    pointers = base + rows.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(pointers, x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def attend(q, k, v, m, l, acc, scale2, seen, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Take one tile of keys into a softmax: its maximum m, its sum l, the weighted values acc.

    `scale2` is the logits' scale in units of log2; `seen` says which keys a query sees, and counts if MASKED.
    """
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        s = tl.where(seen, s * scale2, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.math.exp2(s - m_new[:, None])
    else:
        m_new = tl.maximum(m, tl.max(s, 1) * scale2)
        p = tl.math.exp2(s * scale2 - m_new[:, None])
    shrink = tl.math.exp2(m - m_new)
    l = l * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return m_new, l, acc


@triton.jit
def attend_selected(s, v, m, l, acc, scale2, selects, PRECISION: tl.constexpr):
    """Take one tile of keys, with logits s before their scale, into the softmax of the rows that select it.

    A row that does not has a maximum of +inf here, so that its p is 0 without a mask over the tile.
    """
    m_new = tl.where(selects, tl.maximum(m, tl.max(s, 1) * scale2), m)
    p = tl.math.exp2(s * scale2 - tl.where(selects, m_new, float("inf"))[:, None])
    shrink = tl.math.exp2(m - m_new)
    l = l * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return m_new, l, acc


@triton.jit
def finish(m, l, acc):
    """Return output and log2-sum-exp of a softmax; 0 and +inf for a row that saw nothing, whose every p is so 0."""
    has = l > 0
    total = tl.where(has, l, 1.0)
    return acc * (1.0 / total)[:, None], tl.where(has, m + tl.math.log2(total), float("inf"))


@triton.jit
def store_branch(m, l, acc, OUTPUTS, LSE, b, h, t, T, H, rows, branch: tl.constexpr, E: tl.constexpr, EP: tl.constexpr):
    """Store output and log2-sum-exp of a softmax for queries t of a head; return the output.

    OUTPUTS [branches, B, T, H, E] and LSE [branches, B, H, T] hold `rows` = B * T * H rows for each branch.
    """
    out, lse = finish(m, l, acc)
    before = tl.cast(rows, tl.int64) * branch
    store_rows(OUTPUTS + (before + b * T * H + h) * E, H * E, t, t < T, out, E, EP)
    tl.store(LSE + before + (b * H + h) * T + t, lse, mask=t < T)
    return out


@triton.jit
def load_gate(GATES, row, valid, branch: tl.constexpr, BRANCHES: tl.constexpr):
    """Load a branch's gates of rows of [B, T, H, branches], as a column."""
    return tl.load(GATES + row * BRANCHES + branch, mask=valid, other=0.0).to(tl.float32)[:, None]


@triton.jit
def store_key_gradients(
    PAIR, total, b, g, j, C, G, dk, dv, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr
):  # fmt: skip
    """Store the gradients of keys j of a group: all dk [B, C, G, D], then dv [B, C, G, E]; total is B * C * G."""
    row = b * C * G + g
    store_rows(PAIR + row * D, G * D, j, j < C, dk, D, DP)
    store_rows(PAIR + tl.cast(total, tl.int64) * D + row * E, G * E, j, j < C, dv, E, EP)


@triton.jit
def row_state(STATE, lane, rows, valid, T):
    """Load what a gradient needs of rows of a head, from [heads, 2, T]: log2-sum-exp and delta (see `rows.py`)."""
    state = STATE + lane * 2 * T + rows
    return tl.load(state, mask=valid, other=float("inf")), tl.load(state + T, mask=valid, other=0.0)


@triton.jit
def query_gradient(q, k, v, d_out, lse, delta, dq, scale2, seen, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Add to dq, unscaled, what a tile of keys contributes: p (dOut vᵀ - delta) k."""
    p = tl.math.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2 - lse[:, None])
    if MASKED:
        p = tl.where(seen, p, 0.0)
    ds = p * (tl.dot(d_out, tl.trans(v), input_precision=PRECISION) - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def key_gradient(q, k, v, d_out, lse, delta, dk, dv, scale2, seen, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Add to dk, unscaled, and dv what a tile of queries contributes; `seen` is [keys, queries].

    Also return its p (dOut vᵀ - delta), keys by queries, in the dtype of the queries.
    """
    p = tl.math.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2 - lse[None, :])
    if MASKED:
        p = tl.where(seen, p, 0.0)
    dv = tl.dot(p.to(d_out.dtype), d_out, dv, input_precision=PRECISION)
    ds = p * (tl.dot(v, tl.trans(d_out), input_precision=PRECISION) - delta[None, :])
    ds = ds.to(q.dtype)
    return tl.dot(ds, q, dk, input_precision=PRECISION), dv, ds


@triton.jit
def load_chosen(CHOSEN, rows, valid, n: tl.constexpr, NP: tl.constexpr):
    """Load the blocks that queries chose, int32 [rows, NP]; -1 where there is none."""
    slot = tl.arange(0, NP)
    mask = valid[:, None] & (slot < n)[None, :]
    return tl.load(CHOSEN + rows[:, None] * n + slot[None, :], mask=mask, other=-1).to(tl.int32)


@triton.jit
def bitwise_or(a, b):
    return a | b


@triton.jit
def count_bits(x):
    """Return how many bits of each int32 are set."""
    x = x.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    x = x + (x >> 16)
    return (x & 0x3F).to(tl.int32)
