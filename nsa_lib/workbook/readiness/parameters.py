"""What readiness asks: which runs to decide over. It runs no case."""

from __future__ import annotations

from nsa_lib.runs.found import NEWEST
from nsa_lib.runs.parameters import Parameter
from nsa_lib.runs.request import Request
from nsa_lib.workbook.profiles import RUN

REQUEST = Request(
    notebook="readiness",
    parameters={
        "runs": Parameter(str, f"{NEWEST}, or names, paths or globs of run folders, separated by commas", NEWEST),
        **{name: RUN[name] for name in ("out_dir", "tag", "accept_review")},
    },
)
