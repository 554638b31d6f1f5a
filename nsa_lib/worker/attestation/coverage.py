"""What of a step was to be compared with the reference: a row a part, with the reason where it could not be."""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION, CHOICE, BACKWARD, TRAIN_STEP, BLOCKS = AREAS = ("attention", "choice", "backward", "train_step", "blocks")
"""What a part belongs to: outputs of branches and layers; selected blocks; gradients inside layers; the loss and its
gradients, the gradients of all parameters, the update; what is around the attention."""


@dataclass(frozen=True)
class Part:
    """One part of a step."""

    area: str
    part: str
    layer: int | None = None
    """From 1; None of what belongs to no layer."""
    why_not: str | None = None
    """Why it was not compared; None if it was."""
    rows: int | None = None
    """Rows of it that were compared, where only some of the step's are."""
