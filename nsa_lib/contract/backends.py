"""Which backends can run: the plain ones everywhere, `fused` too where it can run.

The answer comes from a run's parameters and from what torch said of its machine, so that a plan and a later reader of
the run agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nsa_lib.subject.config import FUSED, PLAIN_BACKENDS, NSAConfig, fused_refusal

ATTENTION_SIZES = ("dim", "heads", "groups", "d_k", "d_v", "l", "d", "l_sel", "n_sel", "w", "phi")
"""Parameters of a run that make the NSAConfig of its layers."""

OLDEST_CAPABILITY = "8.0"
"""CUDA's compute capability from which on the fused kernels run."""


def runnable_backends(parameter: Callable[[str], object], facts: Mapping[str, object]) -> tuple[str, ...]:
    """Return the backends that can run, and that a preflight or a contrast goes through.

    Args:
        parameter: gives the effective value of a parameter by its name.
        facts: of `torch_facts`.
    """
    lacks = why_not_fused_here(facts) or why_not_fused(parameter, facts)
    return PLAIN_BACKENDS if lacks else (*PLAIN_BACKENDS, FUSED)


def why_not_fused(parameter: Callable[[str], object], facts: Mapping[str, object]) -> str | None:
    """Return in one line why `fused` cannot run with these parameters on this machine, or None if it can.

    Raises ConfigError for sizes that do not fit each other.
    """
    sizes = NSAConfig(**{name: parameter(name) for name in ATTENTION_SIZES})
    refusal = fused_refusal(sizes, str(parameter("dtype")), str(parameter("device")))
    return f"backend={FUSED}, {refusal}" if refusal else why_not_fused_here(facts)


def why_not_fused_here(facts: Mapping[str, object]) -> str | None:
    """Return in one line what `fused` lacks on a machine with a CUDA device, or None."""
    if facts.get("triton") is None:
        return f"backend={FUSED}: needs Triton, which is not installed"
    found = str(facts.get("compute_capability"))
    if facts.get("compute_capability") is None or _numbers(found) < _numbers(OLDEST_CAPABILITY):
        return f"backend={FUSED}: needs compute capability {OLDEST_CAPABILITY} or more, this is {found}"
    return None


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
