"""A task that needs no positions: name the one token of a special set that the sequence holds.

The rest of the sequence is filler, and its end a question. Attention without positions, a window or a recurrent layer
learn it where they see the token. Near by they must; how far away they do is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject import training
from nsa_lib.worker.preflight.finding import Finding
from nsa_lib.worker.preflight.own.precision import widest
from nsa_lib.worker.preflight.own.trial import Trial, stirred, trained_model

COPIED = 8
"""Tokens that may be asked for, 1 to COPIED; 0 is filler."""

QUESTION = COPIED + 1

VOCAB = COPIED + 2

LAYERS = 2

NEAR_TOKENS, NEAR_LENGTH = 4, 16
"""How far before the question the token stands at most, and the length of the sequence."""

SHORTEST = 8
"""Length of the sequences, for one layer, of an attention that learned nothing from the longer ones.

Where weights do not add up to one, such as a sigmoid over the length, the token is one of all: among sixteen it is
named after five times as many steps, or never. One layer: two hand on from row to row what a row does not see itself.
"""

FARTHEST_LENGTH = 128

BATCH, LR, ASKED = 16, 3e-3, 128

STEPS, MOST_STEPS = 250, 1000
"""After how many it must answer better than by guessing, and how many it gets then: in bfloat16 alone it is slow."""

MODEL_BATCH, MODEL_STEPS = 64, 500
"""The same of a whole model: one with a table of positions stays where it began for 300 of 500 steps even so, and for
1000 with fewer sequences, in which chance outweighs what the first steps gain."""

ATTEMPTS = 3

GUESSED_PERCENT = 2 * 100 / COPIED
"""Right answers that guessing gives at most, of ASKED: 12.5 are expected, 25 are four deviations away."""

ACCURACY_PERCENT = 90.0
"""Guessing scores 1/COPIED."""


def near(trial: Trial) -> Finding:
    """Train on sequences whose token stands a few before the question, and ask new ones."""
    found = _near(trial, NEAR_LENGTH, layers=LAYERS)
    if found.holds or trial.case.model.brings != "attention":
        return found
    shorter = _near(trial, SHORTEST, layers=1)
    return shorter if shorter.holds else found


def _near(trial: Trial, most_tokens: int, *, layers: int) -> Finding:
    length = min(most_tokens, trial.case.seq_len)
    place, where = (max(1, length - 1 - NEAR_TOKENS), length - 1), f"a few tokens away among {length}"
    return _learned(trial, length, place, where, required=True, attempts=ATTEMPTS, layers=layers)


def far(trial: Trial) -> Finding:
    """The same with the token half the sequence away: it is shown whether it reaches so far."""
    length = min(FARTHEST_LENGTH, trial.case.seq_len)
    middle = length - 1 - length // 2
    return _learned(
        trial, length, (middle, middle + 1), f"{length // 2} tokens away: shown", required=False, attempts=1
    )


def _learned(
    trial: Trial,
    length: int,
    place: tuple[int, int],
    where: str,
    *,
    required: bool,
    attempts: int,
    layers: int = LAYERS,
) -> Finding:
    """Train until it answers right, from a few starts: a small model may be stuck where it began.

    What sees the token only where it stands in some places answers better than by guessing, and never right.
    """
    best = (0.0, 0, 1)
    plain = replace(trial.case, dtype=_trained_dtype(trial), compile=False, grad_checkpointing=False)
    for attempt in range(attempts):
        case = replace(plain, seed=plain.seed + attempt)
        for steps, percent in _training(case, length, place, trial, layers):
            best = max(best, (percent, steps, attempt + 1))
        if best[0] >= ACCURACY_PERCENT:
            break
    right, steps, start = best
    detail = f"right answers of {ASKED} at best, after {steps} steps of start {start}, the token {where}"
    return Finding(round(right, 1), ACCURACY_PERCENT, "%", detail, right >= ACCURACY_PERCENT, required=required)


def _training(
    case: CaseConfig, length: int, place: tuple[int, int], trial: Trial, layers: int
) -> Iterator[tuple[int, float]]:
    """Train, and yield steps and right answers in percent now and then, until they are enough."""
    generator = torch.Generator().manual_seed(case.seed)
    is_near_model = case.model.brings == "model" and length <= NEAR_LENGTH
    batch, least_steps = (MODEL_BATCH, MODEL_STEPS) if is_near_model else (BATCH, STEPS)
    model = stirred(trained_model(case, layers=layers, vocab=VOCAB))  # what starts at zero may take all the steps
    optimizer = training.make_optimizer(model, LR)
    for step in range(1, MOST_STEPS + 1):
        training.train_step(model, optimizer, sequences(batch, length, place, generator).to(case.device))
        trial.alive()
        if step % CHECKED_EVERY == 0:
            percent = _right_percent(model, sequences(ASKED, length, place, generator).to(case.device))
            yield step, percent
            if percent >= ACCURACY_PERCENT or (step >= least_steps and percent <= GUESSED_PERCENT):
                return


CHECKED_EVERY = 25


def _trained_dtype(trial: Trial) -> str:
    """Return the dtype to learn in: rounding of small updates to 16 bits must decide nothing."""
    return "float32" if torch.finfo(trial.dtype).bits < 32 and widest(trial) is not None else trial.case.dtype


def _right_percent(model: torch.nn.Module, asked: torch.Tensor) -> float:
    with torch.no_grad():
        hidden = model.hidden(asked[:, :-1])[:, -1]
        logits = hidden if model.head is None else model.head(hidden)
    return 100 * (logits.argmax(-1) == asked[:, -1]).double().mean().item()


def sequences(count: int, length: int, place: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Return sequences, int64 [count, length + 1], whose token stands in `place`, from its first to before its last.

    The last but one token is the question, the last one the answer.
    """
    wanted = torch.randint(1, COPIED + 1, (count,), generator=generator)
    at = torch.randint(place[0], place[1], (count, 1), generator=generator)
    tokens = torch.zeros(count, length + 1, dtype=torch.int64)
    tokens[:, length - 1] = QUESTION
    tokens[:, length] = wanted
    return tokens.scatter_(1, at, wanted[:, None])
