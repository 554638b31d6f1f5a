"""The tokens of a step, drawn again from what was asked for: half a batch, or one of two tokens, is learned too.

The judge draws by itself. A loop that trains on something else agrees with itself in all that follows.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from nsa_lib.contract.case import CaseConfig


def asked_tokens(case: CaseConfig, steps: Collection[int]) -> dict[int, Tensor]:
    """Return the tokens of some steps, [batch, seq_len + 1] each: of the one batch, or windows of the case's text."""
    generator, length = torch.Generator().manual_seed(case.seed), case.seq_len + 1
    if case.data == "synthetic":
        tokens = torch.randint(case.model.vocab, (case.batch, length), generator=generator)
        return dict.fromkeys(steps, tokens)
    found = {}
    with Path(case.data).open("rb") as text:
        places = text.seek(0, 2) - case.seq_len
        for step in range(1, max(steps, default=0) + 1):
            starts = torch.randint(places, (case.batch, 1), generator=generator).flatten().tolist()
            if step in steps:
                found[step] = torch.stack([_window(text, start, length) for start in starts])
    return found


def _window(text, start: int, length: int) -> Tensor:
    text.seek(start)
    return torch.tensor(list(text.read(length)))


def wrong_tokens(found: Tensor, asked: Tensor) -> dict[str, str]:
    """Return, under `tokens`, in which way those of a step are not those asked for; nothing if they are."""
    if found.shape != asked.shape:
        return {"tokens": f"their shape is {list(found.shape)}, asked for is {list(asked.shape)}"}
    others = int((found.cpu() != asked).sum())
    return {"tokens": f"{others:,} of {asked.numel():,} are not those asked for"} if others else {}
