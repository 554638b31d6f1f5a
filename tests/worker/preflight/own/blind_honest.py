"""What is right and was judged wrong, or nearly, in a blind trial: written before its authors had read the checks."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.worker.preflight.own.honest import Model, Softmax, heads_of, joined


class ZeroProjection(Softmax):
    """Its output projection starts at zero: the output is nothing until it has learned."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        nn.init.zeros_(self.out.weight)


class ZeroGate(Softmax):
    """One figure scales the output, and starts at zero (ReZero)."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.alpha * super().forward(x)


class KeyBias(Softmax):
    """A softmax does not see a bias of keys: its gradient is rounding alone."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))


class Differential(nn.Module):
    """The difference of two attentions, which are nearly alike at the start: gradients of its scale cancel."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.first, self.second = (nn.Parameter(0.1 * torch.randn(2, dim // heads // 2)) for _ in range(2))
        self.norm = nn.RMSNorm(dim // heads)

    def forward(self, x):
        q, k, v = (heads_of(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        one, other = (
            F.scaled_dot_product_attention(a, b, v, is_causal=True)
            for a, b in zip(q.chunk(2, dim=-1), k.chunk(2, dim=-1), strict=True)
        )
        scale = self.first.prod(0).sum().exp() - self.second.prod(0).sum().exp() + 0.8
        return self.out(joined(self.norm(one - scale * other)))


class Reentrant(Softmax):
    """It checkpoints itself in the older way, which refuses `torch.autograd.grad`."""

    def mixed(self, q, k, v):
        return checkpoint(super().mixed, q, k, v, use_reentrant=True)


class LongConvolution(nn.Module):
    """A convolution over the whole sequence by Fourier transforms in float32, which round every row by the largest."""

    def __init__(self, dim):
        super().__init__()
        self.enter, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.filter = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, dim))
        self.decay = nn.Parameter(torch.linspace(0.5, 5, dim))

    def forward(self, x):
        length = x.shape[1]
        q, k, v = self.enter(x).mT.chunk(3, dim=1)
        t = torch.arange(length, dtype=x.dtype, device=x.device)[:, None] / 256
        response = self.filter(torch.cat([t, (6 * t).sin(), (6 * t).cos()], dim=-1)) * (-self.decay.abs() * t).exp()
        spectra = (torch.fft.rfft(signal.float(), 2 * length) for signal in (k * v, response.mT))
        y = torch.fft.irfft(next(spectra) * next(spectra), 2 * length)[..., :length]
        return self.out((q * y.to(x.dtype)).mT)


class RemembersItsSwitch(Model):
    """A model whose switch of checkpointing has a name of its own."""

    is_remembered = True

    def gradient_checkpointing_enable(self):
        self.is_remembered = False

    def gradient_checkpointing_disable(self):
        self.is_remembered = True

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + (layer(x) if self.is_remembered else checkpoint(layer, x, use_reentrant=False))
        return self.head(self.norm(x))


class ZeroHead(Model):
    """Its head starts at zero: all logits are alike."""

    def __init__(self, vocab, dim, heads, layers):
        super().__init__(vocab, dim, heads, layers)
        nn.init.zeros_(self.head.weight)
