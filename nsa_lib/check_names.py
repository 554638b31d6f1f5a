"""The checks of a preflight by the case that makes them: the worker runs these, and the gates miss none of them."""

from __future__ import annotations

from collections.abc import Sequence

from nsa_lib.config import BACKEND_NAMES, FUSED


def check_names(backends: Sequence[str] = BACKEND_NAMES) -> dict[str, tuple[str, ...]]:
    """Return the names of the checks, in the order in which a case makes them; a crash costs one case.

    The plain backends share everything but the selected branch. `fused` shares nothing, so what is looked at once for
    all of them is looked at again for it.
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
