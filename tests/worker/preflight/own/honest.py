"""Attentions, a kernel and models that are right, of different kinds: every check that is required must hold."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F


def heads_of(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(y):
    return y.transpose(1, 2).flatten(2)


class Softmax(nn.Module):
    """Causal attention without positions, by hand."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def sees(self, length, device):
        t = torch.arange(length, device=device)
        return t[:, None] >= t[None]

    def scores(self, q, k):
        return q @ k.mT * q.shape[-1] ** -0.5

    def mixed(self, q, k, v):
        scores = self.scores(q, k).masked_fill(~self.sees(q.shape[-2], q.device), -torch.inf)
        return scores.softmax(-1) @ v

    def forward(self, x):
        q, k, v = (heads_of(project(x), self.heads) for project in (self.query, self.key, self.value))
        return self.out(joined(self.mixed(q, k, v)))


class Sliding(Softmax):
    """It says how far it sees, and that its bits are always the same."""

    window, deterministic = 64, True

    def sees(self, length, device):
        t = torch.arange(length, device=device)
        return super().sees(length, device) & (t[:, None] - t[None] < self.window)


class Linear(Softmax):
    """Causal linear attention with a positive feature map, a sum over a state."""

    def mixed(self, q, k, v):
        q, k = F.elu(q) + 1, F.elu(k) + 1
        weights = (q @ k.mT).masked_fill(~self.sees(q.shape[-2], q.device), 0)
        return weights @ v / weights.sum(-1, keepdim=True)


class Sigmoid(Softmax):
    """Scores through a sigmoid, over the length: no weight is more than one of all."""

    def mixed(self, q, k, v):
        return self.scores(q, k).sigmoid().masked_fill(~self.sees(q.shape[-2], q.device), 0) @ v / q.shape[-2]


class BiasedSigmoid(Softmax):
    """Scores less the logarithm of the tokens that a row sees, through a sigmoid."""

    def mixed(self, q, k, v):
        sees = self.sees(q.shape[-2], q.device)
        weights = (self.scores(q, k) - sees.sum(-1, keepdim=True).to(q.dtype).log()).sigmoid()
        return weights.masked_fill(~sees, 0) @ v


class Latent(nn.Module):
    """Keys and values from a narrow latent, as in MLA; a head of rotated positions is left out."""

    def __init__(self, dim, heads, latent=12):
        super().__init__()
        self.heads = heads
        self.query, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.down, self.norm = nn.Linear(dim, latent, bias=False), nn.RMSNorm(latent)
        self.key, self.value = (nn.Linear(latent, dim, bias=False) for _ in range(2))

    def forward(self, x):
        latent = self.norm(self.down(x))
        q, k, v = (heads_of(t, self.heads) for t in (self.query(x), self.key(latent), self.value(latent)))
        return self.out(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


class Tuple(Softmax):
    """Gives weights and a cache beside its output."""

    def forward(self, x, cache=None):
        return super().forward(x), None, cache


class Float32Only(Softmax):
    """Its kernel takes float32 and nothing else."""

    def mixed(self, q, k, v):
        if q.dtype != torch.float32:
            raise TypeError(f"this kernel takes float32, not {q.dtype}")
        return super().mixed(q, k, v)


class NoDropout(Softmax):
    """Dropout that is off."""

    def __init__(self, dim, heads, dropout=0.0):
        super().__init__(dim, heads)
        self.dropout = nn.Dropout(dropout)

    def mixed(self, q, k, v):
        return self.dropout(super().mixed(q, k, v))


class Hybrid(nn.Module):
    """Half of the width by a window, half by linear attention, behind a gate."""

    def __init__(self, dim, heads):
        super().__init__()
        self.near, self.far, self.gate = Sliding(dim, heads), Linear(dim, heads), nn.Linear(dim, dim)

    def forward(self, x):
        gate = self.gate(x).sigmoid()
        return gate * self.near(x) + (1 - gate) * self.far(x)


class Recurrent(nn.Module):
    """An LSTM in the place of attention."""

    def __init__(self, dim):
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


class Grouped(Softmax):
    """It brings its own reference: the same in another way, with the same parameters."""

    def reference(self, x):
        q, k, v = (heads_of(project(x), self.heads) for project in (self.query, self.key, self.value))
        rows = [
            (q[:, :, t : t + 1] @ k[:, :, : t + 1].mT * q.shape[-1] ** -0.5).softmax(-1) @ v[:, :, : t + 1]
            for t in range(x.shape[1])
        ]
        return self.out(joined(torch.cat(rows, dim=2)))


def kernel(q, k, v, block_indices, *, l_sel, scale):
    """The selected branch by a mask."""
    length, blocks = q.shape[2], -(-q.shape[2] // l_sel)
    chosen = torch.zeros(*block_indices.shape[:3], blocks + 1, dtype=torch.bool, device=q.device)
    chosen = chosen.scatter(-1, block_indices + 1, True)[..., 1:].repeat_interleave(l_sel, dim=-1)[..., :length]
    shared = q.shape[1] // k.shape[1]
    k, v, chosen = (t.repeat_interleave(shared, dim=1) for t in (k, v, chosen))
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    return ((q @ k.mT * scale).masked_fill(~(chosen & causal), -torch.inf)).softmax(-1) @ v


class Model(nn.Module):
    """A small decoder with its own layers; gives an object with logits."""

    attention = Softmax

    def __init__(self, vocab, dim, heads, layers):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(self.attention(dim, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return SimpleNamespace(logits=self.head(self.norm(x)))
