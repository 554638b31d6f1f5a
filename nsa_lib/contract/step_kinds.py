"""Which steps of a case do the same work: only those tell how long the next one may take."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import groupby

from nsa_lib.contract.agenda import contestants
from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.collectives import transfers


def step_kinds(case: CaseConfig) -> list[Hashable]:
    """Return the kind of each step of a case, in order.

    Steps of a training are alike; transfers of one collective and size are. Every check of a preflight is of its own
    kind. A timing goes through its contestants in turn, round by round, one length after the other.
    """
    if case.work == "checks":
        return list(range(case.steps))
    if case.work == "collectives":
        return list(transfers(case.device))
    if case.work != "timing":
        return [case.work] * case.steps
    field = contestants(case.seq_len, case.seq_lens, backends=case.backends, brings=case.model.brings)
    rounds = case.steps // len(field)
    heats = [list(heat) for _, heat in groupby(field, key=lambda contestant: contestant.seq_len)]
    return [contestant for heat in heats for _ in range(rounds) for contestant in heat]
