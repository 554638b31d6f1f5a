"""What the story of an attention of one's own asks: how long its sequences are, and where it leaves its runs."""

from __future__ import annotations

from nsa_lib.runs.parameters import Parameter
from nsa_lib.runs.request import Request
from nsa_lib.workbook.profiles import RUN

REQUEST = Request(
    notebook="bring_your_own",
    parameters={
        "seq_len": Parameter(int, "tokens in a sequence; the planted mistake shows from 102 on", 160, above=0),
        "out_dir": RUN["out_dir"],
    },
)
