"""The layer that the checks of a preflight judge, its inputs, and what the float64 reference makes of them.

The layer has the run's own head widths, blocks, phi, dtype and device, and as many query heads to a group. It has fewer
groups, and a sequence just long enough that scores decide, so that the loops of the reference take seconds.

Letters: B batch, T tokens, H heads, G groups, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject.attention import NSAttention, reference
from nsa_lib.subject.config import NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.accuracy import with_gradients

GROUPS = 2

PLAIN = "masked"
"""All plain backends share everything but the selected branch. What they share is checked with this one."""

SELECTED = 4
"""The most blocks that a query reads; one of them is chosen by score."""

LAYERS = 3

VOCAB = 64


def judged_sizes(config: NSAConfig) -> tuple[NSAConfig, int]:
    """Return the sizes of the layer that is judged, and a length at which scores decide: no multiple of l_sel or d."""
    c, groups = config, min(config.groups, GROUPS)
    heads = groups * (c.heads // c.groups)
    n_sel = min(c.n_sel, SELECTED)
    small = replace(c, dim=c.dim * heads // c.heads, heads=heads, groups=groups, n_sel=n_sel, w=min(c.w, 2 * c.l_sel))
    return small, (n_sel + 2) * c.l_sel - c.l_sel // 2 - 3


class Subject:
    """The layer that is judged, its input, and what the reference makes of it."""

    def __init__(self, case: CaseConfig):
        self.case = case
        self.config, self.length = judged_sizes(case.model.nsa)
        self.dtype, self.device = getattr(torch, case.dtype), case.device
        self._generator = torch.Generator().manual_seed(case.seed)
        self._exact: list[tuple[torch.Tensor, tuple[torch.Tensor, ...]]] = []

    def random(self, *shape: int) -> torch.Tensor:
        """Return normal numbers in the case's dtype and on its device."""
        return torch.randn(shape, generator=self._generator).to(self.dtype).to(self.device)

    def layer(self, backend: str, branches: Sequence[str] | None = None) -> NSAttention:
        """Return a layer; the same weights each time."""
        config = replace(self.config, branches=tuple(branches)) if branches else self.config
        torch.manual_seed(self.case.seed)
        return NSAttention(config, backend).to(self.dtype).to(self.device)

    def model(self, *, layers: int, backend: str) -> TinyLM:
        """Return a model of such layers; the same weights each time."""
        torch.manual_seed(self.case.seed)
        config = replace(self.case.model.contestant(backend), nsa=self.config, layers=layers, vocab=VOCAB)
        return TinyLM(config).to(self.dtype).to(self.device)

    def tokens(self, length: int) -> torch.Tensor:
        """Return random tokens, [1, length]."""
        return torch.randint(VOCAB, (1, length), generator=self._generator).to(self.device)

    @cached_property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """x and the gradient of the output, [1, T, dim]."""
        shape = (1, self.length, self.config.dim)
        return self.random(*shape), self.random(*shape)

    def exact(self, backend: str) -> tuple[torch.Tensor, ...]:
        """Return the reference's output, and its gradients by x and each parameter, for a layer's own blocks.

        The plain backends select the same, so it is computed once for them.
        """
        layer = self.layer(backend)
        blocks = layer.select(self.inputs[0]).cpu()
        found = next((exact for known, exact in self._exact if torch.equal(known, blocks)), None)
        if found is None:
            found = self._judged(layer, blocks)
            self._exact.append((blocks, found))
        return found

    def _judged(self, layer: NSAttention, blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, cotangent = (tensor.cpu() for tensor in self.inputs)
        names = [name for name, _ in layer.named_parameters()]

        def judge(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
            return reference.nsa(x, dict(zip(names, values, strict=True)), self.config, blocks)

        return with_gradients(judge, [t.detach().cpu().double() for t in (x, *layer.parameters())], cotangent.double())

    @cached_property
    def selected(self) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Of the selected branch alone: q, k, v; random blocks; the output's gradient; what the reference makes."""
        c = self.config
        q, k = (self.random(1, heads, self.length, c.d_k) for heads in (c.heads, c.groups))
        v, cotangent = (self.random(1, heads, self.length, c.d_v) for heads in (c.groups, c.heads))
        scores = torch.rand(1, c.groups, self.length, -(-self.length // c.l_sel), generator=self._generator)
        blocks = reference.select_blocks(scores, l_sel=c.l_sel, n_sel=c.n_sel)

        def judge(*tensors: torch.Tensor) -> torch.Tensor:
            return reference.selected_attention(*tensors, blocks, l_sel=c.l_sel)

        exact = with_gradients(judge, [t.cpu().double() for t in (q, k, v)], cotangent.cpu().double())
        return (q, k, v), blocks.to(self.device), cotangent, exact
