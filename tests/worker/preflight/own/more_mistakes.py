"""Further mistakes that the checks of their day missed, or that nobody had planted. Each docstring names its check."""

import random

import numpy as np
import torch
from torch import nn

from tests.worker.preflight.own.honest import Model, Softmax, heads_of, joined


class LaterEntries(Softmax):
    """others: from the fifth sequence of a batch on the one before is mixed in."""

    batch = 8

    def mixed(self, q, k, v):
        y = super().mixed(q, k, v)
        return torch.cat([y[:4], y[4:] + 0.1 * y[3:-1]]) if len(y) > 4 else y


class PairOfSequences(Softmax):
    """others: in a batch of exactly two, rows of both are laid out as one."""

    batch = 2

    def mixed(self, q, k, v):
        y = super().mixed(q, k, v)
        return y.transpose(0, 1).reshape(y.shape) if len(y) == 2 else y


class LastRowOfABlock(Softmax):
    """others: the row that is left over after whole blocks of 64 is zeros."""

    def forward(self, x):
        y = super().forward(x)
        return torch.cat([y[:, :-1], 0 * y[:, -1:]], dim=1) if x.shape[1] > 64 and x.shape[1] % 64 == 1 else y


class _Changed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return ctx.change(d), None


class BackwardOfLongOnes(Softmax):
    """finite_difference: beyond 512 tokens values get half of their gradient."""

    seq_len = 600

    def mixed(self, q, k, v):
        far = torch.arange(v.shape[-2])[:, None] >= 512
        return super().mixed(q, k, _Changed.apply(v, lambda d: torch.where(far, d / 2, d)))


class BackwardOfLaterEntries(Softmax):
    """finite_difference: values of the third sequence on get half of their gradient."""

    batch = 4

    def mixed(self, q, k, v):
        later = torch.arange(len(v))[:, None, None, None] >= 2
        return super().mixed(q, k, _Changed.apply(v, lambda d: torch.where(later, d / 2, d)))


class HookHalves(Softmax):
    """finite_difference: a hook halves the gradient of one weight."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.key.weight.register_hook(lambda gradient: gradient / 2)


class TiedToACopy(Model):
    """finite_difference: its head is the embedding, whose gradient from there is cut off."""

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.norm(x) @ self.embedding.weight.detach().T + 0 * self.head(x)


class OnePairFarOn(Softmax):
    """future: beyond 512 tokens one row sees one token that it may not see, the next one."""

    seq_len = 600

    def sees(self, length, device):
        seen = super().sees(length, device).clone()
        if length > 580:
            seen[570, 571] = True
        return seen


class WeakNoise(Softmax):
    """checkpointing: draws numbers that change its output by a millionth."""

    def forward(self, x):
        y = super().forward(x)
        return y * (1 + 1e-6 * torch.randn_like(y))


class NoiseInLongTraining(Softmax):
    """checkpointing: draws numbers in training, beyond the length that is tried first."""

    seq_len = 280

    def forward(self, x):
        y = super().forward(x)
        return y * (1 + 1e-6 * torch.randn_like(y)) if self.training and x.shape[1] > 256 else y


class NoiseOfPython(Softmax):
    """checkpointing: draws from Python's generator, which no checkpoint restores."""

    def forward(self, x):
        return super().forward(x) * (1 + 1e-5 * random.random())


class NoiseOfNumpy(Softmax):
    """checkpointing: draws from NumPy's generator."""

    def forward(self, x):
        return super().forward(x) * (1 + 1e-5 * float(np.random.standard_normal()))


class OtherWithoutGradients(Softmax):
    """checkpointing: what it says without gradients, as the first pass of a checkpoint is, has another scale."""

    def forward(self, x):
        return super().forward(x) * (1.0 if torch.is_grad_enabled() else 1.05)


class CountsForAll(Softmax):
    """checkpointing: its class counts the calls of all layers."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return super().forward(x)


class ShrinkingWeights(Softmax):
    """checkpointing: each call makes a weight a little smaller."""

    def forward(self, x):
        with torch.no_grad():
            self.out.weight.mul_(1 - 1e-6)
        return super().forward(x)


HISTORY = []


class FiguresOnAList(Softmax):
    """inputs: the file keeps a figure of each call."""

    def forward(self, x):
        y = super().forward(x)
        HISTORY.append(y.detach().square().mean().item())
        return y


class EveryThirdCall(Softmax):
    """inputs: keeps a tensor of each third call."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.kept, self.calls = [], 0

    def forward(self, x):
        y = super().forward(x)
        self.calls = (self.calls + 1) % 3
        self.kept += [y.detach().mean()] if self.calls == 0 else []
        return y


class HooksOfEachCall(Softmax):
    """inputs: each call registers one more hook."""

    def forward(self, x):
        self.out.register_forward_hook(lambda module, given, output: None)
        return super().forward(x)


class HooksOnAWeight(Softmax):
    """inputs: each call registers one more hook on a weight."""

    def forward(self, x):
        self.out.weight.register_hook(lambda gradient: gradient)
        return super().forward(x)


class KeepsInputOfTraining(Softmax):
    """inputs: keeps its input where there are gradients."""

    def forward(self, x):
        if torch.is_grad_enabled():
            self.seen = x.detach()
        return super().forward(x)


class _Overwrites(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        given = d.clone()
        d.zero_()
        return given


class WritesIntoItsGradient(Softmax):
    """inputs: backward clears the gradient that it is given, which others still read."""

    def forward(self, x):
        return _Overwrites.apply(super().forward(x))


class NormWithoutEpsilon(Softmax):
    """empty: a row of zeros, as padding is, is divided by its norm."""

    def forward(self, x):
        return super().forward(x / x.square().mean(-1, keepdim=True).sqrt())


class OneTokenLeftOver(Softmax):
    """empty: NaN where one token is left over after whole blocks of 64."""

    def forward(self, x):
        y = super().forward(x)
        return y * torch.nan if x.shape[1] > 64 and x.shape[1] % 64 == 1 else y


class OneWordIsNan(Model):
    """empty: one token of the vocabulary gives NaN."""

    vocab = 4096

    def forward(self, tokens):
        return super().forward(tokens).logits.masked_fill((tokens == 13)[..., None], torch.nan)


class EightBits(Softmax):
    """self_error: its values have 8 bits in float32."""

    def mixed(self, q, k, v):
        if v.dtype == torch.float32:
            step = v.detach().abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
            v = v + ((v / step).round() * step - v).detach()
        return super().mixed(q, k, v)


WEIGHT = torch.eye(32).requires_grad_()


class WeightOfTheFile(Softmax):
    """gradients: a weight stands in the file and in no module."""

    def forward(self, x):
        return super().forward(x @ WEIGHT)


class CutOff(nn.Module):
    """finite_difference: rows from the 50th on are cut off from the graph."""

    def __init__(self, dim, heads):
        super().__init__()
        self.inside = Softmax(dim, heads)

    def forward(self, x):
        y = self.inside(x)
        return torch.cat([y[:, :50], y[:, 50:].detach()], dim=1)


class SharedScale(Softmax):
    """others: keys are scaled by the largest of the batch, as an 8-bit product may be."""

    def forward(self, x):
        q, k, v = (heads_of(project(x), self.heads) for project in (self.query, self.key, self.value))
        step = k.detach().abs().amax() / 127
        return self.out(joined(self.mixed(q, k + ((k / step).round() * step - k).detach(), v)))
