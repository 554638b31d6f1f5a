"""Judge what a training starts from: the seed, and how the weights of a TinyLM are drawn.

A model that begins elsewhere learns too, and agrees with itself in every step. Which numbers a seed gives only the code
on trial can tell; but as many of them have a mean and a size that are known.
"""

from __future__ import annotations

import math

from torch import Tensor

from nsa_lib.worker.attestation.records import StepRecord

SIGMAS = 6.0
"""Standard errors by which mean and size of drawn numbers may be off: 1 in 500 million."""

ENDS_STD = 0.02
"""Of embedding and head."""


def wrong_start(record: StepRecord, *, seed: int, seeded_with: int) -> dict[str, str]:
    """Return what is wrong with the weights before the first step, by name, in a sentence.

    How a user's attention or model begins, nobody knows.

    Args:
        record: of the first step.
        seed: the one that was asked for.
        seeded_with: what torch's generator was seeded with when the model was made.
    """
    asked = record.sample.asked
    if asked.brings == "model":
        return {}
    wrong = {}
    if seeded_with != seed and not asked.brings:  # a user's code may seed what it draws
        wrong["seed"] = f"the model was made with {seeded_with}, asked for is {seed}"
    for name, found in record.entries.items():
        is_known = asked.attention == "nsa" or ".attention." not in name
        if is_known and (why := _why_not_drawn(name, found.before["parameter"].double(), record.shapes[name])):
            wrong[f"first {name}"] = why
    return wrong


def _why_not_drawn(name: str, values: Tensor, shape: tuple[int, ...]) -> str:
    """Return in which way the entries of a parameter are not what they begin as, or ""."""
    if len(shape) < 2:
        return "" if bool((values == 1).all()) else "a norm begins with ones, it does not"
    std = _std(name, shape)
    mean, size, error = float(values.mean()), float(values.square().mean().sqrt()), SIGMAS / math.sqrt(values.numel())
    if abs(mean) <= error * std and abs(size / std - 1) <= error / math.sqrt(2):
        return ""
    return f"it begins with mean {mean:.3g} and size {size:.3g}, drawn it has 0 and {std:.3g}"


def _std(name: str, shape: tuple[int, ...]) -> float:
    if name in ("embedding.weight", "head.weight"):
        return ENDS_STD
    if name.endswith("position"):
        return shape[-1] ** -0.5
    return (3 * shape[1]) ** -0.5  # uniform within 1/sqrt(inputs), as torch draws a linear layer
