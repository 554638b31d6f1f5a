"""The tokens of a step, drawn again: those of the loop are the same, and others are told how they differ."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from nsa_lib.worker.attestation.tokens import asked_tokens, wrong_tokens
from nsa_lib.worker.data import batches
from tests.subject.test_config import CASE

TWO = replace(CASE, batch=2)


@pytest.fixture
def text(tmp_path):
    """A case that trains on a text file."""
    path = tmp_path / "text.txt"
    path.write_text("Größe zählt: the quick brown fox jumps over the lazy dog. " * 5)
    return replace(TWO, data=str(path), model=replace(CASE.model, vocab=256))


def test_the_loop_trains_on_what_was_asked_for(text):
    for case in (TWO, text, replace(TWO, seed=3)):
        taken = dict(enumerate(islice(batches(case), 7), start=1))
        for step, tokens in asked_tokens(case, [1, 4, 7]).items():
            assert wrong_tokens(taken[step], tokens) == {}
    assert asked_tokens(text, []) == {}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda tokens: tokens[:, :33], "their shape is [2, 33], asked for is [2, 65]"),
        (lambda tokens: tokens[:1], "their shape is [1, 65], asked for is [2, 65]"),
        (lambda tokens: tokens[:1].expand(2, -1), "of 130 are not those asked for"),
        (lambda tokens: tokens % 2, "of 130 are not those asked for"),
        (lambda tokens: torch.cat([tokens[:, :-1], tokens[:, -1:] - 1], dim=1), "2 of 130 are not"),
    ],
    ids=["half", "one", "twice", "two-tokens", "last"],
)
def test_others_are_told(spoil, said):
    tokens = next(batches(TWO))
    assert said in wrong_tokens(spoil(tokens), tokens)["tokens"]


def test_a_window_that_is_read_in_every_step_is_another_from_the_second_on(text):
    stuck, asked = next(batches(text)), asked_tokens(text, [1, 2])
    assert wrong_tokens(stuck, asked[1]) == {}
    assert "are not those asked for" in wrong_tokens(stuck, asked[2])["tokens"]
