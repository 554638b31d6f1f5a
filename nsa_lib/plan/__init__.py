"""From a notebook's parameters to the cases of a run, one file a notebook."""

from nsa_lib.plan.capacity import capacity_cases
from nsa_lib.plan.contrast import contrast_cases
from nsa_lib.plan.plan import CAPACITY, Plan, plan, require_data
from nsa_lib.plan.preflight import preflight_cases
from nsa_lib.plan.scaling import scaling_cases
from nsa_lib.plan.smoke import smoke_cases
from nsa_lib.plan.training import training_case

__all__ = [
    "CAPACITY",
    "Plan",
    "capacity_cases",
    "contrast_cases",
    "plan",
    "preflight_cases",
    "require_data",
    "scaling_cases",
    "smoke_cases",
    "training_case",
]
