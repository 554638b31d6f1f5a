"""What a plan makes of parameters, and runs made up from frames, for the tests of gates, charts and reports."""

import json
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pandas as pd

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.fingerprint import FILE as FINGERPRINT_FILE
from nsa_lib.contract.fingerprint import fingerprint_steps, made_of, why_not_deterministic
from nsa_lib.contract.heartbeat import STEP_COLUMNS
from nsa_lib.contract.origin import case_sha256
from nsa_lib.judgement.attestation import AREAS
from nsa_lib.runs.recorded import cases_frame
from nsa_lib.runs.sums import SUMS, case_files, seal
from nsa_lib.subject.config import OWN, PLAIN_BACKENDS
from nsa_lib.workbook.questions import QUESTIONS
from nsa_lib.workbook.run import Run

GPUS = 2
"""Those of a made-up machine."""


def resolved(notebook, given=(), *, profile):
    """Return the effective values that a plan would make of given parameters."""
    request = QUESTIONS[notebook].request
    values = request.resolve(request.read(dict(given)), profile=profile)
    if "gpus" in values and values["gpus"].value is None:
        values["gpus"] = replace(values["gpus"], value=GPUS)
    return request.derive(values)


def made(info, cases, steps, values, *, backends=PLAIN_BACKENDS):
    """Return a run of made-up cases and steps, each case asked for what a plan of the values asks.

    Args:
        info: what differs from an ordinary run.json; its notebook is needed.
        cases: a mapping each, with what was recorded.
        steps: a mapping each.
        values: of `resolved`.
        backends: those that the machine can run.
    """
    asked = {
        case.case_id: json.loads(case.to_json()) for case in QUESTIONS[info["notebook"]].request.cases(values, backends)
    }
    rows = [{**told(asked.get(case["case_id"])), **seen(asked.get(case["case_id"])), **case} for case in cases]
    described = {
        "created": "2025-03-01T10:15:00+00:00", "environment": {},
        "backends": list(backends), "case_ids": [case["case_id"] for case in cases], "custom": [],
        "parameters": [{**vars(value), "differs": value.differs} for value in values.values()],
        **info,
    }  # fmt: skip
    frame = pd.DataFrame([{"rank": 0, **step} for step in steps]).reindex(columns=STEP_COLUMNS)
    return Run(Path("made-up"), described, cases_frame(rows), frame)


GRAPHS = {"graphs": 1, "frames": 1, "eager_frames": 0, "graph_breaks": {}, "recompilations": []}
"""What torch counts where layers compile as they should."""


def told(asked):
    """Return what an honest worker tells of the case that it was asked for."""
    sha256 = case_sha256(json.dumps(asked))
    return {"asked": asked, "case_sha256": sha256, "origin": {"case_sha256": sha256}}


def seen(asked):
    """Return what an honest worker records of its steps, if it is asked for a case that takes any."""
    if asked is not None and asked["work"] == "repeat":
        return {"fingerprint": fingerprint(asked)}
    if asked is None or asked["work"] not in ("train", "backward"):
        return {}
    steps, layers = sorted({1, (1 + asked["steps"]) // 2, asked["steps"]}), asked["model"]["layers"]
    attention, passes = asked["model"]["attention"], 2 if asked["grad_checkpointing"] else 1
    is_judged = attention != "dense"
    route = OWN if attention == OWN else asked["model"]["backend"]
    dtypes = {kind: [asked["dtype"]] for kind in ("activations", "parameters", "gradients", "optimizer")}
    facts = {"executed": [
        {"step": step, "routes": [[route] if is_judged else []] * layers, "passes": [passes] * layers,
         "dtypes": dtypes, "devices": [asked["device"]], "held_share": 1.0,
         "detects_anomalies": asked["detect_anomaly"],
         "allocator": {"setting": asked["alloc_conf"]}, "compiled": GRAPHS if asked["compile"] else None}
        for step in steps
    ]}  # fmt: skip
    if asked["attest"]:
        wrong = {area: {} for area in AREAS}
        facts["attestation"] = [
            {"step": step, "compared": "all layers", "wrong": wrong, "coverage": covered(layers)}
            for step in steps
        ]  # fmt: skip
        inner = list(range(2, min(12, asked["steps"])))
        facts["replay"] = {
            "steps": inner,
            "followed": asked["steps"] if asked["work"] == "train" else 0,
            "same_bits": True,
            "wrong": {},
            "judged": {"step": 2, "wrong": wrong} if inner else None,
        }
    if asked["fingerprint"]:
        facts["fingerprint"] = fingerprint(asked)
    if asked["detect_anomaly"]:
        facts["planted_nan"] = {"said": "Function 'NativeLayerNormBackward0' returned nan values in its 0th output."}
    facts["meter"] = {"held_mib": 8.0, "read_mib": 8.0, "reserved_mib": 64.0}
    if asked["show_fresh"]:
        facts["fresh_tokens"] = {
            "losses": [6.5] * 3,
            "guess": 6.2,
            "tokens": asked["batch"] * asked["seq_len"],
            "changes": {"65": 0.0, str(asked["seq_len"] - 1): 0.0},
            "unseen": [],
            "others": 0.0,
        }
    return facts


def fingerprint(asked, **changes):
    """Return the fingerprint of a case of which every hash tells where it is from, and nothing else."""
    case = CaseConfig.from_json(json.dumps(asked))
    layers = {"0": {part: f"{part} of layer 1" for part in ("output", "choice", "gradients")}}
    steps = {str(step): {"layers": layers, "parameters": f"after {step}"} for step in fingerprint_steps(case.steps)}
    why_not = why_not_deterministic(case)
    origin = {"gpu": "a GPU" if case.device == "cuda" else None, "processor": "a core", "torch": "2.13.0"}
    return {
        "schema": 1, "of": made_of(case, origin), "deterministic": not why_not, "why_not": why_not, "again": [],
        "where": {"host": "box", "gpu_uuid": None, "place": "core 0"},
        "losses": [f"loss {step}" for step in range(1, case.steps + 1)],
        "steps": steps,
        **changes,
    }  # fmt: skip


EVERY_LAYER = {"attention": "output", "choice": "choice", "backward": "d_x", "blocks": "block"}


def covered(layers):
    """Return what an honest judge compares of a step: in each layer, and the loss."""
    inside = [(area, part, layer + 1) for area, part in EVERY_LAYER.items() for layer in range(layers)]
    rows = [*inside, ("train_step", "loss", None)]
    return [{"area": area, "part": part, "layer": layer, "why_not": None, "rows": 2**20} for area, part, layer in rows]


def routed(run, case_id, *routes):
    """Return a run in which every layer of a case entered these backends."""
    steps = [{**step, "routes": [list(routes)] * len(step["routes"])} for step in run.case(case_id)["executed"]]
    return with_case(run, case_id, executed=steps)


def with_case(run, case_id, **fields):
    """Return a run in which a case recorded something else."""
    cases = run.cases.astype(object)
    for name, value in fields.items():
        cases[name] = [value if own == case_id else old for own, old in zip(cases["case_id"], cases[name], strict=True)]
    return replace(run, cases=cases)


def asked_for(run, case_id, **fields):
    """Return a run in which a case was asked for something else."""
    return with_case(run, case_id, **told({**run.case(case_id)["asked"], **fields}))


OF_OTHER_FILES = ("asked", "torn_heartbeat", "began", "case_sha256", "origin", "fingerprint")
"""What is not kept in a result.json."""


def save(run, folder, **info):
    """Write a run as its runner and workers would have left it."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({**run.info, **info}))
    for case_id in run.info["case_ids"]:
        (folder / "cases" / case_id).mkdir(parents=True)
        case, place = run.case(case_id), folder / "cases" / case_id
        if case is None:
            continue
        (place / "case.json").write_text(json.dumps(case["asked"]))
        kept = {name: value for name, value in case.items() if value is not None and value == value}
        fields = {name: value for name, value in kept.items() if name not in OF_OTHER_FILES}
        (place / "result.json").write_text(json.dumps({"schema": 1, **fields}))
        if case["fingerprint"] is not None:
            (place / FINGERPRINT_FILE).write_text(json.dumps(case["fingerprint"]))
        began = datetime.fromisoformat(info.get("created", run.info.get("created", "2025-03-01"))).timestamp()
        beats = [{"schema": 1, "ts": began, "step": None, "phase": phase} for phase in ("build", "warmup")]
        beats[0]["origin"] = case["origin"]
        beats += run.of(case_id).drop(columns="case_id").to_dict("records")
        (place / "heartbeat.jsonl").write_text("".join(json.dumps(beat) + "\n" for beat in beats))
    return sealed(folder)


def sealed(folder):
    """List the files of a run folder as they are now, and return it."""
    (folder / SUMS).unlink(missing_ok=True)
    seal(folder, [folder / "run.json", *case_files(folder / "cases")])
    return folder


def add_backend(monkeypatch, name):
    """Add a row to the table of backends, in every module that has read it."""
    for module in [module for own, module in sys.modules.items() if own.startswith("nsa_lib.")]:
        for table in ("PLAIN_BACKENDS", "BACKEND_NAMES"):
            if hasattr(module, table):
                monkeypatch.setattr(module, table, (*getattr(module, table), name))


def with_schema(path, schema):
    """Change the schema that a JSON file says it has."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
