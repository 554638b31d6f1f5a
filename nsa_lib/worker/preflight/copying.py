"""A copy task for each branch alone: a small model must learn to name a token that only that branch can show it.

A sequence is filler with a wanted token in it, and ends with a question. The answer, the token after the question, is
the wanted token. Where the branch has a limit, another token of that kind, the decoy, lies beyond it: a branch that
sees too much is wrong half of the time. In float32, so that bfloat16's rounding of small updates decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject import training
from nsa_lib.subject.config import FUSED, FUSED_BLOCKS, ModelConfig, NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.preflight.finding import Finding, at_least

COPIED = 8
"""Tokens that may be copied, 1 to COPIED; 0 is filler."""

QUESTION = COPIED + 1

VOCAB = COPIED + 2

BLOCK = 4

FUSED_BLOCK = min(FUSED_BLOCKS)
"""The smallest selection block that the kernels of `fused` take."""

LENGTH = 16

WINDOW = 4

HEAD = {"dim": 32, "heads": 2, "groups": 2, "d_k": 16, "d_v": 16}

LAYERS = 2

BATCH = 64

STEPS = 200

ATTEMPTS = 3

LR = 3e-3

ASKED = 256
"""New sequences that are asked after the training."""

ACCURACY_PERCENT = 90.0
"""Guessing scores 1/COPIED; a model that cannot tell the wanted token from the decoy scores one half."""


def copying_checks(case: CaseConfig, alive: Callable[[], None]) -> Mapping[str, Callable[[], Finding]]:
    """Return the checks by name."""
    return {f"copy_{branch}": partial(learns_to_copy, case, branch, alive) for branch in SEQUENCES}


def learns_to_copy(case: CaseConfig, branch: str, alive: Callable[[], None]) -> Finding:
    """Train a small model with one branch on its copy task, from a few starts until one has learned it.

    A start may be stuck: three of 44 had not learned the window's task after STEPS. What reads elsewhere learns it from
    none.
    """
    best, its_start = 0.0, 1
    for start in range(1, ATTEMPTS + 1):
        right = _right_percent(case, branch, case.seed + start - 1, alive)
        if right > best:
            best, its_start = right, start
        if best >= ACCURACY_PERCENT:
            break
    detail = (
        f"right answers of {ASKED} after {STEPS} steps of start {its_start}, {branch} alone in {LAYERS} layers, float32"
    )
    return at_least(round(best, 1), ACCURACY_PERCENT, "%", detail)


def _right_percent(case: CaseConfig, branch: str, seed: int, alive: Callable[[], None]) -> float:
    """Train from a seed, and return how often the model is right on new sequences."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    l_sel, sequences = BLOCK, SEQUENCES[branch]
    if (branch, case.model.backend) == ("slc", FUSED):
        l_sel, sequences = FUSED_BLOCK, partial(from_selected, block=FUSED_BLOCK)
    nsa = NSAConfig(**HEAD, l=BLOCK, d=BLOCK, l_sel=l_sel, n_sel=3, w=WINDOW, branches=(branch,))
    model = TinyLM(
        ModelConfig(nsa=nsa, layers=LAYERS, vocab=VOCAB, backend=case.model.backend),
        grad_checkpointing=case.grad_checkpointing,
    ).to(case.device)
    optimizer = training.make_optimizer(model, LR)
    for _ in range(STEPS):
        training.train_step(model, optimizer, sequences(BATCH, generator).to(case.device))
        alive()
    model.grad_checkpointing = False
    asked = sequences(ASKED, generator).to(case.device)
    with torch.no_grad():
        answers = model(asked[:, :-1])[:, -1].argmax(-1)
    return 100 * (answers == asked[:, -1]).double().mean().item()


def from_selected(count: int, generator: torch.Generator, *, block: int = BLOCK) -> torch.Tensor:
    """Return sequences of four blocks whose wanted token lies in block 0 or the one before the last; the decoy between.

    With three blocks a query, those two and its own are all that it selects. Each token fills half a block: a single
    one is hard to find among a whole selection.
    """
    last, half = LENGTH // BLOCK - 1, block // 2
    tokens, wanted, decoy = _blank(count, generator, (last + 1) * block)
    inside = torch.randint(block - half + 1, (2, count), generator=generator)
    # Never token 0: attention that reads the first key only must not find it.
    in_first, in_previous = inside[0].clamp(min=1), (last - 1) * block + inside[0]
    near = torch.where(torch.rand(count, generator=generator) < 0.5, in_first, in_previous)
    between = torch.randint(1, last - 1, (count,), generator=generator) * block + inside[1]
    ours, others = ([(token, start + i) for i in range(half)] for token, start in ((wanted, near), (decoy, between)))
    return _placed(tokens, *ours, *others)


def from_compressed(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return sequences, [count, LENGTH + 1], whose wanted token fills a whole compression block, not the first."""
    tokens, wanted, _ = _blank(count, generator)
    start = torch.randint(1, LENGTH // BLOCK, (count,), generator=generator) * BLOCK
    rows = start[:, None] + torch.arange(BLOCK)
    tokens.scatter_(1, rows.clamp(max=LENGTH - 2), wanted[:, None].expand(-1, BLOCK))
    return tokens


def from_window(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return sequences, [count, LENGTH + 1], whose wanted token lies in the question's window; the decoy before it."""
    tokens, wanted, decoy = _blank(count, generator)
    inside = torch.randint(LENGTH - WINDOW, LENGTH - 1, (count,), generator=generator)
    before = torch.randint(1, LENGTH - LAYERS * WINDOW, (count,), generator=generator)
    return _placed(tokens, (wanted, inside), (decoy, before))


SEQUENCES = {"slc": from_selected, "cmp": from_compressed, "win": from_window}
"""What makes the sequences of each branch's task."""


def _blank(
    count: int, generator: torch.Generator, length: int = LENGTH
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return sequences of filler with question and answer, the answers (the wanted tokens), and as many decoys."""
    wanted, decoy = torch.randint(1, COPIED + 1, (2, count), generator=generator)
    tokens = torch.zeros(count, length + 1, dtype=torch.int64)
    tokens[:, length - 1] = QUESTION
    tokens[:, length] = wanted
    return tokens, wanted, decoy


def _placed(tokens: torch.Tensor, *placed: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    for values, positions in placed:
        tokens.scatter_(1, positions[:, None], values[:, None])
    return tokens
