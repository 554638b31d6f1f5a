"""The checks of a preflight by the case that makes them: the worker runs these, and the gates miss none of them."""

from __future__ import annotations

from nsa_lib.config import BACKEND_NAMES

CHECKS: dict[str, tuple[str, ...]] = {
    "subject": (
        *(f"selected_{backend}" for backend in BACKEND_NAMES),
        "selection",
        *(f"attention_{backend}" for backend in BACKEND_NAMES),
        *(f"future_{backend}" for backend in BACKEND_NAMES),
        *(f"past_slc_{backend}" for backend in BACKEND_NAMES),
        "past_cmp",
        "past_win",
        *(f"route_{backend}" for backend in BACKEND_NAMES),
        "rope_distance",
        "gradients",
        "checkpointing",
    ),
    "copying": ("copy_slc", "copy_cmp", "copy_win"),
    "learning": ("loss_fixed_batch", "loss_fresh_tokens", "branch_gates_move"),
}
"""Names of the checks, in the order in which a case makes them; a crash costs one case."""
