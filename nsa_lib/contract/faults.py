"""The seeded faults by name. `worker.faults` plants them; the subject knows nothing of them."""

from __future__ import annotations

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
    "bit_once": "one bit of a gradient is flipped, in one step",
    "stuck_bit": "the GPU flips a bit of a gradient in every step; on a CPU one core does",
    "unordered_sum": "a gradient is rounded by chance, wherever the code runs",
}
"""What each value of the parameter `fault` plants in every case of a run; where several ranks run, in one of them."""

RANK_FAULTS = {
    "hang_collective": "a rank waits in a collective that no other rank enters",
    "mismatched_shapes": "a rank enters a collective with a tensor of another shape",
    "slow_rank": "the attention of a rank takes 1.5 times as long",
    "flipped_bit": "one bit of a rank's gradient is flipped after the ranks have averaged it",
    "other_data": "a rank trains on the sequences of another",
    "other_seed": "a rank begins with other weights",
}
"""The faults that a process by itself cannot have."""

MEMBER_FAULTS = {
    "wrong_bit": "a GPU computes the same wrong bit every time, so low that rounding explains it",
    "slow_gpu": "every step takes a second and a half longer",
}
"""Faults of one GPU that only a comparison with others shows: a smoke by itself is GO with them."""

FAULT_RANK = 1
"""The rank that a fault strikes where there are several."""

FAULT_STEP = 5
"""The step in which a fault strikes that does so once; every kind of case has that many."""

MOMENTS = {
    "build": "while the model is built",
    "first": "from the first step on",
    "last": "in the last step alone",
}
"""When a fault may strike instead: `sigkill@last`."""

NO_MOMENT = {
    **dict.fromkeys(
        ("leak_12", "leak_30", "pool_creep", "growing_shapes"),
        "a rise is judged over 50 steps after the warm-up: from the first step on it is the same fault, and one step "
        "of it is no trend",
    ),
    **dict.fromkeys(
        ("bit_once", "stuck_bit", "unordered_sum"), "they show where steps are taken again, at a place of their own"
    ),
    "operator_growth": "early steps are compared with late ones: from the first step on it is the same fault, and what "
    "one step calls more often than another is no growth",
}
"""Faults that need many steps or show where steps are taken again, and why none strikes at a moment."""

IN_FORCE = ("wrong_backend", "first_key", "future_leak", "late_binding", "dead_parameter", "unshifted_labels")
"""Faults of the code that are in force from the build on: they strike at no moment of their own."""

NEEDS_A_STEP = ("nan_loss", "inf_gradient", "disk_full", *IN_FORCE)
"""Faults that there is nothing to strike for while the model is built."""


def _moments(fault: str) -> tuple[str, ...]:
    if fault == "none" or fault in NO_MOMENT:
        return ()
    return tuple(moment for moment in MOMENTS if moment != "build" or fault not in NEEDS_A_STEP)


FAULTS_AT = {
    f"{fault}@{moment}": f"{what}; {MOMENTS[moment]}" for fault, what in FAULTS.items() for moment in _moments(fault)
}
"""The same faults at another moment, in a smoke."""


RANK_FAULTS_AT = {"hang_collective@first": f"{RANK_FAULTS['hang_collective']}; {MOMENTS['first']}"}
"""Those of one rank among several at another moment."""


def moments_said() -> list[str]:
    """Return a line of Markdown for each moment, and one for each fault that has none."""
    moments = [f"- `@{moment}`: {what}" for moment, what in MOMENTS.items()]
    return moments + [f"- `{fault}` has no moment: {why}" for fault, why in NO_MOMENT.items()]


def moment_of(fault: str) -> str:
    """Return the moment that a fault names, or ""."""
    return fault.partition("@")[2]


def strikes_at_call(fault: str) -> int:
    """Return at which call, from 1 on, a planted fault strikes that waits for its step."""
    return 1 if moment_of(fault) else FAULT_STEP
