"""Predicted against measured memory of recorded runs: `python -m tests.bench_prediction RUN_FOLDER...`, without a GPU.

Each training or backward case that ended well is predicted from its case.json alone. The table goes to
reports/examples/prediction_<device>.md, with the tag of the first run after the device.
"""

import platform
import re
import sys
import time

import torch

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs.environment import PROJECT
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.run import open_run
from nsa_lib.worker.prediction.predict import predict
from nsa_lib.worker.prediction.record import PredictionError

ALLOC_PERCENT, RESERVED_PERCENT = 5.0, 10.0
"""What is promised for 11 of 12 configurations."""

REPEATED = ("anomaly", "profiler")
"""Cases whose memory is that of the training."""


def main(folders):
    """Predict every case of the run folders, print the table and write it."""
    runs = [open_run(folder) for folder in folders]
    facts = runs[0].info["environment"]
    seen, lines, within, began = set(), [], [], time.monotonic()
    for run in runs:
        for case_id, status in zip(run.cases["case_id"], run.cases["status"], strict=True):
            case = CaseConfig.from_json((run.folder / "cases" / case_id / "case.json").read_text())
            if case.work not in ("train", "backward") or status != "ok" or case_id in REPEATED:
                continue
            measured = run.steps[run.steps["case_id"] == case_id][["peak_alloc_mib", "peak_reserved_mib"]].max()
            if configuration(case) in seen:  # the same case in two notebooks
                continue
            seen.add(configuration(case))
            line, ok = row(case, measured, facts)
            lines.append(line)
            within.append(ok)
            print(line, flush=True)
    text = page(facts, runs, lines, within, time.monotonic() - began)
    name = re.search(r"[A-Z]\d+", str(facts["gpu"])).group().lower()
    tag = str(runs[0].parameter("tag") or "")
    path = PROJECT / "reports" / "examples" / ("_".join(filter(None, ("prediction", name, tag))) + ".md")
    path.write_text(text)
    print(f"{sum(within)} of {len(within)} within {ALLOC_PERCENT:g} and {RESERVED_PERCENT:g} %: {path}")


def configuration(case):
    """Return a case in words, but for what its memory does not depend on."""
    attention = case.model.backend if case.model.attention == "nsa" else "dense"
    setting = next((name for name, conf in ALLOCATOR_SETTINGS.items() if conf == case.alloc_conf), case.alloc_conf)
    work = "train step" if case.work == "train" else "forward, backward"
    checkpointing = "on" if case.grad_checkpointing else "off"
    return attention, work, case.model.layers, case.seq_len, case.batch, case.dtype, checkpointing, setting


def row(case, measured, facts):
    """Return a case's line of the table, and whether it is within what is promised."""
    words = " | ".join(map(str, configuration(case)))
    try:
        found = predict(case, compute_capability=facts["compute_capability"])
    except (PredictionError, ConfigError) as error:
        return f"| {words} | no prediction: {error} | | | | | |", False
    off = {name: 100 * (found[name] / measured[name] - 1) for name in ("peak_alloc_mib", "peak_reserved_mib")}
    figures = " | ".join(f"{found[name]:,.0f} | {measured[name]:,.0f} | {off[name]:+.2f} %" for name in off)
    ok = abs(off["peak_alloc_mib"]) <= ALLOC_PERCENT and abs(off["peak_reserved_mib"]) <= RESERVED_PERCENT
    return f"| {words} | {figures} |", ok


def page(facts, runs, lines, within, seconds):
    """Return the table with where its figures come from."""
    allocated = f"allocated within {ALLOC_PERCENT:g} %, reserved within {RESERVED_PERCENT:g} %"
    command = "python -m tests.bench_prediction " + " ".join(run.info["notebook"] for run in runs)
    head = ("attention", "work", "layers", "S", "batch", "dtype", "checkpointing", "allocator setting",
            "allocated predicted, MiB", "measured", "off", "reserved predicted, MiB", "measured", "off")  # fmt: skip
    return "\n".join(
        [
            f"# Predicted and measured memory, {facts['gpu']}",
            "",
            f"Measured on one {facts['gpu']} (driver {facts['driver']}, torch {facts['torch']}) by "
            f"{', '.join(run.info['notebook'] for run in runs)} of the profile checklist. Predicted from the same "
            f"case.json on a machine without a GPU (torch {torch.__version__}, Python {platform.python_version()}) in "
            f"{seconds:,.0f} s on one of two shared cores.",
            "",
            f"**{sum(within)} of {len(within)} configurations: {allocated}.** The command: `{command}`, with the run "
            "folders in place of the names.",
            "",
            f"| {' | '.join(head)} |",
            f"|{'|'.join(['---'] * 2 + ['---:'] * 3 + ['---'] * 3 + ['---:'] * 6)}|",
            *lines,
            "",
            NOTE,
            "",
        ]
    )


NOTE = """\
What is not in the model's own tensors is put in by name and not by fit: cuBLAS's workspace, 32 MiB on Hopper for each
of the two threads that multiply (the first forward pass measures 32 MiB less than later ones, as it must), and the
float32 copy of the logits that `logsumexp` makes inside. The copy was found by these figures: without it S = 512,
whose loss is one chunk, was 49 MiB or 6.5 % short, the float32 logits less the bfloat16 ones; no other row has its
peak there.

Not foreseen is other scratch inside an operator, such as a sort's. It hardly adds to the peak of allocated memory,
yet it decides which free block the next tensor gets, and so may cost pages of 20 MiB in reserved memory. Under both
settings and with tensors above 256 MiB, as at 32,768 tokens, that is decisive: each such choice can cost a block of
hundreds of MiB that is never used again. Reserved memory then hangs on where the first blocks lie: a prediction begins
with the routes and checks that a case runs before it trains."""

if __name__ == "__main__":
    main(sys.argv[1:])
