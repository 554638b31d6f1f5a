"""Checks of what a token can reach: nothing before it, and exactly the later rows that may see it."""

from __future__ import annotations

import torch

from nsa_lib.contract.figures import largest
from nsa_lib.subject.attention import Attention
from nsa_lib.subject.config import NSAConfig
from nsa_lib.worker.preflight import error_budget
from nsa_lib.worker.preflight.against_reference import worst_relative_error
from nsa_lib.worker.preflight.finding import Finding
from nsa_lib.worker.preflight.subject import VOCAB, Subject


def future_influence(subject: Subject, backend: str) -> Finding:
    """Replace all tokens from one on. What the model says of the tokens before it must keep its bits.

    `packed` places queries by what others chose, so its sums may be rounded otherwise. That much is allowed.
    """
    model, tokens, c = subject.model(layers=1, backend=backend), subject.tokens(subject.length), subject.config
    allowed = 0.0
    if backend == "packed":
        x = model.blocks[0].norm_attention(model.embedding(tokens))
        allowed = error_budget.module(model.blocks[0].attention.cpu(), x.cpu()).output
        model.to(subject.device)
    errors, moved = [], True
    with torch.no_grad():
        before = model.hidden(tokens)
        for token in edited_tokens(c, subject.length):
            edited = torch.cat([tokens[:, :token], (tokens[:, token:] + 1) % VOCAB], dim=1)
            after = model.hidden(edited)
            errors.append(worst_relative_error(after[:, :token], before[:, :token]))
            moved &= bool((after[:, token:] != before[:, token:]).any(-1).all())
    worst = largest(errors)
    detail = "largest relative change of a row before the edited tokens"
    if not moved:
        detail = "an edited token did not move its own row"
    return Finding(float(f"{worst:.3g}"), float(f"{allowed:.3g}"), "", detail, worst <= allowed and moved)


def edited_tokens(c: NSAConfig, length: int) -> list[int]:
    """Return tokens to edit: early, around the ends of blocks, and late."""
    tokens = {1, c.d - 1, c.l_sel, c.w + 1, 2 * c.l_sel + c.l // 2, length - c.l_sel, length - 2}
    return sorted(tokens & set(range(1, length)))


def past_influence(subject: Subject, branch: str, backend: str) -> Finding:
    """Edit one token. With one branch alone it must move every later row that may see it, and no other."""
    layer, x, c = subject.layer(backend, (branch,)), subject.inputs[0], subject.config
    expected = moved = wrong = 0
    with torch.no_grad():
        before = layer(x)
        for token in edited_tokens(c, subject.length):
            edited = x.clone()
            edited[:, token] = 4 * subject.random(c.dim)
            changed = (layer(edited) != before).any(-1)[0].cpu()
            may, may_not = rows_that_see(layer, c, branch, token, x, edited)
            expected, moved = expected + int(may.sum()), moved + int((changed & may).sum())
            wrong += int((changed & may_not).sum())
    detail = f"{moved:,} of {expected:,} rows that see an edited token moved; {wrong:,} moved that do not see it"
    return Finding(expected - moved + wrong, 0, "rows", detail, expected > 0 and moved == expected and wrong == 0)


def rows_that_see(
    layer: Attention, c: NSAConfig, branch: str, token: int, x: torch.Tensor, edited: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows after a token that see it through a branch, and those after it that do not, [T] each.

    The sizes `c` are those that were asked for, whatever the layer says of itself.
    """
    rows = torch.arange(x.shape[1])
    later = rows > token
    if branch == "win":
        sees = later & (rows < token + c.w)
    elif branch == "cmp":
        first_block = max(0, -((c.l - 1 - token) // c.d))
        sees = later & (rows >= first_block * c.d + c.l - 1)
    else:
        # Which blocks a row reads depends on the edited token too: rows that choose otherwise are not judged.
        chosen, again = layer.select(x).cpu(), layer.select(edited).cpu()
        same = (chosen == again).all(-1).all(1)[0]
        reads = (chosen == token // c.l_sel).any(-1)[0]
        return later & same & reads.all(0), later & same & ~reads.any(0)
    return sees, later & ~sees
