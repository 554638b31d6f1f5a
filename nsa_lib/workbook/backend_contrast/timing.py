"""The gate over the timing of a contrast: who was timed, how often, and whether it was the one of its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nsa_lib.contract.agenda import WARMUP_ROUNDS, Contestant, contestants
from nsa_lib.contract.figures import counted
from nsa_lib.judgement.attestation import brings
from nsa_lib.judgement.clock import why_mistimed
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, GateResult, ended_well, how_it_ended, outcome_of
from nsa_lib.runs.recorded import Recorded
from nsa_lib.subject.config import OWN
from nsa_lib.workbook.backend_contrast.measures import TIMED, all_turns, timed_turns, timing_rows


def timing_gate(run: Recorded) -> GateResult:
    """Judge that every contestant was timed in every round, by another clock too, and entered its own backend."""
    gate, case = GateResult("timing", True, NOT_RUN, unit="contestants"), run.case("timing")
    if case is None or case["asked"] is None:
        return replace(gate, detail="no case was recorded")
    asked = case["asked"]
    expected = contestants(asked["seq_len"], asked["seq_lens"], backends=asked["backends"], brings=brings(asked))
    rounds = asked["steps"] // len(expected) - WARMUP_ROUNDS
    gate = replace(gate, limit=len(expected))
    timed = timing_rows(run)
    done = timed.set_index(TIMED)["rounds"].to_dict()
    whole = sum(done.get((c.subject, c.branches, c.backend, c.seq_len)) == rounds for c in expected)
    gate = replace(gate, measured=whole, detail=f"contestants with all of {rounds} rounds; {how_it_ended(case)}")
    if not ended_well(case):
        return replace(gate, outcome=outcome_of(case))
    if why := _why_mistimed(run):
        return replace(gate, outcome=FAIL, detail=why)
    if whole < len(expected):
        return replace(gate, outcome=FAIL)
    entered = _entered(run)
    if unseen := [one for one in expected if one not in entered]:
        return replace(gate, detail=f"{counted(len(unseen), 'contestant')} told no backend that it entered")
    wrong = [_named(run, one, entered[one]) for one in expected if not _is_itself(one, entered[one], brings(asked))]
    return replace(gate, outcome=FAIL if wrong else PASS, detail="; ".join(wrong) or gate.detail)


def _entered(run: Recorded) -> dict[Contestant, list[str]]:
    """Return by contestant the backends that its watched turn entered."""
    seen = all_turns(run).dropna(subset="routes")
    keys = seen[TIMED].itertuples(index=False)
    return {Contestant(*key[:3], int(key[3])): list(found) for key, found in zip(keys, seen["routes"], strict=True)}


def _is_itself(contestant: Contestant, entered: Sequence[str], brought: str | None) -> bool:
    """Return whether a contestant entered its own backend and no other; a user's may be made of ours."""
    owed = contestant.routes(brought)
    return set(owed) <= set(entered) if contestant.backend == OWN else owed == list(entered)


def _named(run: Recorded, contestant: Contestant, entered: Sequence[str]) -> str:
    what = f"{contestant.subject} of {run.called(contestant.backend)} at S={contestant.seq_len:,}"
    return f"what was timed as {what} ran {', '.join(map(run.called, entered)) or 'no backend'}"


def _why_mistimed(run: Recorded) -> str:
    """Return which backend's times are not those between the heartbeats, over all that it was timed in; or ""."""
    turns = timed_turns(run).groupby("backend")
    why = {run.called(name): why_mistimed(own["total_ms"], own["between_ms"]) for name, own in turns}
    return "; ".join(f"{name}: {said}" for name, said in why.items() if said)
