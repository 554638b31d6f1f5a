"""Judge what a model does around its attention: embedding, residuals, norms and MLPs, forward and backward.

All of it is row by row, so the reference is short. As with a layer (`layer`), each piece is computed again from what it
was given in the step: an error is its own and not inherited. What one block returns must be what the next one gets, to
the bit, forward and backward: between blocks there is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nsa_lib.contract.figures import counted
from nsa_lib.subject.attention.arithmetic import EXACT, Arithmetic
from nsa_lib.worker.attestation.blocks_recording import BlocksRecord
from nsa_lib.worker.attestation.coverage import BLOCKS, Part
from nsa_lib.worker.attestation.rounding import Comparison, banded, compare
from nsa_lib.worker.attestation.sums import added

CHUNK_TOKENS = 4096
"""Tokens whose MLP is computed at a time."""

LAYER_NORM_EPS = 1e-5


@dataclass
class BlocksFound:
    """What was found of the blocks of a step."""

    parts: dict[str, Comparison] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    """Rows that are other bits behind a block than in front of the next, by name."""
    coverage: list[Part] = field(default_factory=list)
    """What was compared, and what could not be."""

    @property
    def wrong(self) -> dict[str, str]:
        """What is wrong, by name, in a sentence."""
        found = {name: part.said for name, part in self.parts.items() if not part.ok}
        return found | {name: f"other bits in {counted(rows, 'row')}" for name, rows in self.changed.items() if rows}


def judge_blocks(
    record: BlocksRecord, *, device: str | torch.device = "cpu", alive: Callable[[], None] = lambda: None
) -> BlocksFound:
    """Judge the recorded blocks of a step on a device."""
    found = BlocksFound()
    if record.why_not is not None:
        found.coverage.append(Part(BLOCKS, "block", why_not=record.why_not))
        return found
    for index, kept in record.kept.items():
        missing = {"x", "attended", "attention", "output", "passed", "d_output", "d_passed", "d_attended"} - set(kept)
        missing |= {"d_attention"} - set(kept)
        if missing:
            why = f"{', '.join(sorted(missing))} was not seen"
            found.coverage.append(Part(BLOCKS, "block", index + 1, why))
            continue
        _judge_block(found, index, record, device, alive)
        found.coverage.append(Part(BLOCKS, "block", index + 1))
    if record.kept and {"x", "output", "d_x", "d_output"} <= set(record.hidden):
        _judge_ends(found, record, device)
        found.coverage.append(Part(BLOCKS, "ends"))
    return found


def _judge_block(
    found: BlocksFound, index: int, record: BlocksRecord, device: str | torch.device, alive: Callable[[], None]
) -> None:
    kept, name, prefix = record.kept[index], f"block {index + 1}", f"blocks.{index}."
    weights = {n.removeprefix(prefix): p for n, p in record.parameters.items() if n.startswith(prefix)}
    right, rounded = (_block(kept, weights, a, device, alive) for a in _arithmetics(kept["x"].dtype))
    width = len(weights["mlp.0.weight"])
    for part in ("attended", "output", "d_attention", "d_x"):
        if part in kept:  # the embedding's gradient stands for the first block's d_x where that is no leaf
            compared = compare(kept[part], right[part], rounded[part], dtype=kept["x"].dtype, terms=width, pooled=True)
            found.parts[f"{name} {part}"] = compared
    for weight in weights:
        gradient = record.gradients.get(prefix + weight)
        gradient = torch.zeros_like(weights[weight]) if gradient is None else gradient
        bands = (banded(x) for x in (gradient, right[weight], rounded[weight]))
        terms = width + kept["x"][..., 0].numel()
        found.parts[f"{name} d_{weight}"] = compare(*bands, dtype=gradient.dtype, terms=terms)
    for what in ("", "d_"):
        behind, before = kept[f"{what}output"], kept[f"{what}passed"]
        rows = _rows_that_differ(behind, before)
        found.changed[f"{name} to the next, {'backward' if what else 'forward'}"] = rows


def _rows_that_differ(a: Tensor, b: Tensor) -> int:
    return a[..., 0].numel() if a.shape != b.shape else int((a != b).any(dim=-1).sum())


def _arithmetics(dtype: torch.dtype) -> tuple[Arithmetic, Arithmetic]:
    return EXACT, Arithmetic.of_run(dtype)


def _block(
    kept: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    arithmetic: Arithmetic,
    device: str | torch.device,
    alive: Callable[[], None],
) -> dict[str, Tensor]:
    """Return what a block makes of its input and its attention, and the gradients of both and of its weights."""
    keep, to = arithmetic.keep, {"device": device, "dtype": arithmetic.wide}
    leaves = {n: w.to(**to, copy=True).requires_grad_() for n, w in weights.items() if n.startswith("mlp")}
    first, second = (weights[f"norm_{which}.weight"].to(**to) for which in ("attention", "mlp"))
    made: dict[str, list[Tensor]] = {}
    names = ("x", "attention", "d_output", "d_attended")
    for rows in zip(*(kept[name].flatten(0, 1).split(CHUNK_TOKENS) for name in names), strict=True):
        alive()
        x, attention, d_output, d_attended = (part.to(**to) for part in rows)
        x = x.clone().requires_grad_()
        attended, x_scaled = layer_norm(x, first, keep)
        middle = keep(x.detach() + attention).requires_grad_()
        normed, middle_scaled = layer_norm(middle, second, keep)
        normed.retain_grad()
        inner = keep(normed @ leaves["mlp.0.weight"].T)
        output = keep(middle + keep(keep(inner * inner.sigmoid()) @ leaves["mlp.2.weight"].T))
        torch.autograd.backward([output, attended], [d_output, d_attended])
        found = {
            "attended": attended,
            "output": output,
            "d_attention": middle.grad,
            "d_x": keep(middle.grad + x.grad),
            "norm_attention.weight": d_attended * x_scaled,
            "norm_mlp.weight": normed.grad * middle_scaled,
        }
        for name, value in found.items():
            made.setdefault(name, []).append(value.detach())
    whole = {name: torch.cat(values) for name, values in made.items()}
    sums = {name: keep(leaf.grad) for name, leaf in leaves.items()}
    one = torch.zeros(len(whole["output"]), dtype=torch.int64, device=device)
    sums |= {n: added(whole.pop(n), one, 1, arithmetic)[0] for n in ("norm_attention.weight", "norm_mlp.weight")}
    return {name: value.unflatten(0, kept["x"].shape[:2]) for name, value in whole.items()} | sums


def layer_norm(x: Tensor, weight: Tensor, keep: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return s * weight and s = (x - mean) / sqrt(variance + eps), over the last dimension (Ba et al., 2016).

    Mean and deviation may be kept in the run's dtype for backward, as torch does on a CPU.
    """
    centred = x - keep(x.mean(dim=-1, keepdim=True))
    scaled = centred * keep((centred.square().mean(dim=-1, keepdim=True) + LAYER_NORM_EPS).rsqrt())
    return keep(scaled * weight), scaled.detach()


def _judge_ends(found: BlocksFound, record: BlocksRecord, device: str | torch.device) -> None:
    """Judge the final norm, and the embedding where the first block was recorded."""
    kept, dtype = record.hidden, record.hidden["x"].dtype
    made = []
    for arithmetic in _arithmetics(dtype):
        to = {"device": device, "dtype": arithmetic.wide}
        x, d_output = kept["x"].to(**to, copy=True).requires_grad_(), kept["d_output"].to(**to)
        output, scaled = layer_norm(x, record.parameters["norm.weight"].to(**to), arithmetic.keep)
        output.backward(d_output)
        rows = (d_output * scaled).flatten(0, 1)
        d_weight = added(rows, torch.zeros(len(rows), dtype=torch.int64, device=device), 1, arithmetic)
        made.append((output.detach(), arithmetic.keep(x.grad), d_weight))
    gradient = record.gradients.get("norm.weight", torch.zeros_like(record.parameters["norm.weight"]))
    terms = len(gradient) + record.tokens.numel()
    for name, mine, right, rounded in zip(
        ("final norm", "final norm d_x", "final norm d_weight"), (kept["output"], kept["d_x"], gradient[None]), *made,
        strict=True,
    ):  # fmt: skip
        found.parts[name] = compare(mine, right, rounded, dtype=dtype, terms=terms, pooled=True)
    first = record.kept.get(0, {})
    if "x" in first:
        embedded = record.parameters["embedding.weight"][record.tokens]
        found.changed["embedding"] = _rows_that_differ(first["x"], embedded)
    if "d_x" in first and (gradient := record.gradients.get("embedding.weight")) is not None:
        rows, places = first["d_x"].flatten(0, 1), record.tokens.flatten().to(device)
        sums = (added(rows.to(device, a.wide), places, len(gradient), a) for a in _arithmetics(dtype))
        found.parts["embedding d_weight"] = compare(gradient, *sums, dtype=dtype, terms=terms)
