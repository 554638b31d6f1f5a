"""Train on text, then keep what the model selects: `python -m tests.bench_selection [--limit-s N] [--out FILE]`."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs import environment
from nsa_lib.runs.provenance import provenance
from nsa_lib.runs.training_case import training_case
from nsa_lib.subject.config import FUSED
from nsa_lib.subject.model import TinyLM
from nsa_lib.workbook.questions import QUESTIONS
from nsa_lib.worker import data
from tests.bench_selection.captured import FILE, pack
from tests.bench_selection.layers import layers
from tests.bench_selection.page import page
from tests.bench_selection.text import Text, text
from tests.bench_selection.train import train
from tests.made import resolved

LENGTH = 8192
TOY_LENGTH = 256
RATE = 6e-4
BYTES = 256
MOST_TEXT = 200 * 2**20
SEQUENCES = 4
"""Of text held out, that are looked at; the first one's selection is kept."""


def plan(*, dry: bool) -> CaseConfig:
    """Return the training: of the checklist's model, or of a tiny one on a CPU."""
    case = training_case(resolved("smoke", {}, profile="laptop" if dry else "checklist"))
    if dry:
        sizes = replace(case.model.nsa, l_sel=16, n_sel=4, w=48, l=8, d=8)
        model = replace(case.model, layers=2, vocab=BYTES, nsa=sizes)
        return replace(case, model=model, seq_len=TOY_LENGTH, lr=RATE, grad_checkpointing=False)
    model = replace(case.model, vocab=BYTES, backend=FUSED)
    return replace(case, model=model, seq_len=LENGTH, lr=RATE, grad_checkpointing=False)


def figures(case: CaseConfig, source: Text, *, limit_s: float) -> dict:
    """Train, look at every layer on text that was held out, and return all that is kept."""
    torch.manual_seed(case.seed)
    with torch.device(case.device):
        model = TinyLM(case.model, grad_checkpointing=case.grad_checkpointing)
    model.to(getattr(torch, case.dtype))
    with TemporaryDirectory() as folder:
        file = Path(folder, "text")
        file.write_bytes(source.trained)
        training = train(model, data.batches(replace(case, data=str(file))), case, limit_s=limit_s)
    found, chosen = layers(model, looked_at(source.held_out, case.seq_len).to(case.device))
    kept = typical([layer["overlap"] for layer in found])
    return {
        "schema": 1,
        "command": shlex.join(["python", "-m", "tests.bench_selection", *sys.argv[1:]]),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": {**environment.torch_facts(), **environment.machine_facts(), **provenance(QUESTIONS)},
        "training": {
            "case": json.loads(case.to_json()),
            "text": {
                "files": source.files,
                "bytes": len(source.trained),
                "sha256": hashlib.sha256(source.trained).hexdigest(),
            },
            "seconds": training.seconds,
            "steps": len(training.losses),
            "curve": training.curve,
        },
        "sequences": SEQUENCES,
        "layers": found,
        "captured": {"layer": kept + 1, **pack(chosen[kept][0], case.model.nsa.l_sel)},
    }


def looked_at(held_out: bytes, length: int) -> torch.Tensor:
    """Return SEQUENCES sequences, evenly spread over what was held out, int64 [SEQUENCES, T]."""
    whole = torch.frombuffer(bytearray(held_out), dtype=torch.uint8).long()
    starts = torch.linspace(0, len(whole) - length, SEQUENCES).long()
    return whole[starts[:, None] + torch.arange(length)]


def typical(overlaps: Sequence[float]) -> int:
    """Return the layer whose neighbours agree as in the median layer."""
    return sorted(range(len(overlaps)), key=lambda layer: overlaps[layer])[len(overlaps) // 2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, look, and write the figures as JSON with a table beside them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_selection", description=__doc__)
    parser.add_argument("--limit-s", type=float, default=600.0, help="how long to train")
    parser.add_argument("--out", type=Path, default=FILE, help="where the figures go; the table lies beside them")
    parser.add_argument("--dry", action="store_true", help="the whole way with a tiny model on a CPU")
    given = parser.parse_args(arguments)
    if not given.dry and not torch.cuda.is_available():
        parser.exit(1, "bench-selection: torch finds no CUDA device; --dry tries the way itself on a CPU\n")
    found = figures(plan(dry=given.dry), text(most_bytes=MOST_TEXT), limit_s=given.limit_s)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1))
    given.out.with_suffix(".md").write_text(page(found))
    print(page(found), given.out, sep="\n")


if __name__ == "__main__":
    main()
