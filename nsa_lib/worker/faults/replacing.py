"""Put something faulty in the place of what a case calls, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from nsa_lib.contract.heartbeat import Heartbeat


@contextmanager
def replaced(new: Callable, name: str, *owners: object) -> Iterator[None]:
    """Put `new` in the place of an attribute of modules or classes, and put the old values back at the end."""
    before = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, old in zip(owners, before, strict=True):
            setattr(owner, name, old)


def after_beats(act: Callable[[int, dict[str, float]], None]) -> AbstractContextManager[None]:
    """Call `act` with the step and its figures after the heartbeat of each step."""
    original = Heartbeat.beat

    def beat(heartbeat: Heartbeat, phase: str, step: int | None = None, **figures: float) -> None:
        original(heartbeat, phase, step, **figures)
        if step is not None:
            act(step, figures)

    return replaced(beat, "beat", Heartbeat)


@contextmanager
def from_step(step: int, plant: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Plant something just before a step begins: after the heartbeat of the one before, or that of the warm-up."""
    original = Heartbeat.beat

    def beat(heartbeat: Heartbeat, phase: str, done: int | None = None, **figures: float) -> None:
        original(heartbeat, phase, done, **figures)
        if done == (step - 1 or None) and (done or phase == "warmup"):
            at_the_end.enter_context(plant())

    with replaced(beat, "beat", Heartbeat), ExitStack() as at_the_end:
        yield
