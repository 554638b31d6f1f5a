"""Mistakes that a blind trial planted and the checks of its day missed. Each docstring names its check."""

import torch
from torch import nn

from tests.worker.preflight.own.honest import Model, Softmax


class WeakMask(Softmax):
    """future: the mask adds -20 and lets 2e-9 through, below a rounding of float32."""

    def mixed(self, q, k, v):
        return (self.scores(q, k) - 20.0 * ~self.sees(q.shape[-2], q.device)).softmax(-1) @ v


class FirstOfBatch(Softmax):
    """future: the mask is made for the first sequence; in the others row 0 sees token 1."""

    def mixed(self, q, k, v):
        scores = self.scores(q, k)
        sees = self.sees(q.shape[-2], q.device).expand_as(scores).clone()
        sees[1:, :, 0, 1:2] = True
        return scores.masked_fill(~sees, -torch.inf).softmax(-1) @ v


class SecondLayer(Softmax):
    """future: only every second layer that is made has no mask."""

    made = 0

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.layer = SecondLayer.made
        SecondLayer.made += 1

    def sees(self, length, device):
        sees = super().sees(length, device)
        return sees | True if self.layer % 2 else sees


class ChoiceKept(Softmax):
    """others: which keys count is chosen from the first batch of a shape, for good."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.chosen = {}

    def mixed(self, q, k, v):
        scores = self.scores(q, k).masked_fill(~self.sees(q.shape[-2], q.device), -torch.inf)
        if scores.shape not in self.chosen:
            self.chosen[scores.shape] = (
                scores.detach() >= scores.detach().topk(min(8, scores.shape[-1])).values[..., -1:]
            )
        own = torch.eye(q.shape[-2], dtype=torch.bool, device=q.device)
        return scores.masked_fill(~(self.chosen[scores.shape] | own), -torch.inf).softmax(-1) @ v


class KeepsGraph(Softmax):
    """inputs: queries, keys and values of the last call stay, and the graph that made them."""

    def mixed(self, q, k, v):
        self.last = q, k, v
        return super().mixed(q, k, v)


class Reseeds(Softmax):
    """checkpointing: sets the seed of all that is random, at each call."""

    def forward(self, x):
        torch.manual_seed(0)
        return super().forward(x)


class _LaterGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        return v.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[1:, -1] = 0
        return gradient


class LaterSequences(Softmax):
    """finite_difference: of all sequences but the first the last head's values get no gradient."""

    def mixed(self, q, k, v):
        return super().mixed(q, k, _LaterGradient.apply(v))


class RoundedGradient(nn.Module):
    """finite_difference: one gradient is rounded to 12 bits on its way."""

    def __init__(self, dim, heads):
        super().__init__()
        self.inside, self.out = Softmax(dim, heads), nn.Linear(dim, dim)

    def forward(self, x):
        y = self.inside(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient + gradient.abs().amax() * 2.0**-12 * gradient.sign())
        return self.out(y)


class OnePair(Softmax):
    """future: one row sees one token that it may not see, the next one."""

    def sees(self, length, device):
        seen = super().sees(length, device).clone()
        if length > 140:
            seen[139, 140] = True
        return seen


class PlainList(Model):
    """gradients: its layers stand in a plain list, so that nobody trains them."""

    def __init__(self, vocab, dim, heads, layers):
        super().__init__(vocab, dim, heads, layers)
        plain = list(self.layers)
        del self.layers
        self.layers = plain
