"""Attentions, kernels and models of others, with one mistake each. The first word of a docstring names the check."""

import collections

import torch
from torch import nn
from torch.nn import functional as F

from tests.worker.preflight.own import honest
from tests.worker.preflight.own.honest import Softmax, heads_of, joined


class OneTokenAhead(Softmax):
    """future: beyond 300 tokens every row sees the next one too."""

    def sees(self, length, device):
        t = torch.arange(length, device=device)
        return t[:, None] + (t[:, None] > 300) >= t[None]


class ForgottenMask(Softmax):
    """future: no mask at all."""

    def sees(self, length, device):
        return torch.ones(length, length, dtype=torch.bool, device=device)


class BlockEnd(Softmax):
    """future: a row sees its whole block of 16, as a mask by blocks does."""

    def sees(self, length, device):
        t = torch.arange(length, device=device)
        return t[:, None] // 16 >= t[None] // 16


class ChosenByAll(Softmax):
    """future: which half of the keys is read is decided by the whole sequence."""

    def scores(self, q, k):
        strength = k.norm(dim=-1)
        kept = strength >= strength.median(dim=-1, keepdim=True).values
        return super().scores(q, k) + torch.where(kept, 0.0, -8.0)[..., None, :]


class _MaskedForwardOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, sees):
        return weights * sees

    @staticmethod
    def backward(ctx, d):
        return d, None


class LeakInBackward(Softmax):
    """future: forward masks, backward does not."""

    def mixed(self, q, k, v):
        weights = (self.scores(q, k)).exp()
        weights = _MaskedForwardOnly.apply(weights, self.sees(q.shape[-2], q.device).to(q.dtype))
        return weights / weights.sum(-1, keepdim=True).detach() @ v


class BeyondItsWindow(Softmax):
    """future: it says a window of 32 and sees everything."""

    window = 32


class BatchMean(Softmax):
    """others: sequences of a batch are centred together."""

    def forward(self, x):
        return super().forward(x - x.mean(dim=0, keepdim=True) / 2)


class FirstSequenceDecides(Softmax):
    """others: keys of the first sequence serve all."""

    def mixed(self, q, k, v):
        return super().mixed(q, 0.9 * k + 0.1 * k[:1], v)


class ByLength(Softmax):
    """others: divided by the length of the whole sequence, so padding changes rows before it."""

    def mixed(self, q, k, v):
        return super().mixed(q, k, v) * (q.shape[-2] / 100)


class Bfloat16Inside(Softmax):
    """finite_difference: computes in bfloat16 whatever the dtype is."""

    def mixed(self, q, k, v):
        return super().mixed(*(t.bfloat16() for t in (q, k, v))).to(q.dtype)


class CoarseExp(Softmax):
    """self_error: an exponential from a table of 64 values in float32."""

    def mixed(self, q, k, v):
        scores = self.scores(q, k).masked_fill(~self.sees(q.shape[-2], q.device), -torch.inf)
        if q.dtype == torch.float32:
            scores = scores + ((scores * 64).round() / 64 - scores).detach().nan_to_num()
        return scores.softmax(-1) @ v


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return d * ctx.factor, None


class KeyGradientTooSmall(Softmax):
    """finite_difference: the gradient of the keys is four fifths of what it is."""

    def mixed(self, q, k, v):
        return super().mixed(q, _Scaled.apply(k, 0.8), v)


class SignOfOneGradient(Softmax):
    """finite_difference: the gradient of the values has the wrong sign."""

    def mixed(self, q, k, v):
        return super().mixed(q, k, _Scaled.apply(v, -1.0))


class NormalizedWithoutGradient(Softmax):
    """finite_difference: the denominator is taken for a constant."""

    def mixed(self, q, k, v):
        weights = self.scores(q, k).exp() * self.sees(q.shape[-2], q.device)
        return weights / weights.sum(-1, keepdim=True).detach() @ v


class AnyOrder(Softmax):
    """same_bits: says deterministic, and adds up in another order each time."""

    deterministic = True

    def forward(self, x):
        order = torch.randperm(x.shape[-1])
        q, k, v = (
            heads_of(x[..., order] @ project.weight[:, order].T, self.heads)
            for project in (self.query, self.key, self.value)
        )
        return self.out(joined(self.mixed(q, k, v)))


class ForgottenDropout(Softmax):
    """same_bits: says deterministic, and a dropout is still on."""

    deterministic = True

    def mixed(self, q, k, v):
        return F.dropout(super().mixed(q, k, v), 0.1)


class _Noisy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return d + 0 * torch.rand_like(d)


class RandomInBackward(Softmax):
    """checkpointing: backward draws random numbers."""

    def forward(self, x):
        return _Noisy.apply(super().forward(x))


class Counter(Softmax):
    """checkpointing: counts its calls, twice where it is computed again."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class RunningMean(Softmax):
    """checkpointing: a buffer moves with every call and the output with it."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.register_buffer("mean", torch.zeros(dim))

    def forward(self, x):
        self.mean.lerp_(x.detach().mean(dim=(0, 1)), 0.1)
        return super().forward(x - self.mean)


class OwnGenerator(Softmax):
    """checkpointing: a generator of its own, which nobody restores."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return super().forward(x * (torch.rand(x.shape[-1:], generator=self.generator) > 0.1).to(x))


class DeadParameter(Softmax):
    """gradients: a projection that nothing reads."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.position = nn.Linear(dim, dim)


class DetachedQuery(Softmax):
    """gradients: queries are cut off."""

    def mixed(self, q, k, v):
        return super().mixed(q.detach(), k, v)


class NormOfZero(Softmax):
    """gradients: the norm of what is zero has the gradient NaN."""

    def forward(self, x):
        y = super().forward(x)
        return y + 0 * (self.out.weight - self.out.weight).square().sum().sqrt()


class InPlace(Softmax):
    """inputs: normalizes its input where it lies."""

    def forward(self, x):
        return super().forward(x.div_(x.detach().norm(dim=-1, keepdim=True) + 1))


class KeepsInput(Softmax):
    """inputs: keeps its last input for a look at it."""

    def forward(self, x):
        self.seen = x.detach()
        return super().forward(x)


class Grows(Softmax):
    """inputs: appends to a history."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.history = collections.deque()

    def forward(self, x):
        y = super().forward(x)
        self.history.append(y.detach().mean(dim=1))
        return y


class WithoutMaximum(Softmax):
    """large: exponentials without their maximum taken off overflow."""

    def mixed(self, q, k, v):
        weights = self.scores(q, k).exp() * self.sees(q.shape[-2], q.device)
        return weights / weights.sum(-1, keepdim=True) @ v


class HalfPrecisionProduct(Softmax):
    """large: products in float16 overflow before they are scaled."""

    def scores(self, q, k):
        return ((16 * q).half() @ (16 * k).half().mT).to(q.dtype) * (q.shape[-1] ** -0.5 / 256)


class OneTokenIsNan(Softmax):
    """empty: a deviation over one token is NaN."""

    def forward(self, x):
        spread = torch.stack([x[:, : t + 1].std(dim=1) for t in range(min(2, x.shape[1]))], dim=1)
        return super().forward(x) + 0 * spread[:, -1:].detach()


class WholeBlocksOnly(Softmax):
    """empty: refuses what is no multiple of its block."""

    def mixed(self, q, k, v):
        q.unflatten(-2, (-1, 2))
        return super().mixed(q, k, v)


class Nothing(Softmax):
    """copy_near: zeros."""

    def forward(self, x):
        return 0 * super().forward(x)


class FirstKeyOnly(Softmax):
    """copy_near: every row reads the first token alone."""

    def sees(self, length, device):
        return (torch.arange(length, device=device) == 0).expand(length, -1)


class ItselfOnly(Softmax):
    """copy_near: every row reads itself alone."""

    def sees(self, length, device):
        return torch.eye(length, dtype=torch.bool, device=device)


class NotItsReference(honest.Grouped):
    """reference: a scale that its reference does not have."""

    def scores(self, q, k):
        return super().scores(q, k) * 1.5


class WrongCompiled(Softmax):
    """compiled: another result under torch.compile."""

    def mixed(self, q, k, v):
        factor = 1.1 if torch.compiler.is_compiling() else 1.0
        return super().mixed(q, k * factor, v)


class FallsBack(Softmax):
    """compiled: a part that runs eagerly."""

    @torch.compiler.disable
    def mixed(self, q, k, v):
        return super().mixed(q, k, v)


def kernel_ahead(q, k, v, block_indices, *, l_sel, scale):
    """future: the own block is read to its end."""
    length = q.shape[2]
    chosen = torch.zeros(*block_indices.shape[:3], -(-length // l_sel) + 1, dtype=torch.bool)
    chosen = chosen.scatter(-1, block_indices + 1, True)[..., 1:].repeat_interleave(l_sel, dim=-1)[..., :length]
    return (q @ k.mT * scale).masked_fill(~chosen, -torch.inf).softmax(-1) @ v


def kernel_mixes_sequences(q, k, v, block_indices, *, l_sel, scale):
    """others: values of the last sequence are added to all."""
    y = honest.kernel(q, k, v, block_indices, l_sel=l_sel, scale=scale)
    return y + 0.01 * y[-1:]


def kernel_without_gradient_of_k(q, k, v, block_indices, *, l_sel, scale):
    """finite_difference: keys get half of their gradient."""
    return honest.kernel(q, _Scaled.apply(k, 0.5), v, block_indices, l_sel=l_sel, scale=scale)


class ShiftedTokens(honest.Model):
    """future: the next token is looked at beside each."""

    def forward(self, tokens):
        mixed = self.embedding(tokens) + 0.2 * self.embedding(tokens.roll(-1, dims=1))
        for layer in self.layers:
            mixed = mixed + layer(mixed)
        return self.head(self.norm(mixed))


class ModelWithoutMask(honest.Model):
    """future: its attention has no mask."""

    attention = ForgottenMask


class SkippedLayer(honest.Model):
    """gradients: the last layer is never called."""

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers[:-1]:
            x = x + layer(x)
        return self.head(self.norm(x))


class BatchedPositions(honest.Model):
    """others: sequences are read as one long one."""

    def forward(self, tokens):
        return self.head(self.norm(self._through(self.embedding(tokens)))).view(*tokens.shape, -1)

    def _through(self, x):
        x = x.reshape(1, -1, x.shape[-1])
        for layer in self.layers:
            x = x + layer(x)
        return x
