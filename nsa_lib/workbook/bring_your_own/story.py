"""An attention of one's own, written to a file and judged; then the same with one mistake in it, and that is found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nsa_lib.contract.files import write_text
from nsa_lib.report.table import Cell, Table
from nsa_lib.report.tables import verdict_cell
from nsa_lib.runs import environment
from nsa_lib.runs.runner import execute
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.bring_your_own.parameters import REQUEST
from nsa_lib.workbook.questions import plan
from nsa_lib.workbook.run import Run, record

MASK = "seen = rows[:, None] >= rows[None]"

MISTAKE = "seen = rows[:, None] + (rows[:, None] > 100) >= rows[None]"
"""Beyond 100 tokens each row sees the next one too: a short test finds nothing."""

SOURCE = f'''import torch
from torch import nn


class MyAttention(nn.Module):
    """Causal attention, called with those sizes of a run that it names."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        rows = torch.arange(x.shape[1], device=x.device)
        {MASK}
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
'''

SIZES = {"profile": "laptop", "dim": 64, "heads": 4, "groups": 4, "d_k": 16, "d_v": 16, "layers": 1}
"""Small, so that the story takes a minute; a real one takes the sizes of the run."""


def asked(namespace: Mapping[str, object]) -> dict[str, object]:
    """Return the story's own parameters, read strictly. Raises ConfigError for one that is not accepted."""
    return REQUEST.read(namespace)


def written(parameters: Mapping[str, object], *, mistake: bool = False) -> Path:
    """Write the attention to a file, with or without the mistake, show it, and return the file."""
    folder = environment.out_dir_of(parameters["out_dir"]) / "bring_your_own"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("my_attention_with_a_mistake.py" if mistake else "my_attention.py")
    write_text(path, SOURCE.replace(MASK, MISTAKE) if mistake else SOURCE)
    print(path.read_text())
    return path


def judged(parameters: Mapping[str, object], path: Path) -> Run:
    """Judge the attention in a file by a preflight, and return its run."""
    given = {**SIZES, "seq_len": parameters["seq_len"], "out_dir": parameters["out_dir"], "tag": path.stem[:40]}
    return record(execute(plan("preflight", {**given, "attention": f"{path}:MyAttention"})))


def told(run: Run) -> Table:
    """Tabulate the verdict over a run of the story, and what stands in its way."""
    rows = [(verdict_cell(run.verdict), Cell(reason)) for reason in run.summary["reasons"] or [run.summary["headline"]]]
    return Table("Verdict", ("verdict", "why"), rows)


def require_found(honest: Run, planted: Run) -> None:
    """Raise ConfigError unless the honest attention is GO, and `future` finds the planted mistake."""
    found = {gate["name"]: gate["outcome"] for gate in planted.summary["gates"]}
    if (honest.verdict, planted.verdict, found.get("future")) != ("GO", "NO-GO", "FAIL"):
        outcome = f"{honest.verdict} without the mistake, {planted.verdict} with it, future {found.get('future')}"
        raise ConfigError(f"the story did not end as it should: {outcome}")
