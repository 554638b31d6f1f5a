"""One node of a run on two, for tests: `python -m tests.runs.a_node OUT_DIR PORT NODE [NAME=VALUE ...]`."""

import sys
from dataclasses import replace

from nsa_lib.runs.runner import execute
from nsa_lib.workbook.questions import plan
from nsa_lib.workbook.run import record

SMALL = {"profile": "laptop", "strategies": "ddp", "nodes": 2, "In": []}


def main(out_dir, port, node, *given):
    """Run the notebook's machinery, of its cases the one that trains on two ranks, and say where the verdict is."""
    given = dict(one.split("=") for one in given)
    asked = plan(
        "several_gpus",
        {**SMALL, "out_dir": out_dir, "rendezvous": f"127.0.0.1:{port}", "node_rank": int(node), **given},
    )
    run = record(execute(replace(asked, cases=tuple(case for case in asked.cases if case.case_id == "ddp"))))
    print(f"verdict {run.verdict} {run.folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
