"""Judge that layers that were to be compiled ran compiled, whole, and were not compiled again and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.contract.case import GRAPH, WINDOW_STEPS
from nsa_lib.contract.figures import counted
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, GateResult, unless_cut_short
from nsa_lib.runs.recorded import Recorded

COMPILED_CALL = "Torch-Compiled Region"
"""What the name of every call of compiled code begins with in a profile."""


def compiled_gate(run: Recorded, case_id: str, profiled_id: str) -> GateResult:
    """Judge the graphs of a compiled case: some were made, no frame is eager, none breaks, none is made again.

    Compilations of the first recorded step are expected. That no layer was left out is seen in recorded steps, where
    layers that run as Python say so, and read off the case `profiled_id`, in which calls of compiled code were counted.
    Of replays of a CUDA graph there are none: there the layers count that ran when it was captured.
    """
    gate, case = GateResult("compiled", True, NOT_RUN, limit=0, unit="findings"), run.case(case_id)
    steps = [] if case is None else [step["compiled"] for step in case["executed"] or () if step.get("compiled")]
    if not steps:
        return replace(gate, detail="no compiled step was recorded")
    wrong = [*_wrong(steps[0], steps[-1])]
    if eager := sorted({layer + 1 for step in case["executed"] for layer in step.get("eager_layers", ())}):
        wrong.append(f"layers {', '.join(map(str, eager))} ran eagerly")
    layers, is_graph = case["asked"]["model"]["layers"], case["asked"]["compile"] == GRAPH
    calls = sum(case["executed"][-1]["passes"]) if is_graph else _compiled_calls(run.case(profiled_id))
    if calls is not None and calls < layers:
        wrong.append(f"{calls:g} calls of compiled code a step, in {counted(layers, 'layer')}")
    if wrong:
        return replace(gate, outcome=FAIL, measured=len(wrong), detail="; ".join(wrong))
    if calls is None:
        return replace(gate, detail="calls of compiled code were not counted: a layer may have run eagerly")
    detail = (
        f"{counted(steps[-1]['graphs'], 'graph')} of {counted(steps[-1]['frames'], 'frame')}, called {calls:g} times a "
        f"step in {counted(layers, 'layer')}; no break, {len(steps[0]['recompilations'])} compiled again in the first "
        "step and none later"
    )
    return unless_cut_short(replace(gate, outcome=PASS, measured=0, detail=detail), case)


def _wrong(first: Mapping, last: Mapping) -> list[str]:
    """Return what is wrong with the graphs, in words, from the counts up to the first and up to the last step."""
    wrong = [] if last["graphs"] else ["nothing was compiled"]
    if last["eager_frames"]:
        wrong.append(f"{last['eager_frames']} of {last['frames']} frames run eagerly")
    wrong += [f"a graph breaks {counted(times, 'time')}: {reason}" for reason, times in last["graph_breaks"].items()]
    again = last["recompilations"][len(first["recompilations"]) :]
    return wrong + [f"compiled again after the first step: {reason}" for reason in again]


def _compiled_calls(case: Mapping | None) -> float | None:
    """Return the calls of compiled code in a late step of a case, or None if none were counted."""
    if case is None or not case["operators"]:
        return None
    counts = [row["count"] for name, row in case["operators"]["late"].items() if name.startswith(COMPILED_CALL)]
    return sum(counts) / WINDOW_STEPS
