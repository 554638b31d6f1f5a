"""Tokens: the same in every run with one seed, and really those of the file."""

import hashlib
from dataclasses import replace
from itertools import islice

import pytest
import torch

from nsa_lib.worker.data import batches, data_sha256
from tests.subject.test_config import CASE


def take(case, count):
    return list(islice(batches(case), count))


def test_synthetic_data_is_one_seeded_batch_repeated():
    case = replace(CASE, batch=2)
    first, second = take(case, 2)
    assert torch.equal(first, second)
    assert first.shape == (2, case.seq_len + 1)
    assert first.dtype == torch.int64
    assert first.min() >= 0
    assert first.max() < case.model.vocab
    assert torch.equal(first, take(case, 1)[0])
    assert not torch.equal(first, take(replace(case, seed=1), 1)[0])


def test_a_text_is_read_as_bytes_in_seeded_windows(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Größe zählt: the quick brown fox jumps over the lazy dog. " * 5)
    case = replace(CASE, data=str(path), model=replace(CASE.model, vocab=256))
    windows = take(case, 5)
    assert all(bytes(window[0].tolist()) in path.read_bytes() for window in windows)
    assert len({tuple(window[0].tolist()) for window in windows}) > 1
    assert all(torch.equal(a, b) for a, b in zip(windows, take(case, 5), strict=True))


def test_the_shortest_text_is_one_sequence(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(65)))
    case = replace(CASE, data=str(path), model=replace(CASE.model, vocab=256))
    assert take(case, 1)[0].tolist() == [list(range(65))]
    path.write_bytes(bytes(range(64)))
    with pytest.raises(ValueError, match="64 bytes, a sequence needs 65"):
        batches(case)


def test_a_text_is_known_by_its_sha256_and_synthetic_data_by_that_of_its_batch(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(256)) * 5000)  # more than is read at a time
    case = replace(CASE, data=str(path), model=replace(CASE.model, vocab=256))
    assert data_sha256(case) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len({data_sha256(CASE), data_sha256(CASE), data_sha256(replace(CASE, seed=1))}) == 2
