"""A made-up run, written as its runner and workers would have left it."""

import json


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
        fields = {name: value for name, value in kept.items() if name not in ("asked", "torn_heartbeat")}
        (place / "result.json").write_text(json.dumps({"schema": 1, **fields}))
        beats = [{"schema": 1, "ts": 1.7e9, "step": None, "phase": phase} for phase in ("build", "warmup")]
        beats += run.of(case_id).drop(columns="case_id").to_dict("records")
        (place / "heartbeat.jsonl").write_text("".join(json.dumps(beat) + "\n" for beat in beats))
    return folder


def with_schema(path, schema):
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
