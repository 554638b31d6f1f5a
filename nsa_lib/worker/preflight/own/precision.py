"""How finely something computes that nobody here knows: the widest dtype that it runs in, and its roundings there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nsa_lib.worker.preflight.error_budget import unit
from nsa_lib.worker.preflight.own.trial import SHORT, Trial, outcome

WIDE = (torch.float64, torch.float32)

PROBE = {torch.float64: 1e-7, torch.float32: 1e-4}
"""A move, over the size of what is moved, of which the square drowns in roundings of the dtype."""


def widest(trial: Trial) -> torch.dtype | None:
    """Return float64 if it runs in that, or else float32, or None."""
    given = trial.input(1, min(trial.case.seq_len, SHORT))
    for dtype in WIDE:
        if torch.finfo(dtype).bits >= torch.finfo(trial.dtype).bits and _runs(trial, dtype, given):
            return dtype
    return None


def _runs(trial: Trial, dtype: torch.dtype, given: Tensor) -> bool:
    try:
        found = outcome(trial, trial.fresh(dtype), given)
    except (Exception, SystemExit):  # noqa: BLE001  whatever it raises, it does not run in this dtype
        return False
    return found["output"].dtype == dtype


def rounding(trial: Trial, dtype: torch.dtype) -> float:
    """Return the relative error that one call of it makes in a wide dtype: at least one rounding of that.

    Much code computes a part in float32 whatever it is given. Of a smooth function f, f(x + e) - 2 f(x) + f(x - e) goes
    with the square of e. For the small e here it shows the roundings of the three values instead, whose errors add as
    squares: sqrt(1 + 4 + 1) times that of one.
    """
    module, given, e = trial.fresh(dtype), trial.input(1, min(trial.case.seq_len, SHORT)), PROBE[dtype]

    def moved(by: float) -> Tensor:
        def change(x: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(trial.case.seed + 6)
            direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            return x * (1 + by * direction).to(x.dtype).to(x.device)

        with torch.no_grad():
            return trial.run(module, given, change)[0].double()

    here = moved(0.0)
    bend = float((moved(e) + moved(-e) - 2 * here).norm() / here.norm())
    return max(unit(dtype), bend / math.sqrt(6)) if math.isfinite(bend) else unit(dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype as a user writes it."""
    return str(dtype).removeprefix("torch.")
