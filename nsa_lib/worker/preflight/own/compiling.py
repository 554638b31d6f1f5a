"""The check of what is on trial under torch.compile: the same outputs and gradients, in whole graphs."""

from __future__ import annotations

import torch

from nsa_lib.worker.attestation.graphs import compiled_graphs
from nsa_lib.worker.preflight.finding import Finding, at_most, within_budget
from nsa_lib.worker.preflight.own.numbers import budgets, error_of
from nsa_lib.worker.preflight.own.precision import widest
from nsa_lib.worker.preflight.own.trial import Trial, outcome


def compiled(trial: Trial) -> Finding:
    """Hold it compiled against itself run eagerly; what falls back to that is not compiled."""
    given = trial.input(1, trial.case.seq_len)
    eager = outcome(trial, trial.fresh(), given)
    module = trial.fresh()
    getattr(module, "inner", module).compile()
    found = outcome(trial, module, given)
    fallen = _fallen_back(compiled_graphs())
    if fallen:
        return at_most(len(fallen), 0, "findings", "; ".join(fallen[:3]))
    budget = budgets(trial, given, widest(trial) or trial.dtype, trial.dtype, _wide(trial, given))
    finding = within_budget({name: error_of(found[name], value) for name, value in eager.items()}, budget)
    return Finding(finding.measured, finding.limit, "", f"{finding.detail}; compiled against eager", finding.holds)


def _wide(trial: Trial, given: torch.Tensor) -> dict[str, torch.Tensor]:
    return outcome(trial, trial.fresh(widest(trial) or trial.dtype), given)


def _fallen_back(graphs: dict[str, object]) -> list[str]:
    said = [] if graphs["graphs"] else ["nothing was compiled"]
    if graphs["eager_frames"]:
        said.append(f"{graphs['eager_frames']} of {graphs['frames']} frames run eagerly")
    return said + [f"a graph breaks: {reason}" for reason in graphs["graph_breaks"]]
