"""Tokens that a trained model has not seen: an honest one knows nothing of them, a leak shows in loss or rows."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from nsa_lib.subject import training
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.fresh_tokens import edited_positions, fresh_tokens
from tests.subject.test_config import CASE

LONG = replace(CASE, seq_len=320, batch=2, model=replace(CASE.model, layers=1))


def shown(case=LONG, spoil=None, steps=0):
    torch.manual_seed(0)
    model = TinyLM(case.model)
    if spoil:
        honest = model.hidden
        model.hidden = lambda tokens: spoil(model, honest, tokens)
    optimizer = training.make_optimizer(model, 1e-2)
    tokens = torch.randint(case.model.vocab, (case.batch, case.seq_len + 1))
    for _ in range(steps):
        training.train_step(model, optimizer, tokens)
    return fresh_tokens(model, partial(training.train_step, model, optimizer), case, alive=lambda: None)


def test_an_honest_model_knows_nothing_of_fresh_tokens_and_its_rows_stay():
    found = shown()
    assert min(found["losses"]) > 0.97 * math.log(LONG.model.vocab)
    assert found["guess"] == math.log(LONG.model.vocab)
    assert set(found["changes"].values()) == {0.0}
    assert found["unseen"] == []
    assert found["others"] == 0.0
    assert shown(replace(LONG, batch=1))["others"] is None


def test_a_row_that_reads_the_future_beyond_a_length_changes():
    def spoil(model, honest, tokens):
        hidden = honest(tokens)
        return torch.cat(
            [hidden[:, :200], hidden[:, 200:] + 0.1 * model.embedding(tokens.roll(-1, dims=1))[:, 200:]], dim=1
        )

    found = shown(spoil=spoil)
    assert max(found["changes"].values()) > 0


def test_a_model_that_learned_to_read_the_next_token_is_below_a_guess():
    def spoil(model, honest, tokens):
        following = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)
        return honest(tokens) + 5 * model.embedding(following)

    assert min(shown(spoil=spoil, steps=60)["losses"]) < 0.97 * math.log(LONG.model.vocab)


def test_an_edit_that_nobody_sees_is_named():
    def spoil(model, honest, tokens):
        return honest(torch.cat([tokens[:, :-1], 0 * tokens[:, -1:]], dim=1))

    assert shown(spoil=spoil)["unseen"] == [edited_positions(LONG)[-1]] == [LONG.seq_len - 1]


def test_sequences_that_are_mixed_change_each_other():
    assert shown(spoil=lambda model, honest, tokens: honest(tokens) + 0.1 * honest(tokens).flip(0))["others"] > 0


@pytest.mark.parametrize("seq_len", [2, 65, 320])
def test_edits_lie_inside_the_sequence_and_the_last_token_is_among_them(seq_len):
    positions = edited_positions(replace(LONG, seq_len=seq_len))
    assert positions == sorted(set(positions))
    assert positions[0] > 0
    assert positions[-1] < seq_len
