"""Show a trained model tokens that it has not seen, at full length: what it must not know, and must not let through.

The batch of a smoke repeats, so a model that sees the next token has nothing to gain by it there. On fresh random
tokens nothing can be known: a loss below ln(vocab) is read from the future. And an edited token must change no logit
before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from nsa_lib.contract.case import FRESH_STEPS, CaseConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.subject.training import StepResult

EDITS = 6


def fresh_tokens(
    model: TinyLM, step: Callable[[torch.Tensor], StepResult], case: CaseConfig, *, alive: Callable[[], None]
) -> dict[str, object]:
    """Train a few steps on fresh tokens, edit tokens at some positions, and return what was found.

    It changes the model: call it after everything else.

    Args:
        model: trained.
        step: the training's own, from tokens [B, T + 1] to its result.
        case: that the model was trained in.
        alive: called now and then, for whoever watches.

    Returns:
        `losses`: nats, of each step, before its update; `guess`: ln(vocab); `tokens`: of a step; `changes`: for each
        edited position the largest relative change of a row of the final hidden states before it, None if not finite;
        `unseen`: the positions whose edit changes no row from there on, so that it shows nothing;
        `others`: as `changes`, of the other sequences when the last one is another, None in a batch of one.
    """
    generator = torch.Generator().manual_seed(case.seed + 1)
    shape, vocab = (case.batch, case.seq_len + 1), case.model.vocab
    losses = []
    for _ in range(FRESH_STEPS):
        tokens = torch.randint(vocab, shape, generator=generator).to(case.device)
        losses.append(step(tokens).loss.item())
        alive()
    edits = _edits(model, tokens[:, :-1], case, alive)
    return {
        "losses": losses,
        "guess": math.log(vocab),
        "tokens": tokens[:, :-1].numel(),
        "changes": {str(at): before for at, (before, _) in edits.items()},
        "unseen": [at for at, (_, behind) in edits.items() if behind == 0],
        "others": _change_of_others(model, tokens[:, :-1], case),
    }


@torch.no_grad()
def _edits(
    model: TinyLM, tokens: torch.Tensor, case: CaseConfig, alive: Callable[[], None]
) -> dict[int, tuple[float, float]]:
    """Return, for each edited position, the largest change of a row before it and of one from it on.

    Changes are over the largest row's norm.
    """
    model.grad_checkpointing = False  # nothing is kept for a backward anyway
    before = model.hidden(tokens)
    largest_row = before.float().norm(dim=-1).max()
    found = {}
    for position in edited_positions(case):
        edited = tokens.clone()
        edited[:, position:] = (edited[:, position:] + 1) % case.model.vocab
        rows = (model.hidden(edited) - before).float().norm(dim=-1) / largest_row
        found[position] = float(rows[:, :position].max()), float(rows[:, position:].max())
        alive()
    return found


@torch.no_grad()
def _change_of_others(model: TinyLM, tokens: torch.Tensor, case: CaseConfig) -> float | None:
    if case.batch == 1:
        return None
    edited = tokens.clone()
    edited[-1] = (edited[-1] + 1) % case.model.vocab
    before, after = model.hidden(tokens), model.hidden(edited)
    rows = (after[:-1] - before[:-1]).float().norm(dim=-1)
    return float(rows.max() / before.float().norm(dim=-1).max())


def edited_positions(case: CaseConfig) -> list[int]:
    """Return where tokens are edited: beyond the window and the blocks that fit a selection, around, and at the end."""
    c, length = case.model.nsa, case.seq_len
    wanted = [c.l_sel + 1, c.w + 1, c.n_sel * c.l_sel + 1, length // 2 + 3, length - c.l_sel // 2, length - 1]
    return sorted({position for position in wanted if 0 < position < length})[:EDITS]
