"""What can only be judged in part, or not at all."""

import torch

from tests.worker.preflight.own.honest import Softmax


class SixteenBitsOnly(Softmax):
    """Its kernel takes bfloat16 and nothing else."""

    def mixed(self, q, k, v):
        if q.dtype != torch.bfloat16:
            raise TypeError(f"this kernel takes bfloat16, not {q.dtype}")
        return super().mixed(q, k, v)


class RaisesBeyond100(Softmax):
    """Runs when it is tried, and not at the run's length."""

    def mixed(self, q, k, v):
        if q.shape[-2] > 100:
            raise ValueError(f"{q.shape[-2]} tokens are too many")
        return super().mixed(q, k, v)


class ThreeOfFour(Softmax):
    """No row sees the token three before it, one of the places where `copy_near` puts it."""

    def sees(self, length, device):
        t = torch.arange(length, device=device)
        return (t[:, None] >= t[None]) & (t[:, None] != t[None] + 3)
