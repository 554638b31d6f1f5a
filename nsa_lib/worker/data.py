"""Tokens to train on: one seeded batch, repeated, as in the checklist's script; or the bytes of a text file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from nsa_lib.contract.case import CaseConfig


def batches(case: CaseConfig) -> Iterator[torch.Tensor]:
    """Yield batches of tokens without end, [batch, seq_len + 1] int64 on the CPU, the same in every run with one seed.

    Raises ValueError if the text file is shorter than one sequence.
    """
    generator = torch.Generator().manual_seed(case.seed)
    if case.data == "synthetic":
        return _repeated(torch.randint(case.model.vocab, (case.batch, case.seq_len + 1), generator=generator))
    text = torch.frombuffer(bytearray(Path(case.data).read_bytes()), dtype=torch.uint8)
    if len(text) < case.seq_len + 1:
        raise ValueError(f"data={case.data}: {len(text)} bytes, a sequence needs {case.seq_len + 1}")
    return _windows(text, case, generator)


def _repeated(tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    while True:
        yield tokens


def _windows(text: torch.Tensor, case: CaseConfig, generator: torch.Generator) -> Iterator[torch.Tensor]:
    while True:
        starts = torch.randint(len(text) - case.seq_len, (case.batch, 1), generator=generator)
        yield text[starts + torch.arange(case.seq_len + 1)].long()


def data_sha256(case: CaseConfig) -> str:
    """Return the sha256 of what a case trains on: its text file, or its one batch of tokens."""
    if case.data == "synthetic":
        return hashlib.sha256(next(batches(case)).numpy().tobytes()).hexdigest()
    digest = hashlib.sha256()  # hashlib.file_digest is not in Python 3.10
    with Path(case.data).open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
