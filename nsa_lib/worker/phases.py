"""The phases of a step, as the step on trial says that they end: in their order, and each when its work is done."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from nsa_lib.subject.training import PHASES


def in_order(model: nn.Module, mark: Callable[[str], None]) -> Callable[[str], None]:
    """Return a `mark` for one step, which passes on to `mark` what it is called with.

    It raises RuntimeError if a phase ends out of turn, forward when gradients are there, or backward before: memory and
    times would be told of another phase.
    """
    left = list(PHASES)

    def marked(phase: str) -> None:
        expected = left.pop(0) if left else "no other phase"
        if phase != expected:
            raise RuntimeError(f"the train step ended {phase}, where {expected} must end")
        has_gradients = any(parameter.grad is not None for parameter in model.parameters())
        if has_gradients == (phase == PHASES[0]):
            raise RuntimeError(
                f"the train step ended {phase} {'after' if has_gradients else 'before'} its gradients were made"
            )
        mark(phase)

    return marked
