"""A smoke of very many steps, written by the project's own heartbeats."""

import json
from datetime import datetime

import numpy as np

from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.contract.origin import case_sha256
from tests.made import save, sealed
from tests.workbook.smoke.made import healthy


def long_run(folder, steps, *, spike_at=None, spike_mib=40.0):
    """Write a smoke whose training did `steps` noisy steps, and return its folder.

    Args:
        folder: of the run; it must not exist.
        steps: of the training.
        spike_at: a step whose peak is `spike_mib`, if any.
        spike_mib: the peak allocated there.
    """
    run = healthy("laptop")
    save(run, folder)
    place = folder / "cases" / "training"
    (place / "heartbeat.jsonl").unlink()
    asked, result = (json.loads((place / name).read_text()) for name in ("case.json", "result.json"))
    for recorded in (result["executed"], result["attestation"]):
        recorded[-1]["step"] = steps
    result["replay"]["followed"] = steps
    case = json.dumps({**asked, "steps": steps})
    (place / "case.json").write_text(case)
    (place / "result.json").write_text(json.dumps({**result, "steps_done": steps}))
    info = json.loads((folder / "run.json").read_text())
    for parameter in info["parameters"]:
        parameter["value"] = steps if parameter["name"] == "steps" else parameter["value"]
    (folder / "run.json").write_text(json.dumps(info))
    # What stays the same in every beat, after its phase and step.
    row = run.of("training").iloc[-1].dropna().to_dict()
    fixed = {name: row[name] for name in row if name not in ("case_id", "step", "phase", "ts")}
    noise = np.random.default_rng(7)
    peaks, times = 34 + noise.normal(0, 0.1, steps), 100 + noise.gamma(2, 6, steps)
    ends = datetime.fromisoformat(info["created"]).timestamp() + times.cumsum() / 1000
    beats = Heartbeat(place / "heartbeat.jsonl")
    beats.beat("build", ts=ends[0], origin={"case_sha256": case_sha256(case)})
    for step in range(1, steps + 1):
        peak = spike_mib if step == spike_at else float(peaks[step - 1])
        step_ms = float(times[step - 1])
        moving = {
            "ts": ends[step - 1],
            "loss": 2 + 4 * 0.9999**step + peak / 1000,
            "grad_norm": 1 + step_ms / 1000,
            "step_ms": step_ms,
            "tokens_per_s": 512e3 / step_ms,
            "peak_alloc_mib": peak,
            "peak_alloc_backward_mib": peak,
            "reserved_mib": peak + 1.5,
            "peak_reserved_mib": peak + 1.5,
        }
        beats.beat("warmup" if step <= 10 else "step", step, **{**fixed, **moving})
    beats.close()
    return sealed(folder)
