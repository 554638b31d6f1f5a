"""The check of gradients that reach nothing, or nothing that is trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nsa_lib.subject import training
from nsa_lib.worker.preflight.finding import Finding, at_most
from nsa_lib.worker.preflight.own.trial import SHORT, Trial, trained_model

LAYERS = 2

VOCAB = 64

STEPS = 3
"""Steps in one of which every parameter must get a gradient: a layer that starts at zero hides others in the first."""


def gradients(trial: Trial) -> Finding:
    """Train a few steps, and look for parameters that never get a finite gradient that is not zero."""
    model = trained_model(trial.case, layers=LAYERS, vocab=VOCAB)
    vocab = trial.case.model.vocab if trial.case.model.brings == "model" else VOCAB
    generator = torch.Generator().manual_seed(trial.case.seed)
    shape = (trial.case.batch, trial.case.seq_len + 1)
    tokens = torch.randint(vocab, shape, generator=generator).to(trial.case.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=trial.case.lr)
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    strangers = _trained_by_nobody(trial)
    if strangers:
        return at_most(len(strangers), 0, "tensors", f"{UNKNOWN}: {'; '.join(strangers[:3])}")
    reached, not_finite = set(), set()
    for _ in range(STEPS):
        model.zero_grad(set_to_none=True)
        training.next_token_loss(model, tokens).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                (reached if parameter.grad.any() else set()).add(name)
                (set() if parameter.grad.isfinite().all() else not_finite).add(name)
        optimizer.step()
        trial.alive()
    bad = sorted(not_finite | (wanted - reached))
    said = ", ".join(name.replace(".inner", "") for name in bad[:6])
    detail = f"of {len(wanted)}, in {STEPS} steps: {said or 'all get a finite gradient that is not zero'}"
    return at_most(len(bad), 0, "parameters", detail)


UNKNOWN = "a gradient reaches what is no parameter of it, so that no optimizer, cast or move does"


def _trained_by_nobody(trial: Trial) -> list[str]:
    """Return the leaves of a backward that the module does not know, as layers in a plain list are, by their shapes."""
    module = trial.fresh()
    output, entered = trial.run(module, trial.input(1, min(trial.case.seq_len, SHORT)))
    known = {id(tensor) for tensor in (*module.parameters(), *module.buffers(), entered)}
    return sorted({f"shape {tuple(leaf.shape)}" for leaf in _leaves(output) if id(leaf) not in known})


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """Yield the tensors in which the backward of an output ends."""
    todo, seen = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        todo += [behind for behind, _ in node.next_functions]
