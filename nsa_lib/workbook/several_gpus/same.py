"""The gates that compare: ranks with each other, where bits must agree, and with one GPU, within what rounding does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pandas as pd

from nsa_lib.contract.case import DDP, CaseConfig
from nsa_lib.contract.figures import counted
from nsa_lib.contract.fingerprint import why_not_deterministic
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, GateResult, unless_cut_short
from nsa_lib.runs.recorded import Recorded
from nsa_lib.workbook.several_gpus.cases import IN_TURN, ONE
from nsa_lib.workbook.several_gpus.measures import (
    NOTHING,
    Parting,
    by_step,
    distances,
    fact_of_ranks,
    loss_differences,
    norm_ratios,
    odd_ones,
    parameter_distances,
    parting,
)

LOSS_BUDGET_PERCENT = {"float64": 1e-8, "float32": 0.02, "bfloat16": 2.0, "float16": 0.5}
"""By how much the mean loss of the ranks may differ from one GPU's, over its first loss. Sums are made in another
order, and each step adds to the difference."""

NORM_BUDGET = {"float64": 1.001, "float32": 1.02, "bfloat16": 1.5, "float16": 1.2}
"""Factor by which the norm of a rank's gradients may differ from one GPU's in the first steps."""

EARLY_STEPS = 20
"""Steps after which two trainings part: rounding makes another block the best, and each step adds to it. In float32 the
norms were seen to differ by 0.001 % in step 20 and by 1.3 % in step 47."""

LATE_NORM_BUDGET = NORM_BUDGET | {"float32": 1.2}
"""The factor after them."""

DISTANCE_BUDGET_PERCENT = {"float64": 1e-6, "float32": 0.05, "bfloat16": 5.0, "float16": 1.0}
"""How far apart the parameters of ranks and of one GPU may lie, over their norm."""


Frame = TypeVar("Frame", pd.Series, pd.DataFrame)

FIRST_STEP = 0.1
"""Share of the budgets that holds in the first step: the weights are the same there, and nothing has grown."""

TIMES = 3.0
"""How many times as far as one GPU's training parts from itself, with its sums in another order, ranks may part from
it: small differences grow, in 16 bits a hundredfold within 30 steps, by a factor that is the run's own."""

AT_MOST, NORM_AT_MOST = 5.0, 20.0
"""How many times the budget of the dtype that may come to. A norm leaps where a loss does not: a leap that comes a step
later was seen to be a factor of 4 in bfloat16."""


def budgets(floor: pd.Series | float, parted: pd.Series, steps: pd.Index, most: float = AT_MOST) -> pd.Series:
    """Return the budget of each step: that of the dtype, or more where one GPU's own training parted from itself."""
    least = pd.Series(floor, index=steps)
    grown = TIMES * parted.cummax().reindex(steps).ffill().fillna(0)
    return grown.clip(lower=least, upper=most * least).where(steps != 1, FIRST_STEP * least)


def in_turn(run: Recorded) -> Parting:
    """Return how one GPU with the ranks' shares in turn parts from one with the whole batch.

    NOTHING where they differ in the first step already: that is no rounding which grew.
    """
    found, dtype = parting(run), str(run.parameter("dtype"))
    firsts = 100 * found.loss.get(1, math.inf), found.norm.get(1, math.inf)
    allowed = FIRST_STEP * LOSS_BUDGET_PERCENT[dtype], FIRST_STEP * (NORM_BUDGET[dtype] - 1)
    return found if all(first <= most for first, most in zip(firsts, allowed, strict=True)) else NOTHING


def nearer(run: Recorded, deviation: Callable[[str], Frame | None]) -> Frame | None:
    """Return by step how far ranks are from one GPU with the whole batch or, if that is less, with the shares in turn.

    In the first step they are held to the whole batch.
    """
    found = deviation(ONE)
    if found is None or found.empty or in_turn(run) is NOTHING:
        return found
    nearest = np.fmin(found, deviation(IN_TURN).reindex(found.index))
    nearest.loc[nearest.index == 1] = found.loc[found.index == 1]
    return nearest


def held_to(gate: GateResult, measured: float, budget: float, digits: int = 3) -> GateResult:
    """Return a gate that passes within its budget; what it shows of both is rounded, the budget itself is not."""
    shown = {"measured": float(f"{measured:.{digits}g}"), "limit": float(f"{budget:.{digits}g}")}
    return replace(gate, outcome=PASS if measured <= budget else FAIL, margin=budget - measured, **shown)


def named(ranks: Sequence[int]) -> str:
    """Return ranks in words."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def start_gate(run: Recorded, strategy: str) -> GateResult:
    """Judge that all ranks began with one GPU's weights."""
    gate = GateResult(f"start_{strategy}", True, NOT_RUN, limit=0, unit="ranks")
    starts, one = fact_of_ranks(run, strategy, "start"), run.fact(ONE, "start")
    if not starts or not all(starts) or one is None:
        return replace(gate, detail="a rank ended before its weights were seen")
    wrong = odd_ones([start["hash"] for start in starts], one["hash"])
    if wrong:
        return replace(gate, outcome=FAIL, measured=len(wrong), detail=f"{named(wrong)} began with other weights")
    return replace(
        gate, outcome=PASS, measured=0, detail=f"{counted(len(starts), 'rank')}, the same bits as on one GPU"
    )


def data_gate(run: Recorded, strategy: str) -> GateResult:
    """Judge that in every step each rank trained on its share of one GPU's sequences."""
    gate = GateResult(f"data_{strategy}", True, NOT_RUN, limit=0, unit="ranks")
    ranks, one = by_step(run, strategy, "data"), run.of(ONE).set_index("step")["data"]
    if ranks is None or one.empty:
        return replace(gate, detail="a rank recorded no step")
    wrong: dict[int, int] = {}
    for step in ranks.index.intersection(one.index):
        share = len(one[step]) // ranks.shape[1]
        for rank in ranks:
            if ranks.loc[step, rank] != one[step][rank * share : (rank + 1) * share]:
                wrong.setdefault(rank, step)
    if wrong:
        said = f"{named(list(wrong))}: other sequences than its share from step {min(wrong.values())} on"
        return replace(gate, outcome=FAIL, measured=len(wrong), detail=said)
    gate = replace(
        gate, outcome=PASS, measured=0, detail=f"{counted(len(ranks), 'step')} of {counted(ranks.shape[1], 'rank')}"
    )
    return unless_cut_short(gate, run.case(strategy))


def loss_gate(run: Recorded, strategy: str) -> GateResult:
    """Judge that the mean loss of the ranks is one GPU's in every step, within what its dtype rounds."""
    floor = LOSS_BUDGET_PERCENT[str(run.parameter("dtype"))]
    gate = GateResult(f"loss_{strategy}", True, NOT_RUN, limit=floor, unit="%")
    found = nearer(run, partial(loss_differences, run, strategy))
    if found is None or found.empty:
        return replace(gate, detail="a rank, or one GPU, recorded no step")
    allowed = budgets(floor, 100 * in_turn(run).loss, found.index)
    worst = (found / allowed).idxmax()
    detail = f"nearest to its limit in step {worst}; {counted(len(found), 'step')}, over one GPU's first loss"
    gate = replace(held_to(gate, 100 * float(found[worst]), float(allowed[worst])), detail=detail)
    return unless_cut_short(gate, run.case(strategy))


def gradients_gate(run: Recorded, strategy: str) -> GateResult:
    """Judge that every rank has one GPU's gradients, by their norm, and with DDP all ranks the same to the bit."""
    dtype = str(run.parameter("dtype"))
    gate = GateResult(f"gradients_{strategy}", True, NOT_RUN, limit=NORM_BUDGET[dtype], unit="x")
    ratios, norms = nearer(run, partial(norm_ratios, run, strategy)), by_step(run, strategy, "part_norms")
    if ratios is None or ratios.empty:
        return replace(gate, detail="a rank, or one GPU, recorded no step")
    floors = [(NORM_BUDGET if step <= EARLY_STEPS else LATE_NORM_BUDGET)[dtype] - 1 for step in ratios.index]
    allowed = 1 + budgets(pd.Series(floors, index=ratios.index), in_turn(run).norm, ratios.index, NORM_AT_MOST)
    step = ((ratios.max(axis=1) - 1) / (allowed - 1)).idxmax()
    rank = int(ratios.loc[step].idxmax())
    gate = held_to(gate, float(ratios.loc[step, rank]), float(allowed[step]), digits=4)
    if gate.outcome == FAIL:
        first = ratios.index[ratios.gt(allowed, axis=0).any(axis=1)][0]
        far = [int(rank) for rank in ratios if ratios.loc[first, rank] > allowed[first]]
        said = f"{named(far)}: the norm of its gradients is another than one GPU's from step {first} on"
        return replace(gate, detail=said)
    differ = [step for step in norms.index if strategy == DDP and len({str(own) for own in norms.loc[step]}) > 1]
    if differ:
        wrong = odd_ones([str(own) for own in norms.loc[differ[0]]])
        said = f"{named(wrong)}: averaged gradients differ between ranks in step {differ[0]}"
        return replace(gate, outcome=FAIL, detail=said)
    same = ", the same bits on all ranks" if strategy == DDP else ", of each rank's part"
    detail = f"norms{same}; furthest from one GPU's on rank {rank} in step {step}"
    return unless_cut_short(replace(gate, detail=detail), run.case(strategy))


def parameters_gate(run: Recorded, strategy: str) -> GateResult:
    """Judge the parameters every 10 steps: the same bits on all ranks, and one GPU's within what its dtype rounds."""
    floor = DISTANCE_BUDGET_PERCENT[str(run.parameter("dtype"))]
    gate = GateResult(f"parameters_{strategy}", True, NOT_RUN, limit=floor, unit="%")
    ranks, one = fact_of_ranks(run, strategy, "digests"), run.fact(ONE, "digests")
    if not ranks or not all(ranks) or not one:
        return replace(gate, detail="a rank, or one GPU, ended before its parameters were seen")
    if said := _unchanged(fact_of_ranks(run, strategy, "start"), ranks):
        return replace(gate, outcome=FAIL, detail=said)
    expected = {found["step"]: found for found in one}
    for taken in zip(*ranks, strict=False):
        step = taken[0]["step"]
        if odd_ones([found["hash"] for found in taken]):
            wrong = _furthest(taken, expected.get(step))
            said = f"{named(wrong)}: not the parameters of the other ranks after step {step}"
            return replace(gate, outcome=FAIL, detail=said)
    same = _as_in_turn(run, ranks[0])
    held = same if _has_bits(run) else {}
    if said := _left_the_bits(held):
        return replace(gate, outcome=FAIL, detail=said)
    apart = nearer(run, partial(parameter_distances, run, ranks[0]))
    if apart.empty:
        return replace(gate, detail="ranks and one GPU were not seen after the same step")
    allowed = budgets(floor, 100 * in_turn(run).parameters, apart.index)
    step = (apart.max(axis=1) / allowed).idxmax()
    gate, part = held_to(gate, 100 * apart.loc[step].max(), float(allowed[step])), apart.loc[step].idxmax()
    compared = len(min(ranks, key=len))
    times = f"{counted(len(ranks), 'rank')}, compared {counted(compared, 'time')}"
    detail = f"the same bits on {times}; nearest to its limit after step {step}, in the rows of rank {part}"
    if same:
        detail += f"; {sum(same.values())} times the bits of one GPU with the shares in turn"
    missed = len(ranks) == 2 and held and not any(held.values())
    gate = replace(gate, outcome=WARN if missed and gate.outcome == PASS else gate.outcome, detail=detail)
    return unless_cut_short(gate, run.case(strategy))


def _as_in_turn(run: Recorded, taken: Sequence[Mapping]) -> dict[int, bool]:
    """Return by step whether ranks had the bits of one GPU with their shares in turn.

    Two ranks add two gradients, in whatever order the same sum, and halve it without rounding: on a CPU and on two H200
    they always had them, with DDP and FSDP2. Of more the sums have another order.
    """
    one = {found["step"]: found["hash"] for found in run.fact(IN_TURN, "digests") or ()}
    return {found["step"]: found["hash"] == one[found["step"]] for found in taken if found["step"] in one}


def _has_bits(run: Recorded) -> bool:
    """Return whether one GPU's training has bits to be held to: some kernels add in no fixed order.

    Half of a small float16 number is rounded, and ranks halve before they add.
    """
    asked = (run.case(IN_TURN) or {}).get("asked")
    if asked is None or asked["dtype"] == "float16":
        return False
    return not why_not_deterministic(CaseConfig.from_json(json.dumps(asked)))


def _left_the_bits(same: Mapping[int, bool]) -> str:
    """Return where ranks left the bits that they had, or "": the same sums give the same bits in every step."""
    for step, later in pairwise(same):
        if same[step] and not same[later]:
            return f"after step {step} the bits of one GPU with the shares in turn, after step {later} others"
    return ""


def _unchanged(starts: Sequence[Mapping | None], ranks: Sequence[Sequence[Mapping]]) -> str:
    """Return which rank had the same parameters twice: they are not trained there, or not what was hashed; or ""."""
    for rank, (start, taken) in enumerate(zip(starts, ranks, strict=True)):
        hashes = [start["hash"] if start else None, *(found["hash"] for found in taken)]
        same = [found["step"] for before, found in zip(hashes[:-1], taken, strict=True) if before == found["hash"]]
        if same:
            return f"rank {rank}: after step {same[0]} its parameters are still those of before"
    return ""


CLEARLY = 2.0
"""Of two ranks that differ, one is wrong if it is this many times as far from one GPU as the other."""


def _furthest(taken: Sequence[Mapping], expected: Mapping | None) -> list[int]:
    """Return the ranks whose parameters are not those of most; of two the one that one GPU does not agree with."""
    wrong = odd_ones([found["hash"] for found in taken])
    if len(wrong) < len(taken) or expected is None:
        return wrong
    apart = [max(distances(found, expected)) for found in taken]
    far = [rank for rank, distance in enumerate(apart) if distance > CLEARLY * min(apart)]
    return far or wrong
