"""What a case goes through: the contestants of a timing and the checks of a preflight, in their order.

The worker runs them. The notebook's side knows from here what it must find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nsa_lib.subject.config import BACKEND_NAMES, FUSED, OWN

WARMUP_ROUNDS = 2
"""Rounds that are not counted: kernels are loaded, caches fill."""

DENSE = "dense"
"""The name of the yardstick where a backend or branches are named."""

NO_BACKEND = "none"
"""The backend of a layer without the selected branch."""


@dataclass(frozen=True)
class Contestant:
    """One thing whose forward and backward are timed."""

    subject: str
    """`layer`: attention with its projections; `model`: all layers and the loss."""
    branches: str
    """`slc`, `cmp`, `win`, `all` of them, or `dense`."""
    backend: str
    """Backend of the selected branch; `dense` or `none` where there is no such branch."""
    seq_len: int
    """Tokens in a sequence."""

    def routes(self, brings: str | None) -> list[str]:
        """Return the backends that it must enter, by the names that they call themselves.

        Dense attention, a layer without the selected branch and a user's model call themselves by none.
        """
        is_nameless = self.backend in (DENSE, NO_BACKEND) or (self.backend == OWN and brings == "model")
        return [] if is_nameless else [self.backend]


def contestants(
    seq_len: int, seq_lens: Sequence[int] = (), *, backends: Sequence[str], brings: str | None = None
) -> tuple[Contestant, ...]:
    """Return the contestants: parts, layers and whole models at `seq_len`, then whole layers at the other lengths.

    A user's attention is no backend of the selected branch. Her model has no layer that stands alone: beside it whole
    models stand at the other lengths too.
    """
    parts = [Contestant("layer", "slc", name, seq_len) for name in backends if name != OWN or brings == "backend"]
    parts += [Contestant("layer", branch, NO_BACKEND, seq_len) for branch in ("cmp", "win")]
    layers = [name for name in backends if name != OWN or brings != "model"]
    subject, names = ("model", backends) if brings == "model" else ("layer", layers)
    sweep = [one for length in seq_lens if length != seq_len for one in _whole(subject, length, names)]
    return (*parts, *_whole("layer", seq_len, layers), *_whole("model", seq_len, backends), *sweep)


def _whole(subject: str, seq_len: int, backends: Sequence[str]) -> list[Contestant]:
    nsa = [Contestant(subject, "all", name, seq_len) for name in backends]
    return [*nsa, Contestant(subject, DENSE, DENSE, seq_len)]


OWED = (
    "future", "others", "self_error", "finite_difference", "same_bits", "checkpointing", "gradients", "inputs", "large",
    "empty", "reference",
)  # fmt: skip
"""What any causal attention or model owes, whoever wrote it."""

RIGHT = {"own_right": ("future", "others", "self_error")}
"""The checks, by their case, that stand for the comparison with the reference where a user's attention or model is
measured beside ours: speed counts for nothing in what is wrong. The preflight makes all of `OWED`."""


def check_names(
    backends: Sequence[str] = BACKEND_NAMES, *, brings: str | None = None, compiled: bool = False
) -> dict[str, tuple[str, ...]]:
    """Return the names of the checks by case, in the order in which the case makes them.

    What a user brings is held to what it owes. Her kernel, a backend of NSA, has the reference besides.

    Args:
        backends: that the machine can run, the user's among them.
        brings: what is hers: `attention`, `backend`, `model` or None.
        compiled: whether it is run under torch.compile too.
    """
    if brings is None:
        return _names_of_ours(backends)
    owed = {"own": OWED, "own_copying": ("copy_near", "copy_far")}
    owed |= {"own_compiled": ("compiled",)} if compiled else {}
    if brings != "backend":
        return owed
    ours = _names_of_ours((OWN,))
    subject = tuple(name for name in ours["subject"] if name not in OWED)
    return {"subject": subject, "learning": ours["learning"], **owed}


def _names_of_ours(backends: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the names of the checks of NSA by case.

    The plain backends share everything but the selected branch. `fused` shares nothing, so what is checked once for all
    plain backends is checked again for it. There are several cases so that a crash costs the checks of one.
    """
    shared = ("", f"_{FUSED}") if FUSED in backends else ("",)
    return {
        "subject": (
            *(f"selected_{backend}" for backend in backends),
            *(f"selection{own}" for own in shared),
            *(f"attention_{backend}" for backend in backends),
            *(f"future_{backend}" for backend in backends),
            *(f"past_slc_{backend}" for backend in backends),
            *(f"past_cmp{own}" for own in shared),
            *(f"past_win{own}" for own in shared),
            *(f"route_{backend}" for backend in backends),
            "rope_distance",
            "gradients",
            "checkpointing",
        ),
        "copying": ("copy_slc", "copy_cmp", "copy_win"),
        "learning": ("loss_fixed_batch", "loss_fresh_tokens", "branch_gates_move"),
    }
