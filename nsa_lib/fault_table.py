"""The seeded faults, and the trials that show that each one turns a verdict red.

A fault is planted from outside, in the process of a case (`faults`); the subject knows nothing of it. A trial is one
run of a notebook through papermill with a fault in it (`selftest`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nsa_lib.operators import FEWEST_STEPS

FAULTS = {
    "none": "no fault",
    "leak_12": "memory is kept: 12 % of the peak over 50 steps, from the end of the warm-up",
    "leak_30": "memory is kept: 30 % of the peak over 50 steps, from the end of the warm-up",
    "pool_creep": "reserved memory rises while allocated memory is flat: scratch buffers that fit into none before",
    "nan_loss": "the loss is NaN",
    "inf_gradient": "one gradient is infinite, the loss is not",
    "hang_forward": "the forward pass never returns",
    "hang_gil": "C code never returns and holds Python's lock",
    "sigkill": "the case is killed, as the kernel does for lack of memory",
    "segfault": "C code reads address 0",
    "oom": "more memory is asked for than any device has",
    "operator_growth": "a hook is added each step, and each does its work in every later step",
    "growing_shapes": "sequences get longer by a fiftieth each step",
    "wrong_backend": "a backend runs the code of another",
    "first_key": "selected attention reads the first token alone, whatever was selected",
    "future_leak": "selection ranks a query's blocks by the scores of a later query",
    "late_binding": "checkpointing computes the last layer again in place of every layer",
    "dead_parameter": "the keys of the compressed branch never get a gradient",
    "unshifted_labels": "each position is trained on its own token instead of the next",
    "silent_heartbeat": "the training goes on and writes no heartbeat",
    "torn_heartbeat": "the case is killed in the middle of a heartbeat's line",
    "disk_full": "a file of the case cannot grow beyond 8 KiB",
}
"""What each value of the parameter `fault` plants in every case of a run."""

FAULT_STEP = 5
"""The step in which a fault strikes that does so once; every kind of case has that many."""

SMALL = {"profile": "laptop", "layers": 2, "seq_len": 128, "vocab": 64}
SHORT = {**SMALL, "steps": 60, "anomaly": False, "profiler": False}
"""The smallest smoke that can be judged; what it leaves out is INCOMPLETE and cannot hide a NO-GO."""
CHECKED = {"profile": "laptop", "layers": 2, "seq_len": 128}
"""A small preflight; what it learns has sizes of its own."""
SCALED = {**SMALL, "seq_lens": [64, 128], "steps": 3}
CONTRASTED = {**SMALL, "seq_lens": [64, 128], "steps": FEWEST_STEPS, "rounds": 1}
ENDLESS = {**SHORT, "steps": 100_000, "stall_timeout_s": 2}
"""For faults after which nothing comes: only the supervision ends them."""


@dataclass(frozen=True)
class Trial:
    """One run with a fault in it, and the verdict that it must come to."""

    fault: str
    verdict: str
    """The word that the run must end with."""
    gate: str
    """The required gate that must be the reason; "" where none may stand in the way."""
    says: str = ""
    """What the gate's detail must hold, so that it is red for the right reason."""
    notebook: str = "smoke"
    parameters: Mapping[str, object] = field(default_factory=lambda: SHORT)

    @property
    def name(self) -> str:
        """A name of its own: the fault, the notebook and what sets it apart from the fault's other trials."""
        backend = self.parameters.get("backend")
        return "-".join(filter(None, [self.fault, self.notebook, backend]))


TRIALS = (
    Trial("none", "GO", "", parameters={**SMALL, "steps": 60}),
    Trial("none", "GO", "", notebook="preflight", parameters=CHECKED),
    Trial("none", "GO", "", notebook="backward_scaling", parameters=SCALED),
    Trial("none", "GO", "", notebook="backend_contrast", parameters=CONTRASTED),
    Trial("leak_12", "NO-GO", "trend_peak_alloc", "rises steadily"),
    Trial("leak_30", "NO-GO", "trend_peak_alloc", "rises steadily"),
    Trial("pool_creep", "NO-GO", "trend_reserved", "rises steadily", parameters={**SHORT, "alloc_conf": ""}),
    Trial("nan_loss", "NO-GO", "finite", "loss is nan"),
    Trial("nan_loss", "NO-GO", "anomaly", "nan", parameters={**SHORT, "anomaly": True, "backend": "packed"}),
    Trial("inf_gradient", "NO-GO", "finite", "grad_norm is inf"),
    Trial("hang_forward", "NO-GO", "steps", "stalled", parameters=ENDLESS),
    Trial("hang_gil", "NO-GO", "steps", "stalled", parameters=ENDLESS),
    Trial("sigkill", "NO-GO", "steps", "SIGKILL"),
    Trial("segfault", "NO-GO", "steps", "SIGSEGV"),
    Trial("oom", "NO-GO", "steps", "oom"),
    Trial("operator_growth", "NO-GO", "operator_growth", "grew", parameters={**SHORT, "profiler": True}),
    Trial("growing_shapes", "NO-GO", "trend_peak_alloc", "rises steadily"),
    Trial("wrong_backend", "NO-GO", "route", parameters={**SHORT, "backend": "packed"}),
    Trial("first_key", "NO-GO", "attention", parameters={**SHORT, "backend": "packed"}),
    Trial("late_binding", "NO-GO", "steps", "no gradient reached"),
    Trial("silent_heartbeat", "NO-GO", "steps", "stalled", parameters=ENDLESS),
    Trial("torn_heartbeat", "NO-GO", "steps", "SIGKILL"),
    Trial("oom", "NO-GO", "backward_64", "oom", notebook="backward_scaling", parameters=SCALED),
    Trial("wrong_backend", "NO-GO", "route_packed", notebook="backend_contrast", parameters=CONTRASTED),
    Trial("first_key", "NO-GO", "attention_masked", notebook="preflight", parameters=CHECKED),
    Trial("future_leak", "NO-GO", "future_masked", notebook="preflight", parameters=CHECKED),
    Trial("late_binding", "NO-GO", "checkpointing", notebook="preflight", parameters=CHECKED),
    Trial("dead_parameter", "NO-GO", "gradients", "key_cmp.weight", notebook="preflight", parameters=CHECKED),
    Trial("unshifted_labels", "NO-GO", "loss_fresh_tokens", notebook="preflight", parameters=CHECKED),
    Trial("disk_full", "NO-GO", "steps", "OSError"),
)
"""What `make selftest` runs: for each notebook a run without a fault, which must be GO, and for each fault the
notebook, the gate and the verdict that catch it."""
