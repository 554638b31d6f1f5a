"""The least time that a part can take on a device: the bytes it must move and the products it must do, over what the
device was measured to move and do.

One query head does P products of a query with a key, P = the keys that its queries may see, summed (`pairs`). Forward,
a pair costs q . k and p v: 2 d_k + 2 d_v flop. Backward makes the logits again and has four more products, dp = do . v,
dv += p do, dq += ds k, dk += ds q: 6 d_k + 4 d_v flop, 2.5 times forward's where d_k = d_v. Selected, far from the
start, P is n_sel * l_sel a query: 4 * n_sel * l_sel * D flop.

The choice of blocks makes the logits of the compressed keys, 2 d_k flop a pair. Where heads share a group their
probabilities are added up, so each must be normalised first, and the choice makes its logits twice. In the whole the
compressed attention has made them once.

Bytes: forward reads each input once and writes each output once. Backward reads the inputs, the gradient of the output,
and what the flop count supposes to be kept (output and log-sum-exp), and writes a gradient for each input that has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nsa_lib.subject.config import BRANCHES, NSAConfig

FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class Part:
    """What a part reads and makes, by the names of `sizes`; a name stands once for each tensor."""

    inputs: tuple[str, ...]
    """Inputs that get a gradient."""
    outputs: tuple[str, ...]
    also: tuple[str, ...] = ()
    """Inputs that get none."""
    kept: tuple[str, ...] = ()
    """Read again by backward."""
    sees: tuple[str, ...] = ()
    """The kinds of keys that its queries are multiplied with, see `keys_seen`."""


PARTS = {
    "dense": Part(("q", "k", "v"), ("out",), kept=("out", "lse"), sees=("causal",)),
    "compressed": Part(("q", "k_cmp", "v_cmp"), ("out",), kept=("out", "lse"), sees=("compressed",)),
    "choice": Part((), ("blocks",), also=("q", "k_cmp"), sees=("compressed",)),
    "selected": Part(("q", "k", "v"), ("out",), also=("blocks",), kept=("out", "lse"), sees=("selected",)),
    "sliding": Part(("q", "k", "v"), ("out",), kept=("out", "lse"), sees=("recent",)),
    "whole": Part(
        ("q", "k_cmp", "v_cmp", "k", "v", "k", "v", "gates"),
        ("out",),
        kept=("blocks", *["out", "lse"] * len(BRANCHES)),
        sees=("compressed", "selected", "recent"),
    ),
}
"""`choice` ranks blocks and takes the best; `whole` is all of them."""


@dataclass(frozen=True)
class Ceilings:
    """What a device was measured to do."""

    copy_gb_per_s: float
    """Bytes read and bytes written by a copy on the device."""
    matmul_tflop_per_s: float


def keys_seen(kind: str, c: NSAConfig, query: int) -> int:
    """Return how many keys of a kind a query may see. A selected query reads its own block up to itself."""
    if kind == "causal":
        return query + 1
    if kind == "compressed":
        return max(0, (query - c.l + 1) // c.d + 1)
    if kind == "recent":
        return min(query + 1, c.w)
    blocks_before = min(query // c.l_sel, c.n_sel - 1)
    return blocks_before * c.l_sel + query % c.l_sel + 1


@lru_cache
def pairs(kind: str, c: NSAConfig, length: int) -> int:
    """Return the (query, key) pairs of one query head."""
    return sum(keys_seen(kind, c, query) for query in range(length))


def flop(part: str, c: NSAConfig, length: int, direction: str) -> int:
    """Return the floating-point operations of all heads, a multiplication and its addition being two."""
    logits_again = 0 if c.heads == c.groups else 2 * c.d_k
    if part == "choice":
        each = {"compressed": 2 * c.d_k + logits_again}
    else:
        cost = 2 * c.d_k + 2 * c.d_v if direction == FORWARD else 6 * c.d_k + 4 * c.d_v
        each = dict.fromkeys(PARTS[part].sees, cost)
        if part == "whole" and direction == FORWARD:
            each["compressed"] += logits_again
    return c.heads * sum(cost * pairs(kind, c, length) for kind, cost in each.items())


def sizes(c: NSAConfig, length: int, element_bytes: int) -> dict[str, int]:
    """Return the bytes of each tensor, B = 1; log-sum-exp is float32, indices are int32."""
    compressed, rows = (length - c.l) // c.d + 1, c.heads * length
    return {
        "q": rows * c.d_k * element_bytes,
        "k": c.groups * length * c.d_k * element_bytes,
        "v": c.groups * length * c.d_v * element_bytes,
        "k_cmp": c.groups * compressed * c.d_k * element_bytes,
        "v_cmp": c.groups * compressed * c.d_v * element_bytes,
        "gates": rows * len(BRANCHES) * element_bytes,
        "out": rows * c.d_v * element_bytes,
        "lse": rows * 4,
        "blocks": c.groups * length * c.n_sel * 4,
    }


def moved_bytes(part: str, c: NSAConfig, length: int, direction: str, element_bytes: int) -> int:
    """Return the bytes that a part must move."""
    does = PARTS[part]
    read, written = (*does.inputs, *does.also), does.outputs
    if direction == BACKWARD:
        read, written = (*read, "out", *does.kept), does.inputs
    size = sizes(c, length, element_bytes)
    return sum(size[name] for name in (*read, *written))


def floor_ms(part: str, c: NSAConfig, length: int, direction: str, element_bytes: int, ceilings: Ceilings) -> float:
    """Return the larger of the times that bytes and products take at the ceilings."""
    moving = moved_bytes(part, c, length, direction, element_bytes) / (1e9 * ceilings.copy_gb_per_s)
    multiplying = flop(part, c, length, direction) / (1e12 * ceilings.matmul_tflop_per_s)
    return 1000 * max(moving, multiplying)
