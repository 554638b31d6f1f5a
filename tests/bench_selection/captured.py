"""A trained model's selection, packed into a small file, and continued to any length.

Packed are the picked blocks alone (the forced ones follow from the query), as the bits in which a query differs from
the one before it: neighbours agree, so nearly all are 0.
"""

from __future__ import annotations

import base64
import json
import lzma
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nsa_lib.runs.environment import PROJECT

FILE = PROJECT / "reports" / "examples" / "selection.json"
"""Where a run of `tests.bench_selection` is kept, and the benchmark of attention reads it."""

MOST_CHARACTERS = 200_000
"""Of a packed selection; of the groups, as many are kept as fit."""


def pack(blocks: Tensor, l_sel: int) -> dict:
    """Return blocks [G, T, n] as JSON can hold them: sizes and `bits` of the first `groups`, as many as fit."""
    for groups in range(len(blocks), 0, -1):
        bits = _packed_bits(blocks[:groups], l_sel)
        if len(bits) <= MOST_CHARACTERS:
            _, length, n = blocks.shape
            return {"groups": groups, "length": length, "n_sel": n, "l_sel": l_sel, "bits": bits}
    raise ValueError(f"one group's selection takes {len(bits):,} characters, {MOST_CHARACTERS:,} are kept")


def unpack(packed: dict) -> Tensor:
    """Return the blocks of `pack`, int32 [groups, T, n_sel], ascending, padded with -1."""
    groups, length, n, l_sel = (packed[name] for name in ("groups", "length", "n_sel", "l_sel"))
    count = -(-length // l_sel)
    raw = np.frombuffer(lzma.decompress(base64.b85decode(packed["bits"])), dtype=np.uint8)
    changes = np.unpackbits(raw.reshape(groups, length, -1), axis=-1, count=count)
    read = torch.from_numpy(np.bitwise_xor.accumulate(changes, axis=1)).bool()
    block, own = torch.arange(count), torch.arange(length)[:, None] // l_sel
    read |= (block == 0) | ((block >= own - 1) & (block <= own))
    listed = torch.where(read, block, count).sort(dim=-1).values[..., :n]
    listed = torch.nn.functional.pad(listed, (0, n - listed.shape[-1]), value=count)
    return listed.masked_fill(listed == count, -1).int()


def _packed_bits(blocks: Tensor, l_sel: int) -> str:
    groups, length, _ = blocks.shape
    count = -(-length // l_sel)
    own = torch.arange(length, device=blocks.device)[:, None] // l_sel
    picked = torch.where((blocks > 0) & (blocks < own - 1), blocks, 0).long()
    bits = torch.zeros(groups, length, count, dtype=torch.uint8, device=blocks.device).scatter_(2, picked, 1)
    bits[..., 0] = 0
    changes = bits.clone()
    changes[:, 1:] ^= bits[:, :-1]
    return base64.b85encode(lzma.compress(np.packbits(changes.cpu().numpy(), axis=-1).tobytes(), preset=9)).decode()


def continued(blocks: Tensor, length: int, *, l_sel: int, groups: int) -> Tensor:
    """Return a selection for any length and number of groups that changes from query to query as a captured one does.

    The first queries have the captured blocks. Beyond them its second half, where all queries choose, is repeated;
    its blocks, few, are spread over the many that lie before those queries: each stands for one of so many neighbours,
    the same in the whole repetition, another one in another. So what neighbours share, and how many blocks a tile
    reads together, is as captured, but for the edges of repetitions. Missing groups repeat those that there are.

    Args:
        blocks: int32 [captured groups, captured T, n_sel].
        length: T.
        l_sel: tokens in a block.
        groups: G.

    Returns:
        int32 [G, T, n_sel], ascending, padded with -1.
    """
    kept, n = blocks.shape[1:]
    half = kept // 2
    if half % l_sel or half < n * l_sel:
        raise ValueError(
            f"captured at {kept:,} tokens: accepts twice a multiple of l_sel={l_sel}, {2 * n * l_sel:,} up"
        )
    query = torch.arange(length, device=blocks.device)[:, None]
    row = torch.where(query < kept, query, half + query % half)
    later = (query // half - 1).clamp(min=0)  # by so many halves the row has moved
    spread = 1 + later // 2
    group = torch.arange(groups, device=blocks.device)
    was = blocks[(group % len(blocks))[:, None], row[:, 0]].long()
    which = (was * 40503 + later * 9973 + group[:, None, None] * 7919) % spread
    own_was, own = row // l_sel, query // l_sel
    now = torch.where(was >= own_was - 1, was - own_was + own, spread * was - which)
    return torch.where(was <= 0, was, now).int()


def captured() -> Tensor:
    """Return the selection that FILE keeps, int32 [groups, T, n_sel]."""
    return unpack(_kept(FILE))


def why_not(n_sel: int, l_sel: int) -> str:
    """Return why a layout cannot be measured with it, or nothing."""
    if not FILE.exists():
        return f"no selection was captured yet: python -m tests.bench_selection writes {FILE.name}"
    kept = _kept(FILE)
    if (kept["n_sel"], kept["l_sel"]) != (n_sel, l_sel):
        return f"the captured selection has n_sel={kept['n_sel']}, l_sel={kept['l_sel']}"
    return ""


def _kept(file: Path) -> dict:
    return json.loads(file.read_text())["captured"]
