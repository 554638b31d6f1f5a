"""What is on trial, as its checks see it: made with the same weights each time, run on seeded input, edited.

The input of an attention is x [B, T, dim], that of a model tokens int64 [B, T]. In both something real enters that can
be moved a little and has a gradient: x, or what the model's embedding makes of the tokens.

Letters: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject.attention import ATTENTIONS
from nsa_lib.subject.config import OWN
from nsa_lib.subject.model import TinyLM, make_model
from nsa_lib.subject.own.attention import OwnAttention
from nsa_lib.subject.own.casting import in_dtype
from nsa_lib.subject.own.model import OwnModel

SHORT = 97
"""A length that is no multiple of anything."""

LENGTHS = (1, 2, 3, 17, 64, 65, SHORT, 128, 129)
"""Lengths that are tried: blocks of likely sizes that are full, and those that one token is left of."""

Change = Callable[[Tensor], Tensor]
"""What is done to what enters: x, or the embedded tokens."""


class Trial(Protocol):
    """What is on trial."""

    case: CaseConfig
    dtype: torch.dtype
    alive: Callable[[], None]

    def fresh(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Return it, with the weights that it has each time, rounded to the run's dtype and then in `dtype`.

        What starts at zero does not here (`stirred`).
        """

    def input(self, batch: int, length: int, seed: int = 0) -> Tensor:
        """Return an input, the same for one seed."""

    def edited(self, given: Tensor, start: int, stop: int | None = None) -> Tensor:
        """Return an input with other rows from `start` to `stop`, or to the end."""

    def vocabulary(self) -> Iterator[Tensor]:
        """Yield inputs of one sequence in which every token of the vocabulary stands once; none for an attention."""

    def call(self, module: nn.Module, given: Tensor) -> Tensor:
        """Return the output of the very input that is given."""

    def run(self, module: nn.Module, given: Tensor, change: Change = lambda x: x) -> tuple[Tensor, Tensor | None]:
        """Return the output [B, T, ...], and what entered; its gradient is there once the output's was taken.

        None entered if the model has no embedding that could be seen.
        """


class AttentionTrial:
    """An attention alone: a user's, ours with a user's kernel, or the dense yardstick."""

    def __init__(self, case: CaseConfig, alive: Callable[[], None]):
        self.case, self.alive = case, alive
        self.dtype = getattr(torch, case.dtype)

    def fresh(self, dtype: torch.dtype | None = None) -> nn.Module:
        torch.manual_seed(self.case.seed)
        config = self.case.model
        made = OwnAttention(config.own) if config.attention == OWN else ATTENTIONS[config.attention](config)
        return _placed(made, self, dtype)

    def input(self, batch: int, length: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(self.case.seed + seed)
        x = torch.randn(batch, length, self.case.model.nsa.dim, generator=generator)
        return x.to(self.dtype).to(self.case.device)

    def edited(self, given: Tensor, start: int, stop: int | None = None) -> Tensor:
        edited = given.clone()
        edited[:, start:stop] = EDIT_SIZE * self.input(*given.shape[:2], seed=1).to(given.dtype)[:, start:stop]
        return edited

    def vocabulary(self) -> Iterator[Tensor]:
        return iter(())

    def call(self, module: nn.Module, given: Tensor) -> Tensor:
        return module(given)

    def run(self, module: nn.Module, given: Tensor, change: Change = lambda x: x) -> tuple[Tensor, Tensor | None]:
        x = change(given.to(module.entered_by)).detach().requires_grad_()
        return module(x.clone()), x  # no leaf: the input of a layer is made by the one before


EDIT_SIZE = 4
"""How much larger an edited row is: one token among thousands must still show."""


class ModelTrial:
    """A user's model, from tokens to what its loss is made of."""

    def __init__(self, case: CaseConfig, alive: Callable[[], None]):
        self.case, self.alive = case, alive
        self.dtype = getattr(torch, case.dtype)

    def fresh(self, dtype: torch.dtype | None = None) -> OwnModel:
        torch.manual_seed(self.case.seed)
        made = OwnModel(self.case.model.own)
        return _placed(made, self, dtype)

    def input(self, batch: int, length: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(self.case.seed + seed)
        return torch.randint(self.case.model.vocab, (batch, length), generator=generator).to(self.case.device)

    def edited(self, given: Tensor, start: int, stop: int | None = None) -> Tensor:
        edited = given.clone()
        edited[:, start:stop] = (edited[:, start:stop] + 1) % self.case.model.vocab
        return edited

    def vocabulary(self) -> Iterator[Tensor]:
        tokens = torch.arange(self.case.model.vocab, device=self.case.device)
        yield from tokens[None].split(self.case.seq_len, dim=1)

    def call(self, module: nn.Module, given: Tensor) -> Tensor:
        return module.hidden(given)

    def run(self, module: nn.Module, given: Tensor, change: Change = lambda x: x) -> tuple[Tensor, Tensor | None]:
        entered: list[Tensor] = []

        def enter(embedding: nn.Module, arguments: tuple, output: Tensor) -> Tensor | None:
            if entered or arguments[0].shape != given.shape or not torch.equal(arguments[0], given):
                return None  # positions, or a second look at the tokens
            entered.append(change(output.detach()).requires_grad_())
            return entered[0] + (output - output.detach())  # the table keeps its gradient

        with _hooked(module, enter):
            output = module.hidden(given)
        return output, entered[0] if entered else None


@contextmanager
def _hooked(module: nn.Module, hook: Callable) -> Iterator[None]:
    embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    handles = [part.register_forward_hook(hook) for part in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _placed(made: nn.Module, trial: Trial, dtype: torch.dtype | None) -> nn.Module:
    made = in_dtype(in_dtype(stirred(with_one_epsilon(made, trial.dtype)), trial.dtype), dtype or trial.dtype)
    made.entered_by = dtype or trial.dtype  # what enters has it, whatever some parameters are kept in
    return made.to(trial.case.device)


def with_one_epsilon(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Give torch's own RMSNorm the epsilon that it takes in the run's dtype: left open, it is another one in each."""
    for part in module.modules():
        if isinstance(part, nn.RMSNorm) and part.eps is None:
            part.eps = torch.finfo(dtype).eps
    return module


def stirred(module: nn.Module) -> nn.Module:
    """Give small random values to parameters that start at zero: an output projection, a gate, a bias.

    What they multiply has no part in the output and no gradient, so that no check would see a mistake in it.
    """
    generator = torch.Generator().manual_seed(STIRRED_SEED)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.numel() and not parameter.any():
                size = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else STIRRED_VECTOR
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return module


STIRRED_SEED = 5

STIRRED_VECTOR = 0.1
"""Of biases and gates; a matrix gets what keeps the size of what it multiplies."""


def trial_of(case: CaseConfig, alive: Callable[[], None]) -> Trial:
    """Return what is on trial in a case."""
    return ModelTrial(case, alive) if case.model.brings == "model" else AttentionTrial(case, alive)


def trained_model(case: CaseConfig, *, layers: int, vocab: int) -> TinyLM | OwnModel:
    """Return a model to train: ours around the attention on trial, or the user's own as it is."""
    torch.manual_seed(case.seed)
    config = case.model if case.model.brings == "model" else replace(case.model, layers=layers, vocab=vocab)
    made = make_model(config, grad_checkpointing=case.grad_checkpointing)
    return in_dtype(made, getattr(torch, case.dtype)).to(case.device)


def outcome(trial: Trial, module: nn.Module, given: Tensor, change: Change = lambda x: x) -> dict[str, Tensor]:
    """Return output and gradients by name, of a seeded cotangent: `output`, `gradient of input`, and of parameters."""
    module.zero_grad(set_to_none=True)
    output, entered = trial.run(module, given, change)
    generator = torch.Generator().manual_seed(trial.case.seed + 2)
    cotangent = torch.randn(output.shape, generator=generator).to(trial.dtype)  # one value in every dtype
    output.backward(cotangent.to(output.dtype).to(output.device))
    found = {"output": output.detach()}
    if entered is not None:
        found["gradient of input"] = torch.zeros_like(entered) if entered.grad is None else entered.grad
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found[f"gradient of {name.removeprefix('inner.')}"] = gradient.detach()
    return found
