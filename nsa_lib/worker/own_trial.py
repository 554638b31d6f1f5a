"""Try what a user brings once, before any work: `python -m nsa_lib.worker.own_trial case.json outcome.json limit_s`.

It is imported, called and run forward on a few tokens, and its output looked at. The outcome is a file: what her code
prints goes to a log. A process that ends without one was ended by her code, or killed for lack of time.
"""

from __future__ import annotations

import faulthandler
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.files import write_json
from nsa_lib.subject.attention import NSAttention
from nsa_lib.subject.own.attention import OwnAttention, install
from nsa_lib.subject.own.casting import in_dtype
from nsa_lib.subject.own.loading import OwnError, blamed, provenance
from nsa_lib.subject.own.model import OwnModel

TOKENS = 256
"""Length that is tried, or the case's own if that is less."""

SEQUENCES = 2

HEAD_ENLARGED = 1000

HEAD_TOLERANCE = 0.05
"""Relative: more than bfloat16 rounds, less than any scale or cap changes enlarged logits."""


def main(case_file: Path, outcome_file: Path, limit_s: float) -> None:
    """Write what is known of the case's own part, or why it cannot be used."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(limit_s, exit=True)
    case = CaseConfig.from_json(case_file.read_text())
    try:
        outcome = tried(case)
    except OwnError as error:
        outcome = {"refusal": str(error), "user_traceback": error.user_traceback}
    write_json(outcome_file, outcome)


def tried(case: CaseConfig) -> dict[str, object]:
    """Return provenance and abilities of what a user brings. Raises OwnError if it cannot be used."""
    own, model = case.model.own, case.model
    kinds = {"attention": OwnAttention, "model": partial(OwnModel, grad_checkpointing=case.grad_checkpointing)}
    install(model)
    made = None
    if own.role in kinds:
        torch.manual_seed(case.seed)
        made, second = (_placed(kinds[own.role](own), case) for _ in range(2))
        del second
    with blamed(own, f"it cannot be run on {_shape(case)}, {case.dtype}"):
        _run(case, made)
        if made is not None:
            _require_no_dropout(case, made)
        if own.role == "model" and made.head is not None:
            _require_plain_head(made.eval(), _tokens(case))
    has = _abilities(made)
    return {**provenance(own), "has": has, "judged": _judged(own.role, has)}


def _placed(module: nn.Module, case: CaseConfig) -> nn.Module:
    with blamed(case.model.own, f"it cannot be moved to {case.device} in {case.dtype}"):
        module = in_dtype(module, getattr(torch, case.dtype)).to(case.device)
    for name, parameter in module.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise _refused(case, name, "made in its first call; accepts those that are there before")
        if parameter.is_complex():
            raise _refused(case, name, "complex; accepts real ones, which torch.view_as_complex shows as complex")
    return module


def _refused(case: CaseConfig, parameter: str, why: str) -> OwnError:
    own = case.model.own
    return OwnError(f"{own.role}={own.spec}: its parameter {parameter.removeprefix('inner.')} is {why}")


def _length(case: CaseConfig) -> int:
    return min(case.seq_len, TOKENS)


def _shape(case: CaseConfig) -> str:
    what = "tokens" if case.model.own.role == "model" else f"rows of width {case.model.nsa.dim}"
    return f"{SEQUENCES} sequences of {_length(case)} {what}"


def _run(case: CaseConfig, made: nn.Module | None) -> torch.Tensor:
    """Return its output, on random input of the case's dtype and device."""
    if case.model.own.role == "model":
        return made.hidden(_tokens(case))
    layer = made or _placed(NSAttention(case.model.nsa, case.model.backend), case)
    x = torch.randn(SEQUENCES, _length(case), case.model.nsa.dim, generator=_generator(case))
    return layer(x.to(getattr(torch, case.dtype)).to(case.device))


def _tokens(case: CaseConfig) -> torch.Tensor:
    tokens = torch.randint(case.model.vocab, (SEQUENCES, _length(case)), generator=_generator(case))
    tokens[0, 0] = case.model.vocab - 1  # a table that is too small must be found
    return tokens.to(case.device)


def _generator(case: CaseConfig) -> torch.Generator:
    return torch.Generator().manual_seed(case.seed)


@torch.no_grad()
def _require_no_dropout(case: CaseConfig, made: nn.Module) -> None:
    """Refuse what is random in training alone, as dropout is: nothing in it would be the same twice.

    What is random always is no dropout that was forgotten to be set: the checks find that. What draws a number and uses
    none of it, as a model does that would leave a layer out with a chance of 0, is not random.
    """
    draws, was_training = [], made.training
    for training in (True, False):
        made.train(training)
        before = _drawn(case)
        first, second = (_run(case, made) for _ in range(2))
        draws.append(not torch.equal(before, _drawn(case)) and not torch.equal(first, second))
    made.train(was_training)
    if was_training and draws == [True, False]:
        own = case.model.own
        raise OwnError(
            f"{own.role}={own.spec}: in training it draws random numbers, as dropout does, and no step could be "
            f"taken again; accepts dropout 0, which {own.role}_args may set"
        )


def _drawn(case: CaseConfig) -> torch.Tensor:
    return torch.cuda.get_rng_state() if case.device == "cuda" else torch.get_rng_state()


@torch.no_grad()
def _require_plain_head(model: OwnModel, tokens: torch.Tensor) -> None:
    """Refuse a model whose logits are not its head's product: a loss made in chunks would not be the model's.

    The head is enlarged, so that a cap of the logits shows.
    """
    model.head.weight.mul_(HEAD_ENLARGED)
    logits, product = model(tokens).double(), model.head(model.hidden(tokens)).double()
    if float((logits - product).norm()) > HEAD_TOLERANCE * float(product.norm()):
        raise OwnError(
            f"model={model.own.spec}: its logits are not what its get_output_embeddings makes of its base model's "
            "output: something scales or caps them; accepts a module without get_output_embeddings, whose loss is made "
            "of its logits"
        )


def _abilities(made: nn.Module | None) -> list[str]:
    """Return which of the things that it may have it has."""
    named = ("reference", "select", "branch_gates", "window")
    found = [name for name in named if getattr(getattr(made, "inner", None), name, None) is not None]
    if getattr(made, "can_checkpoint", False):
        found.append("gradient_checkpointing_enable")
    deterministic = getattr(getattr(made, "inner", None), "deterministic", False) is True
    return [*found, "deterministic"] if deterministic else found


def _judged(role: str, has: list[str]) -> str:
    if role == "backend":
        return "judged by the float64 reference"
    return "judged by its own reference" if "reference" in has else "judged without a reference"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
