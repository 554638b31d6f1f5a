"""Judge what an attention layer did in a recorded step: each branch, the choice of blocks, the output, the gradients.

The reference gets the run's own input, weights, choice and gradient of the output, at the run's own length. So an error
is of this layer and not inherited, and the gradients are those of the step: of x in the sampled rows, which holds the
side of the queries and that of the keys, from all rows that see them; of every parameter, from all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from nsa_lib.subject.attention.arithmetic import EXACT, Arithmetic
from nsa_lib.subject.attention.reference_gradients import gradients
from nsa_lib.subject.attention.reference_rows import Layer, rows
from nsa_lib.subject.config import NSAConfig
from nsa_lib.worker.attestation.choice import ChoiceFound, judge_choice, unpacked
from nsa_lib.worker.attestation.coverage import ATTENTION, BACKWARD, CHOICE, Part
from nsa_lib.worker.attestation.recorder import BY_UNION
from nsa_lib.worker.attestation.records import LayerRecord
from nsa_lib.worker.attestation.rounding import Comparison, compare
from nsa_lib.worker.attestation.sample import Sample
from nsa_lib.worker.selection_health import SelectionHealth, near_ties, selection_health

FEWEST_ENTRIES = 16
"""Rows of a weight that belong to a head, from which on each head is judged alone."""


@dataclass
class LayerFound:
    """What was found of a layer."""

    layer: int
    """From 0."""
    parts: dict[str, Comparison] = field(default_factory=dict)
    """`cmp`, `slc`, `win`, `branch_gates`, `output`; of compiled code also `recomputed`."""
    gradients: dict[str, Comparison] = field(default_factory=dict)
    """`d_x`, `d_<parameter>`."""
    choice: ChoiceFound | None = None
    health: SelectionHealth | None = None
    """What its selection is worth: shown, not judged."""
    not_compared: list[Part] = field(default_factory=list)
    passes: int = 0
    """Times that forward ran in the step: 2 with checkpointing."""
    recomputed_differently: int = 0
    """Judged rows of the output that had other bits in the last pass. Compiled code may round it otherwise: there the
    reference judges it."""
    input_shape: tuple[int, ...] | None = None
    """Of an input that is not that of the step; nothing is compared then."""

    @property
    def coverage(self) -> list[Part]:
        """What was compared, and what could not be."""
        found = [Part(ATTENTION, name, self.layer + 1, rows=part.rows) for name, part in self.parts.items()]
        found += [Part(BACKWARD, name, self.layer + 1) for name in self.gradients]
        found += [] if self.choice is None else [Part(CHOICE, "choice", self.layer + 1, rows=self.choice.rows)]
        return found + self.not_compared

    def leave_out(self, why: str, **parts: str) -> None:
        """Note parts that could not be compared; each is named by its area."""
        self.not_compared += [Part(area, part, self.layer + 1, why) for area, part in parts.items()]


@dataclass(frozen=True)
class _Trial:
    """A layer's record, and what it is held against."""

    record: LayerRecord
    sample: Sample
    blocks: Tensor | None
    """What it selected, [B, G, T, n_sel]; None without the selected branch."""
    exact: Layer
    modelled: Layer
    """The layer in the arithmetic of the run."""
    alive: Callable[[], None]


def judge_layer(
    index: int,
    record: LayerRecord,
    sample: Sample,
    *,
    device: str | torch.device = "cpu",
    alive: Callable[[], None] = lambda: None,
) -> LayerFound:
    """Judge a recorded layer on a device.

    Args:
        index: of the layer.
        record: what it did.
        sample: the rows that were recorded.
        device: where the reference computes.
        alive: called now and then, for whoever watches.
    """
    if record.x is None:
        return not_judged(index, "it was not called")
    found = LayerFound(index, passes=record.passes)
    if record.x.shape[:2] != (sample.batch, sample.length):
        found.input_shape = tuple(record.x.shape)
        return found
    if record.recomputed is not None and not record.is_compiled:
        found.recomputed_differently = int((record.recomputed != record.output).any(dim=-1).sum())
    blocks, ran = None, "slc" in record.config.branches
    if ran and (blocks := unpacked(record.shown, record.config)) is None:
        return not_judged(index, "the blocks that it selected were not shown", passes=record.passes)
    blocks = None if blocks is None else blocks.to(device)
    exact, modelled = (
        Layer.of(record.x, record.parameters, record.config, arithmetic=arithmetic, device=device)
        for arithmetic in (EXACT, Arithmetic.of_run(record.x.dtype))
    )
    trial = _Trial(record, sample, blocks, exact, modelled, alive)
    _judge_rows(found, trial)
    if index in sample.gradient_layers:
        _judge_gradients(found, trial)
    _leave_out_what_tells_nothing(found)
    return found


def not_judged(index: int, why: str, *, passes: int = 0) -> LayerFound:
    """Return what is found of a layer, from 0, of which nothing can be compared."""
    found = LayerFound(index, passes=passes)
    found.leave_out(why, **{ATTENTION: "output", CHOICE: "choice", BACKWARD: "d_x"})
    return found


def _leave_out_what_tells_nothing(found: LayerFound) -> None:
    for area, parts in ((ATTENTION, found.parts), (BACKWARD, found.gradients)):
        for name in [name for name, part in parts.items() if not part.telling and part.ok]:
            del parts[name]
            found.leave_out("smaller than what rounding leaves", **{area: name})


def _judge_rows(found: LayerFound, trial: _Trial) -> None:
    record, sample, c = trial.record, trial.sample, trial.record.config
    positions = torch.tensor(sample.positions)
    chosen = None if trial.blocks is None else trial.blocks[:, :, positions]
    right, rounded = (rows(layer, positions, chosen, alive=trial.alive) for layer in (trial.exact, trial.modelled))
    judged = partial(compare, dtype=record.x.dtype, terms=c.dim + sample.length, positions=sample.positions)
    pairs = {name: (right.branches[name], rounded.branches[name]) for name in c.branches}
    pairs["branch_gates"] = right.branch_gates, rounded.branch_gates
    for name, pair in pairs.items():
        if name in record.shown:
            found.parts[name] = judged(*(_by_row(x) for x in (record.shown[name], *pair)))
        else:
            found.leave_out("the layer did not show it", attention=name)
    found.parts["output"] = judged(record.output, right.output, rounded.output)
    if record.recomputed is not None and record.is_compiled:
        found.parts["recomputed"] = judged(record.recomputed, right.output, rounded.output)
    if chosen is not None:
        found.choice = judge_choice(chosen, right.scores, rounded.scores, sample.positions, c, record.backend)
        found.health = selection_health(
            trial.blocks, l_sel=c.l_sel, w=c.w, gates=record.shown.get("branch_gates"),
            gate_names=c.branches, ties=near_ties(right.scores, positions, c), by_union=record.shown.get(BY_UNION),
        )  # fmt: skip


def _judge_gradients(found: LayerFound, trial: _Trial) -> None:
    record, sample = trial.record, trial.sample
    if record.d_output is None:
        found.leave_out("no gradient reached the output", backward="d_x")
        return
    (d_x, right), (d_x_rounded, rounded) = (
        gradients(layer, trial.blocks, record.d_output, alive=trial.alive) for layer in (trial.exact, trial.modelled)
    )
    c, positions = record.config, torch.tensor(sample.positions, device=d_x.device)
    judged = partial(compare, dtype=record.x.dtype, terms=c.dim + sample.length * (1 + sample.batch))
    if record.d_x is None:
        found.leave_out("no gradient reached the input", backward="d_x")
    else:
        pair = (x[:, positions] for x in (d_x, d_x_rounded))
        found.gradients["d_x"] = judged(record.d_x, *pair, positions=sample.positions)
    for name, gradient in record.gradients.items():
        gradient = torch.zeros_like(right[name]) if gradient is None else gradient
        found.gradients[f"d_{name}"] = judged(*(_by_head(name, x, c) for x in (gradient, right[name], rounded[name])))


def _by_head(name: str, gradient: Tensor, config: NSAConfig) -> Tensor:
    """Return the gradient of a parameter, a head a row; one row for what heads share or have few entries of.

    Inputs of deep layers have a common mean, and along it the errors of all tokens add up to one number a row of the
    weight: too few to be held against another draw of it.
    """
    c, kind = config, name.partition("_")[0].partition(".")[0]
    heads, width = {
        "query": (c.heads, c.d_k),
        "key": (c.groups, c.d_k),
        "value": (c.groups, c.d_v),
        "out": (c.heads, c.d_v),
    }.get(kind, (1, 0))
    if width < FEWEST_ENTRIES:
        return gradient.reshape(1, -1)
    return (gradient.T if kind == "out" else gradient).reshape(heads, -1)


def _by_row(x: Tensor) -> Tensor:
    """[B, H, R, width] -> [B, R, H * width]."""
    return x.transpose(1, 2).flatten(2)
