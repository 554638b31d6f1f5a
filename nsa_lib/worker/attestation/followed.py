"""Follow some entries through every step of a training: an update that is wrong in one step alone is found.

Each step has a parameter of its own and a run of its entries, which the seed decides. They are read between steps,
where nothing is measured, and judged at once by AdamW's rule (`update`), entry by entry. Whatever befalls a step as a
whole, as one that is left out, befalls these as well. What is wrong in other parameters of one step alone is not found.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch.utils._python_dispatch import _disable_current_modes

from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.attestation.recording import RUN_ENTRIES, runs_of, values_at
from nsa_lib.worker.attestation.records import Entries
from nsa_lib.worker.attestation.update import AdamW, farthest, in_words

MOST_NAMED = 100
"""Steps that are named, at most."""


@dataclass
class Followed:
    """What is known of the updates of all steps so far."""

    seed: int
    rule: AdamW | None
    """None follows nothing: of steps without an update, or whose parameters other ranks hold too."""
    steps: int = 0
    """Steps whose update was judged."""
    wrong: dict[str, str] = field(default_factory=dict)
    """What is wrong, by name, in a sentence."""
    _name: str = ""
    _entries: Entries | None = None

    def before(self, step: int, model: TinyLM, optimizer: torch.optim.Optimizer | None) -> None:
        """Read what the update of a step starts from."""
        if self.rule is None:
            return
        draw = random.Random(f"followed {self.seed} {step}")
        self._name, parameter = draw.choice([(n, p) for n, p in model.named_parameters() if p.requires_grad])
        start = draw.randint(0, max(0, parameter.numel() - RUN_ENTRIES))
        places = (slice(start, start + RUN_ENTRIES),)
        with _disable_current_modes():
            self._entries = Entries(places, values_at(parameter, optimizer, places), parameter.numel())

    def after(self, step: int, model: TinyLM, optimizer: torch.optim.Optimizer | None) -> None:
        """Judge the update of the step that has ended; the gradients are still there."""
        if self.rule is None:
            return
        found, parameter = self._entries, model.get_parameter(self._name)
        with _disable_current_modes():
            found.after = values_at(parameter, optimizer, found.places)
            found.gradient = None if parameter.grad is None else runs_of(parameter.grad, found.places)
            ratio = farthest(found, self.rule, step)
        self.steps += 1
        if not ratio <= 1 and len(self.wrong) < MOST_NAMED:
            self.wrong[f"step {step}, update {self._name}"] = in_words(ratio)
