"""From a notebook's parameters to the cases of a run, one file a notebook."""

from nsa_lib.plan.plan import Plan, plan
from nsa_lib.plan.scaling import scaling_cases
from nsa_lib.plan.smoke import smoke_cases
from nsa_lib.plan.training import training_case

__all__ = ["Plan", "plan", "scaling_cases", "smoke_cases", "training_case"]
