"""Made-up runs of every notebook that readiness judges, whose verdict is known; each test breaks one thing."""

import json
import shutil
from dataclasses import replace
from datetime import datetime

from nsa_lib.contract.agenda import DENSE, check_names, contestants
from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.subject.config import PLAIN_BACKENDS
from nsa_lib.workbook.preflight.cases import FULL, FULL_STEPS
from nsa_lib.workbook.questions import counted
from nsa_lib.workbook.run import record
from tests.made import made, resolved, save, sealed
from tests.workbook.backward_scaling import made as scalings
from tests.workbook.smoke import made as smokes

MACHINE = {
    "torch": "2.13.0", "cpu": "a processor", "gpu": None, "disk_free_mib": 50_000, "source_sha256": "a" * 64,
    "packages": {"plotly": "7.1"}, "host": "box",
}  # fmt: skip


def day(number):
    """Return the ISO time of a day in March."""
    return f"2025-03-{number:02}T10:15:00.000000+00:00"


def described(notebook):
    """Return what run.json says of a run on the first day, besides its parameters and cases."""
    return {
        "schema": SCHEMA, "run_id": notebook, "notebook": notebook, "profile": "laptop", "created": day(1),
        "environment": MACHINE, "reproduce": "papermill", "report": None,
    }  # fmt: skip


def _run(notebook, cases, rows):
    return made(described(notebook), cases, rows, resolved(notebook, profile="laptop"))


def preflight():
    """Return a preflight that is GO."""
    found = {"holds": True, "measured": 0.0, "limit": 1.0, "unit": "", "detail": "planted"}
    cases = [
        {"case_id": group, "status": "ok", "reason": "", "seconds": 1.0,
         "checks": [{"name": name, **found} for name in names]}
        for group, names in check_names(PLAIN_BACKENDS).items()
    ]  # fmt: skip
    cases.append({"case_id": FULL, "status": "ok", "reason": "", "seconds": 1.0, "steps_done": FULL_STEPS})
    beat = {"case_id": FULL, "phase": "step", "peak_alloc_mib": 30.0, "loss": 6.0, "ts": 1.7e9}
    return _run("preflight", cases, [{**beat, "step": step} for step in range(1, FULL_STEPS + 1)])


def scaling():
    """Return a backward scaling that is GO."""
    run = scalings.known(profile="laptop")
    return replace(run, info={**run.info, **described("backward_scaling")})


def smoke():
    """Return a smoke that is GO."""
    run = smokes.healthy("laptop")
    return replace(run, info={**run.info, **described("smoke")})


def contrast():
    """Return a backend contrast that is GO; `packed` is the fastest."""
    values = resolved("backend_contrast", profile="laptop")
    timed = contestants(values["seq_len"].value, values["seq_lens"].value, backends=PLAIN_BACKENDS)
    ms = {"masked": 3.0, "gather": 2.0, "packed": 1.0, DENSE: 2.5}
    cases, rows, ts = [{"case_id": "timing", "status": "ok", "reason": ""}], [], 1.7e9
    for place, one in enumerate(timed * values["rounds"].value, start=1):
        times = dict.fromkeys(("forward_ms", "backward_ms"), ms.get(one.backend, 1.0))
        ts += sum(times.values()) / 1000
        told = {"case_id": "timing", "step": place, "phase": "step", "ts": ts, "routes": one.routes(None)}
        rows.append({**told, **vars(one), **times})
    for number, backend in enumerate((*PLAIN_BACKENDS, DENSE)):
        counts, error = {"aten::mm": {"count": 30 + 3 * number}}, {"output": 1e-6, "gradient": 1e-6}
        cases.append(
            {"case_id": f"model_{backend}", "status": "ok", "reason": "",
             "routes": [] if backend == DENSE else [backend], "attention_error": error,
             "selected_error": error, "operators": {"early": counts, "late": counts}}
        )  # fmt: skip
        beat = {"case_id": f"model_{backend}", "phase": "step", "peak_alloc_mib": 30.0 + number / 10, "loss": 6.0}
        rows += [{**beat, "step": step} for step in range(1, values["steps"].value + 1)]
    return _run("backend_contrast", cases, rows)


def checklist_smoke():
    """Return a smoke of the checklist that is GO."""
    run = smokes.healthy("checklist")
    return replace(run, info={**run.info, **described("smoke"), "profile": "checklist"})


def noisy_smoke():
    """Return a smoke that is REVIEW: its memory creeps."""
    return smokes.leaking(smoke(), "peak_alloc_mib", 0.05)


def untaught_smoke():
    """Return a smoke that is NO-GO: its loss does not fall."""
    return smokes.with_steps(smoke(), loss=lambda step, loss: 6.0)


def cut_smoke():
    """Return a smoke that is INCOMPLETE: a case of it was never run."""
    return smokes.without_case(smoke(), "anomaly")


MADE = dict(zip(counted(), (preflight, scaling, smoke, contrast), strict=True))


class Templates:
    """Recorded run folders, each made once and copied wherever a test wants it."""

    def __init__(self, folder):
        self._folder = folder

    def put(self, out_dir, notebook, name=None, *, make=None, created=None, **changes):
        """Copy a run into `out_dir`, under a name and with changes to its run.json; return its folder."""
        make = make or MADE[notebook]
        template = self._folder / make.__name__
        if not template.exists():
            record(save(make(), template))
        folder = out_dir / "runs" / (name or f"{notebook}-1")
        shutil.copytree(template, folder)
        created = created or day(1)
        edit(folder / "run.json", run_id=folder.name, created=created, **changes)
        for path in folder.glob("cases/*/heartbeat.jsonl"):
            first, rest = path.read_text().split("\n", 1)
            path.write_text(
                json.dumps({**json.loads(first), "ts": datetime.fromisoformat(created).timestamp()}) + "\n" + rest
            )
        return sealed(folder)


def edit(path, **changes):
    """Change what a JSON file of a run says, as if it had said so from the start."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    sealed(next(folder for folder in path.parents if (folder / "run.json").exists()))


def set_parameter(folder, name, value):
    """Change what a run was made with, whatever it recorded."""
    info = json.loads((folder / "run.json").read_text())
    rows = [row for row in info["parameters"] if row["name"] != name]
    edit(folder / "run.json", parameters=[*rows, {"name": name, "value": value, "origin": "given"}])


def set_fact(folder, name, value):
    """Change a fact of the machine that a run was made on."""
    info = json.loads((folder / "run.json").read_text())
    edit(folder / "run.json", environment={**info["environment"], name: value})
