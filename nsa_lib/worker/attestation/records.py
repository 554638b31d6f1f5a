"""What is recorded of a training step: of each layer, of some entries of each parameter, and of the loss."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nsa_lib.subject.config import NSAConfig
from nsa_lib.worker.attestation.sample import Sample


@dataclass
class LayerRecord:
    """What one attention layer did in a step."""

    config: NSAConfig
    """What it was asked to be, and not what it says of itself; `backend` too."""
    backend: str
    parameters: dict[str, Tensor]
    """Before the update."""
    passes: int = 0
    """Times that forward ran."""
    x: Tensor | None = None
    """Input, [B, T, dim]."""
    shown: dict[str, Tensor] = field(default_factory=dict)
    """What the layer showed on its way, rows alone: `cmp`, `slc`, `win`, `branch_gates`; all rows of `blocks`, and of
    `by_union` all tiles."""
    output: Tensor | None = None
    """Rows of the output, [B, R, dim]."""
    recomputed: Tensor | None = None
    """The same rows of the last pass, if there were several."""
    is_compiled: bool = False
    """Then the first pass, which keeps nothing, is other code than the last, and may be rounded otherwise."""
    d_output: Tensor | None = None
    """Gradient of the output, [B, T, dim]."""
    d_x: Tensor | None = None
    """Rows of the gradient of x, [B, R, dim]."""
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    """Of the parameters."""


@dataclass
class Entries:
    """Some entries of a parameter: values and optimizer state before and after the update, and the gradient."""

    places: tuple[slice, ...]
    """Of the runs of neighbouring entries; one for a parameter that is followed whole."""
    before: dict[str, Tensor]
    size: int
    """Entries of the whole parameter."""
    gradient: Tensor | None = None
    after: dict[str, Tensor] = field(default_factory=dict)
    gradient_norm: float | None = None
    """Of the whole parameter, in float32 or wider; None without a gradient."""
    largest_gradient: float | None = None
    """Largest |gradient| of the whole parameter; NaN if one is, None without a gradient."""
    trained: bool = True
    """Whether it wants a gradient."""

    def to(self, device: str | torch.device) -> Entries:
        """Return them on a device."""
        before, after = ({name: x.to(device) for name, x in held.items()} for held in (self.before, self.after))
        gradient = None if self.gradient is None else self.gradient.to(device)
        return replace(self, before=before, after=after, gradient=gradient)


@dataclass
class StepRecord:
    """What a training step did."""

    sample: Sample
    tokens: Tensor
    """[B, T + 1]."""
    head: Tensor | None
    """Before the update, [vocab, dim]; None where the hidden states are logits."""
    layers: dict[int, LayerRecord]
    shapes: dict[str, tuple[int, ...]]
    """Of all parameters."""
    entries: dict[str, Entries]
    why_no_layers: str | None = None
    """Why none is recorded."""
    hidden: Tensor | None = None
    """What the head reads, [B, T, dim]."""
    d_hidden: Tensor | None = None
    d_head: Tensor | None = None
    why_no_d_head: str = "no gradient reached the head"

    @property
    def labels(self) -> Tensor:
        """The token that follows each position, [B, T]."""
        return self.tokens[:, 1:]

    @property
    def tells_keys_apart(self) -> bool:
        """Whether some sequence has two different tokens to read.

        Otherwise all values are the same, whatever queries attend to: keys have no gradient but what rounding leaves.
        """
        read = self.tokens[:, :-1]
        return bool((read != read[:, :1]).any())
