"""Further kinds that are right, of which some were judged wrong."""

import functools
import time

import torch
from torch import nn
from torch.nn import functional as F

from tests.worker.preflight.own.honest import Model, Softmax, heads_of, joined


class Alibi(Softmax):
    """Scores less the distance, by a slope for each head."""

    def scores(self, q, k):
        t = torch.arange(q.shape[-2])
        slopes = 2.0 ** -torch.arange(1, q.shape[1] + 1).to(q.dtype)
        return super().scores(q, k) - slopes[:, None, None] * (t[:, None] - t[None]).clamp(min=0)


class Sinks(Softmax):
    """One learned score beside those of the tokens, which takes weight and gives nothing."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.sink = nn.Parameter(torch.zeros(heads))

    def mixed(self, q, k, v):
        scores = self.scores(q, k).masked_fill(~self.sees(q.shape[-2], q.device), -torch.inf)
        sink = self.sink[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([sink, scores], dim=-1).softmax(-1)[..., 1:] @ v


class GlobalTokens(Softmax):
    """A window, and the first tokens for all."""

    def sees(self, length, device):
        t = torch.arange(length, device=device)
        return super().sees(length, device) & ((t[:, None] - t[None] < 32) | (t[None] < 4))


class BestBlocks(Softmax):
    """The own block and the best two before it by their mean key, as in MoBA."""

    def mixed(self, q, k, v, block=16):
        length, blocks = q.shape[-2], -(-q.shape[-2] // block)
        means = F.pad(k, (0, 0, 0, blocks * block - length)).unflatten(2, (blocks, block)).mean(3)
        t, b = torch.arange(length)[:, None], torch.arange(blocks)
        best = (q @ means.mT).masked_fill((b + 1) * block > t, -torch.inf).topk(min(2, blocks), -1)
        chosen = torch.zeros(*q.shape[:3], blocks, dtype=torch.bool).scatter(-1, best.indices, best.values > -torch.inf)
        seen = (chosen | (t // block == b)).repeat_interleave(block, -1)[..., :length] & self.sees(length, q.device)
        return self.scores(q, k).masked_fill(~seen, -torch.inf).softmax(-1) @ v


class BestTokens(Softmax):
    """The best tokens by an indexer that is not trained here, as in DSA."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.asked, self.named = (nn.Linear(dim, 8, bias=False).requires_grad_(False) for _ in range(2))

    def forward(self, x):
        scores = (self.asked(x) @ self.named(x).mT).masked_fill(~self.sees(x.shape[1], x.device), -torch.inf)
        best = scores.topk(min(24, x.shape[1]), -1)
        seen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best.indices, best.values > -torch.inf)
        q, k, v = (heads_of(project(x), self.heads) for project in (self.query, self.key, self.value))
        seen = (seen | torch.eye(x.shape[1], dtype=torch.bool))[:, None]
        return self.out(joined(self.scores(q, k).masked_fill(~seen, -torch.inf).softmax(-1) @ v))


class DeltaRule(nn.Module):
    """A state that forgets and is corrected, token by token."""

    seq_len = 80

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.norm = heads, nn.RMSNorm(dim // heads)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.rate, self.kept = nn.Linear(dim, heads), nn.Linear(dim, heads)

    def forward(self, x):
        q, k, v = (heads_of(part, self.heads) for part in F.silu(self.qkv(x)).chunk(3, dim=-1))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        rate, kept = self.rate(x).sigmoid().mT[..., None, None], (-F.softplus(self.kept(x))).exp().mT[..., None, None]
        state, rows = q.new_zeros(*q.shape[:2], q.shape[-1], q.shape[-1]), []
        for t in range(x.shape[1]):
            state, key = kept[:, :, t] * state, k[:, :, t, None]
            state = state + rate[:, :, t] * key.mT @ (v[:, :, t, None] - key @ state)
            rows.append(q[:, :, t, None] @ state)
        return self.out(joined(self.norm(torch.cat(rows, dim=2))))


class ShortConvolution(nn.Module):
    """A gated convolution over nine tokens."""

    def __init__(self, dim):
        super().__init__()
        self.enter, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.filter = nn.Conv1d(dim, dim, 9, groups=dim)

    def forward(self, x):
        a, b, c = self.enter(x).chunk(3, dim=-1)
        return self.out(a * F.silu(self.filter(F.pad((b * c).mT, (8, 0))).mT))


class TalkingHeads(Softmax):
    """Four figures mix the heads' weights: each is a sum over all pairs of tokens."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.mix = nn.Parameter(torch.eye(heads))

    def mixed(self, q, k, v):
        weights = self.scores(q, k).masked_fill(~self.sees(q.shape[-2], q.device), -torch.inf).softmax(-1)
        return torch.einsum("gh,bhts->bgts", self.mix, weights) @ v


class ComplexTurns(Softmax):
    """Positions are a buffer of complex numbers."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        width = dim // heads
        angles = torch.arange(1024)[:, None] * 100.0 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def turned(self, x):
        pairs = torch.view_as_complex(x.to(self.turns.real.dtype).unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turns[: x.shape[-2]]).flatten(-2).to(x.dtype)

    def mixed(self, q, k, v):
        return super().mixed(self.turned(q), self.turned(k), v)


class StateSpace(nn.Module):
    """A rotating state, in float32 inside: far on, its output is steep in the angles."""

    seq_len = 100

    def __init__(self, dim, width=16):
        super().__init__()
        self.decay, self.angle = nn.Parameter(-4 * torch.rand(width)), nn.Parameter(3 * torch.rand(width))
        self.enter, self.out = nn.Parameter(torch.randn(width, dim, 2)), nn.Parameter(torch.randn(dim, width, 2))

    def forward(self, x):
        enter, out = torch.view_as_complex(self.enter.float()), torch.view_as_complex(self.out.float())
        t = torch.arange(x.shape[1])
        base = torch.polar((-self.decay.float().exp()).exp(), self.angle.float())
        powers = base[:, None, None] ** (t[:, None] - t).clamp(min=0) * (t[:, None] >= t)
        return (torch.einsum("nts,bsn->btn", powers, x.to(enter.dtype) @ enter.T) @ out.T).real.to(x.dtype)


class KeptInFloat32(Softmax):
    """One parameter stays in float32, whatever the others are cast to."""

    dtype = "bfloat16"

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.gain = nn.Parameter(torch.ones(dim))

    def _apply(self, function, recurse=True):
        super()._apply(function, recurse)
        self.gain.data = self.gain.data.float()
        return self

    def forward(self, x):
        return super().forward((x.float() * self.gain).to(x.dtype))


@functools.lru_cache
def mask_of(length):
    return torch.ones(length, length, dtype=torch.bool).tril()


WARNED = set()


class SharedMask(Softmax):
    """The file keeps one mask for a length, and what it has warned of."""

    def sees(self, length, device):
        WARNED.add("once")
        return mask_of(length)


class TimesItself(Softmax):
    """It keeps how long its last call took."""

    def forward(self, x):
        began = time.perf_counter()
        y = super().forward(x)
        self.seconds = time.perf_counter() - began
        return y


class DrawsInVain(Model):
    """It would leave a layer out with a chance of 0."""

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x if self.training and torch.rand([]) < 0 else x + layer(x)
        return self.head(self.norm(x))


class PositionTable(Model):
    """A table of positions, and a head that is the embedding, as in GPT-2."""

    def __init__(self, vocab, dim, heads, layers):
        super().__init__(vocab, dim, heads, layers)
        self.positions = nn.Embedding(1024, dim)
        self.before = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.head.weight = self.embedding.weight
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for norm, layer in zip(self.before, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(self.norm(x))


class PaddingRow(Model):
    """The embedding of token 0 is zeros."""

    def __init__(self, vocab, dim, heads, layers):
        super().__init__(vocab, dim, heads, layers)
        self.embedding = nn.Embedding(vocab, dim, padding_idx=0)
