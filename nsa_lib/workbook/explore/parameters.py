"""What an exploration asks: the run to look into, and a second one to lay over it."""

from __future__ import annotations

from nsa_lib.runs.found import NEWEST
from nsa_lib.runs.parameters import Parameter
from nsa_lib.runs.request import Request
from nsa_lib.workbook.profiles import RUN

REQUEST = Request(
    notebook="explore",
    parameters={
        "run": Parameter(str, f"a run folder, the name of one in runs/, {NEWEST}, or {NEWEST}:smoke", NEWEST),
        "other": Parameter(str, "a second run to lay over it, named in the same ways", ""),
        "out_dir": RUN["out_dir"],
    },
)
