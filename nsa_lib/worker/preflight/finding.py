"""What one check found: a figure beside its limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nsa_lib.contract.figures import name_of_largest


@dataclass(frozen=True)
class Finding:
    """A figure, the limit that it is held to, and whether it holds."""

    measured: float | str
    limit: float | str
    unit: str
    detail: str
    holds: bool | None
    """None if it could not be judged."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the check saw besides, by the names that a case's result has for it."""
    required: bool = True
    """Whether the verdict depends on it. What is required and could not be judged makes it REVIEW."""
    user_traceback: str = ""
    """Of a user's code that raised."""

    def record(self, name: str) -> dict[str, object]:
        """Return the finding as a result keeps it. JSON knows no NaN and no Inf, so they become text."""
        finite = isinstance(self.measured, str) or math.isfinite(self.measured)
        return {
            "name": name,
            "measured": self.measured if finite else str(self.measured),
            "limit": self.limit,
            "unit": self.unit,
            "detail": self.detail,
            "holds": self.holds,
            "judged": self.holds is not None,
            "required": self.required,
            "user_traceback": self.user_traceback,
        }


def not_judged(detail: str, *, required: bool) -> Finding:
    """Return a finding of a check that could not be made, and why."""
    return Finding("not judged", "", "", detail, None, required=required)


def at_most(measured: float, limit: float, unit: str, detail: str) -> Finding:
    """Return a finding that holds up to its limit, and not for NaN."""
    return Finding(measured, limit, unit, detail, measured <= limit)


def at_least(measured: float, limit: float, unit: str, detail: str) -> Finding:
    """Return a finding that holds from its limit on, and not for NaN."""
    return Finding(measured, limit, unit, detail, measured >= limit)


def within_budget(errors: Mapping[str, float], budgets: Mapping[str, float]) -> Finding:
    """Return the error that uses most of its budget, beside that budget. Both are relative errors, by tensor."""
    used = {name: error / budgets[name] for name, error in errors.items()}
    worst = name_of_largest(used)
    detail = f"{worst} uses {100 * used[worst]:.0f} % of its error budget; {len(errors)} tensors were compared"
    return at_most(float(f"{errors[worst]:.3g}"), float(f"{budgets[worst]:.3g}"), "", detail)
