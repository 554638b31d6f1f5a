"""Made-up runs to explore."""

from dataclasses import replace

from nsa_lib.workbook.explore.measures import open_runs
from tests.made import save, with_case
from tests.subject.test_config import CASE
from tests.workbook.backward_scaling import made as scalings
from tests.workbook.smoke.made import healthy

MAP = {
    "l_sel": 64,
    "branches": ["cmp", "slc", "win"],
    "selected": [[[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.25, 1.0]]] * 2,
    "branch_gates": [[[0.5, 0.25, 0.75]] * 4, [[0.125, 0.5, 0.5]] * 4],
}


def smoke(**changes):
    return with_case(healthy("laptop", **changes), "training", attention_map=MAP)


def scaling(folder):
    """Save a scaling as its runner would have left it."""
    run = scalings.healthy("laptop")
    info = {
        **healthy("laptop").info, "run_id": folder.name, "notebook": "backward_scaling",
        "case_ids": list(run.cases["case_id"]),
        "parameters": [{"origin": "profile", "checklist": None, "differs": False, **row}
                       for row in run.info["parameters"]],
    }  # fmt: skip
    return save(replace(run, info=info), folder)


def put_case(folder, case=CASE):
    (folder / "cases" / case.case_id / "case.json").write_text(case.to_json())


def asked(out_dir, **parameters):
    return open_runs({"out_dir": str(out_dir), **parameters})
