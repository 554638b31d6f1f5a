"""What a check of the subject finds, as the attention is and with a fault planted."""

from dataclasses import replace

import pytest

from nsa_lib.contract.agenda import check_names
from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject.attention import module
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS, ModelConfig, NSAConfig
from nsa_lib.worker import faults, preflight
from nsa_lib.worker.preflight import subject_checks
from tests.subject import test_config

CHECKS = check_names(PLAIN_BACKENDS)

NSA = NSAConfig(dim=32, heads=4, groups=2, d_k=16, d_v=8, l=8, d=8, l_sel=16, n_sel=5, w=24)

CASE = CaseConfig(
    case_id="subject", work="checks", model=ModelConfig(nsa=NSA, layers=2, vocab=64), seq_len=128, batch=1, steps=21,
    dtype="float32", grad_checkpointing=True, lr=1e-3, seed=0, device="cpu",
)  # fmt: skip


def found(name, fault="none", **changes):
    """What one check of the subject finds with a fault planted."""
    case = replace(CASE, fault=fault, **changes)
    with faults.planted(case):
        return subject_checks(case, lambda: None)[name]()


def of_fused(name, fault="none"):
    return found(name, fault, backends=BACKEND_NAMES, model=replace(CASE.model, backend="fused"))


TINY = replace(test_config.NSA, l=8, d=4, l_sel=16, w=24)
"""Blocks of keys overlap, and the window is no multiple of a block."""

TINY_CASE = replace(test_config.CASE, model=replace(test_config.CASE.model, nsa=TINY, layers=2), seq_len=64)

each_backend = pytest.mark.parametrize("backend", PLAIN_BACKENDS)


def with_backend(backend, **changes):
    return replace(TINY_CASE, model=replace(TINY_CASE.model, backend=backend), **changes)


def check_all(case, *names):
    """Run checks of the subject with the case's fault in it."""
    with faults.planted(case):
        checks = preflight.GROUPS["subject"](case, lambda: None)
        return {name: checks[name]() for name in names}


def check(name, case=TINY_CASE):
    return check_all(case, name)[name]


def patch_project(monkeypatch, name, change):
    """Let every layer's projection of that name pass through `change`."""
    original = module.NSAttention.project

    def project(layer, x):
        return {n: change(part) if n == name else part for n, part in original(layer, x).items()}

    monkeypatch.setattr(module.NSAttention, "project", project)
