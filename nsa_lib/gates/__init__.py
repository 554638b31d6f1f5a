"""The gates, plain functions from what a run recorded to PASS, WARN, FAIL or NOT_RUN, and the verdict over them.

One file a notebook; each gives `<notebook>_gates`, `<notebook>_advice` (shown, never decides) and the figures of its
headline. `result` holds what they share.
"""

from nsa_lib.gates.contrast import contrast_advice, contrast_gates, contrast_headline
from nsa_lib.gates.preflight import preflight_advice, preflight_gates, preflight_headline
from nsa_lib.gates.readiness import readiness_advice, readiness_gates, readiness_headline
from nsa_lib.gates.result import FAIL, NOT_RUN, PASS, WARN, GateResult, verdict
from nsa_lib.gates.scaling import scaling_advice, scaling_gates, scaling_headline
from nsa_lib.gates.smoke import ATTENTION_ERROR_LIMIT, smoke_advice, smoke_gates, smoke_headline

__all__ = [
    "ATTENTION_ERROR_LIMIT",
    "FAIL",
    "NOT_RUN",
    "PASS",
    "WARN",
    "GateResult",
    "contrast_advice",
    "contrast_gates",
    "contrast_headline",
    "preflight_advice",
    "preflight_gates",
    "preflight_headline",
    "readiness_advice",
    "readiness_gates",
    "readiness_headline",
    "scaling_advice",
    "scaling_gates",
    "scaling_headline",
    "smoke_advice",
    "smoke_gates",
    "smoke_headline",
    "verdict",
]
