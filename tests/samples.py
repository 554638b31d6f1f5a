"""Made-up runs and notebooks for the tests of charts and reports; no kernel and no torch behind them."""

from types import SimpleNamespace
from unittest.mock import patch

import nbformat
import numpy as np
import pandas as pd
from nbformat import v4

from nsa_lib.report import NsaHTMLExporter
from nsa_lib.report.charts.steps import loss, memory_trend, phase_peaks, step_time
from nsa_lib.report.facts import environment_table
from nsa_lib.report.tables import cases_table, gates_table, parameters_table
from nsa_lib.report.verdict import VerdictError, conclude

PAYLOAD = "'\"></script><script>alert(1)</script><img src=http://example.invalid/x onerror=alert(2)>"
"""Text that must never become markup."""

GATES = [
    {"name": "steps completed", "required": True, "outcome": "PASS", "measured": 100, "limit": 100, "margin": 0,
     "unit": "steps", "detail": "every step finished, none was repeated"},
    {"name": "peak reserved memory", "required": True, "outcome": "PASS", "measured": 1762.0, "limit": 70000,
     "margin": 68238.0, "unit": "MiB", "detail": "highest of the per-step peaks of case training"},
    {"name": "trend of peak allocated", "required": True, "outcome": "PASS", "measured": 0.04, "limit": 10.0,
     "margin": 9.96, "unit": "%", "detail": "rise from the first to the last block of 50 steps, steps 11 to 100"},
    {"name": "operator growth", "required": True, "outcome": "PASS", "measured": 0, "limit": 0, "margin": 0,
     "unit": "calls", "detail": "no operator is called more often late than early"},
    {"name": "loss falls", "required": True, "outcome": "PASS", "measured": 6.19, "limit": 10.87, "margin": 4.68,
     "unit": "nats", "detail": "mean of the last 10 steps against the first"},
    {"name": "allocator slack", "required": False, "outcome": "NOT_RUN", "measured": None, "limit": 30, "margin": None,
     "unit": "%", "detail": "advice only"},
]  # fmt: skip

PARAMETERS = [
    {"name": "dim", "value": 768, "origin": "profile", "checklist": 768, "differs": False},
    {"name": "layers", "value": 12, "origin": "profile", "checklist": 12, "differs": False},
    {"name": "seq_len", "value": 2048, "origin": "profile", "checklist": 2048, "differs": False},
    {"name": "dtype", "value": "bfloat16", "origin": "profile", "checklist": "bfloat16", "differs": False},
    {"name": "lr", "value": 3e-4, "origin": "given", "checklist": 1e-4, "differs": True},
]

ENVIRONMENT = {
    "platform": "Linux 6.8, x86_64",
    "python": "3.11.7",
    "torch": "2.13.0+cu130",
    "gpu": {"name": "NVIDIA H200", "driver": "580.82", "memory_mib": 143771},
    "alloc_conf": "expandable_segments:True,max_split_size_mb:256",
}

CASES = pd.DataFrame(
    {
        "case_id": ["training", "anomaly", "profiler"],
        "status": ["ok", "ok", "ok"],
        "reason": ["", "", ""],
        "steps_done": [100, 10, 20],
        "seconds": [21.4, 9.8, 12.1],
    }
)


def sample_steps(count=100, base_mib=1686.0, rise=0.0):
    """Return `count` steps of a training case, the first ten warm-up; `rise` is the share gained until the last."""
    noise = np.random.default_rng(7)
    step = np.arange(1, count + 1)
    grown = base_mib * (1 + rise * step / max(count, 1))
    peak = np.where(step == 1, 0.86 * grown, grown) + noise.uniform(0, 1.5, count)
    step_ms = 108 + noise.gamma(2, 1.2, count) + np.where(step == 1, 900, 0)
    return pd.DataFrame(
        {
            "case_id": "training", "step": step, "phase": np.where(step <= 10, "warmup", "step"), "ts": 1.7e9 + step,
            "loss": 10.87 * np.exp(-step / 60) + noise.normal(0, 0.03, count), "grad_norm": 1.0, "step_ms": step_ms,
            "tokens_per_s": 2048e3 / step_ms, "alloc_mib": 0.88 * peak, "reserved_mib": 1.045 * grown,
            "active_mib": 0.88 * peak, "peak_alloc_mib": peak, "peak_reserved_mib": 1.045 * grown,
            "peak_alloc_forward_mib": 0.93 * peak, "peak_alloc_backward_mib": peak,
            "peak_alloc_optimizer_mib": 0.95 * peak, "alloc_retries": 0, "ooms": 0, "device_allocs": 12, "ops": 4210,
        }
    )  # fmt: skip


def sample_run(verdict="GO", **changes):
    """Return something that `conclude` takes: a summary with the given verdict."""
    summary = {
        "schema": 1, "run_id": "smoke-20250301T101500Z-h200", "notebook": "smoke", "profile": "checklist", "custom": [],
        "verdict": verdict, "headline": "12 layers trained 100 steps at sequence 2,048 within every limit.",
        "reasons": [], "gates": GATES,
    }  # fmt: skip
    return SimpleNamespace(summary={**summary, **changes})


def code_cell(source="1", count=1, outputs=()):
    """Return an executed code cell."""
    return v4.new_code_cell(source, execution_count=count, outputs=list(outputs), id=f"cell-{count}")


def shown(**data):
    """Return a displayed output; MIME types are given with `_` for `/`, as in `text_html`."""
    return v4.new_output("display_data", {mime.replace("_", "/"): value for mime, value in data.items()})


def error(ename="ValueError", evalue="bad"):
    """Return an error output with a one-line traceback."""
    return v4.new_output("error", ename=ename, evalue=evalue, traceback=[f"{ename}: {evalue}"])


def concluded(verdict="GO", accept_review=False, **changes):
    """Return the outputs that `conclude` leaves in a notebook, its error among them."""
    with patch("nsa_lib.report.verdict.display") as display:
        try:
            conclude(sample_run(verdict, **changes), command="make report", accept_review=accept_review)
            errors = []
        except VerdictError as stop:
            errors = [error("VerdictError", str(stop))]
    shown = display.call_args_list[0]
    return [v4.new_output("display_data", shown.args[0], metadata=shown.kwargs["metadata"]), *errors]


def notebook(*cells, **metadata):
    """Return a notebook of the given cells."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return v4.new_notebook(cells=list(cells), metadata={**kernel, **metadata})


def table_output(table):
    """Return a table as its cell would show it."""
    return shown(text_html=table._repr_html_(), text_plain=repr(table))


def chart_output(chart):
    """Return a chart as its cell would show it."""
    return v4.new_output("display_data", chart.bundle())


def sample_notebook(verdict="GO", steps=None, gates=GATES, **changes):
    """Return an executed smoke notebook that shows everything a report has."""
    steps = sample_steps() if steps is None else steps
    memory = memory_trend(steps, limit_mib=70_000)
    sections = [
        ("# Does the model train on this machine?\n\nA production smoke: 100 steps, judged by rules.", None),
        ("## What was asked for", [table_output(parameters_table(PARAMETERS))]),
        ("## Do the gates hold?\n\nEach rule, what was measured, and how far it is from its limit.",
         [table_output(gates_table(gates)), table_output(cases_table(CASES))]),
        ("## Does memory stay flat?\n\nThe per-step peak must not rise by more than 10 % in any 50 steps.",
         [chart_output(memory), chart_output(phase_peaks(steps))]),
        ("## Does it learn, and how fast?", [chart_output(loss(steps)), chart_output(step_time(steps))]),
        ("## Where did it run?", [table_output(environment_table(ENVIRONMENT))]),
        ("## Verdict", concluded(verdict, **changes)),
    ]  # fmt: skip
    cells = []
    for number, (text, outputs) in enumerate(sections, start=1):
        cells.append(v4.new_markdown_cell(text, id=f"text-{number}"))
        if outputs is not None:
            cells.append(code_cell(f"show({number})  # one call\nx = [i for i in range({number})]", number, outputs))
    return notebook(*cells)


def export(nb, name="smoke"):
    """Return the report of a notebook as nbconvert would make it from a file of that name."""
    saved = nbformat.reads(nbformat.writes(nb), as_version=nbformat.NO_CONVERT)
    return NsaHTMLExporter().from_notebook_node(saved, {"metadata": {"name": name}})[0]
