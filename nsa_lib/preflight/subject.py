"""Checks of the attention as it stands: against the float64 reference, in what it may see, in its gradients.

The layer has the run's own head widths, blocks, phi, dtype and device, and as many query heads to a group; fewer groups
and a sequence just long enough that scores decide, so that the loops of the reference take seconds.

B batch, T tokens, H heads, G groups, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch

from nsa_lib import budget, profiling, training
from nsa_lib.attention import NSAttention, block_scores, reference, select_blocks, selected_attention
from nsa_lib.checks import with_gradients
from nsa_lib.config import FUSED, CaseConfig, ModelConfig, NSAConfig
from nsa_lib.model import TinyLM
from nsa_lib.preflight.finding import Finding, at_most, within_budget

GROUPS = 2
PLAIN = "masked"
"""The backend with which what all plain ones share is looked at."""
SELECTED = 4
"""Blocks that a query reads, at most: one of them is chosen by score."""
LAYERS = 3
VOCAB = 64

GIVEN_AWAY = 1e-4
"""Of a row's best score: how much less a block may have than the one in whose place `fused` chose it. It makes scores
in float32, of logits near 5, and ranks them by 14 leading bits or more."""


def subject_checks(
    case: CaseConfig, facts: dict[str, object], alive: Callable[[], None]
) -> Mapping[str, Callable[[], Finding]]:
    """Return the checks by name."""
    subject = Subject(case)
    checks: dict[str, Callable[[], Finding]] = {}
    for backend in case.backends:
        checks[f"selected_{backend}"] = partial(selected_errors, subject, backend)
        checks[f"attention_{backend}"] = partial(whole_errors, subject, backend)
        checks[f"future_{backend}"] = partial(future_influence, subject, backend)
        checks[f"past_slc_{backend}"] = partial(past_influence, subject, "slc", backend)
        checks[f"route_{backend}"] = partial(executed_route, subject, backend)
    shared = {"": PLAIN, f"_{FUSED}": FUSED} if FUSED in case.backends else {"": PLAIN}
    for own, backend in shared.items():
        checks[f"selection{own}"] = partial(fused_selection if own else selection_rule, subject)
        for branch in ("cmp", "win"):
            checks[f"past_{branch}{own}"] = partial(past_influence, subject, branch, backend)
    others = {
        "rope_distance": rope_distance,
        "gradients": gradients_reach,
        "checkpointing": checkpointing_agrees,
    }
    return checks | {name: partial(check, subject) for name, check in others.items()}


def judged_sizes(config: NSAConfig) -> tuple[NSAConfig, int]:
    """Return the sizes of the layer that is judged, and a length at which scores decide: no multiple of l_sel or d."""
    c, groups = config, min(config.groups, GROUPS)
    heads = groups * (c.heads // c.groups)
    n_sel = min(c.n_sel, SELECTED)
    small = replace(c, dim=c.dim * heads // c.heads, heads=heads, groups=groups, n_sel=n_sel, w=min(c.w, 2 * c.l_sel))
    return small, (n_sel + 2) * c.l_sel - c.l_sel // 2 - 3


class Subject:
    """The layer that is judged, its input, and what the reference makes of it."""

    def __init__(self, case: CaseConfig):
        self.case = case
        self.config, self.length = judged_sizes(case.model.nsa)
        self.dtype, self.device = getattr(torch, case.dtype), case.device
        self._generator = torch.Generator().manual_seed(case.seed)
        self._exact: list[tuple[torch.Tensor, tuple[torch.Tensor, ...]]] = []

    def random(self, *shape: int) -> torch.Tensor:
        """Return normal numbers in the case's dtype and on its device."""
        return torch.randn(shape, generator=self._generator).to(self.dtype).to(self.device)

    def layer(self, backend: str, branches: Sequence[str] | None = None) -> NSAttention:
        """Return a layer; the same weights each time."""
        config = replace(self.config, branches=tuple(branches)) if branches else self.config
        torch.manual_seed(self.case.seed)
        return NSAttention(config, backend).to(self.dtype).to(self.device)

    def model(self, *, layers: int, backend: str) -> TinyLM:
        """Return a model of such layers; the same weights each time."""
        torch.manual_seed(self.case.seed)
        config = ModelConfig(nsa=self.config, layers=layers, vocab=VOCAB, backend=backend)
        return TinyLM(config).to(self.dtype).to(self.device)

    def tokens(self, length: int) -> torch.Tensor:
        """Return random tokens, [1, length]."""
        return torch.randint(VOCAB, (1, length), generator=self._generator).to(self.device)

    @cached_property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """x and the gradient of the output, [1, T, dim]."""
        shape = (1, self.length, self.config.dim)
        return self.random(*shape), self.random(*shape)

    def exact(self, backend: str) -> tuple[torch.Tensor, ...]:
        """Return the reference's output, and its gradients by x and each parameter, for a layer's own blocks.

        The plain backends select the same, so it is computed once for them.
        """
        layer = self.layer(backend)
        blocks = layer.select(self.inputs[0]).cpu()
        found = next((exact for known, exact in self._exact if torch.equal(known, blocks)), None)
        if found is None:
            found = self._judged(layer, blocks)
            self._exact.append((blocks, found))
        return found

    def _judged(self, layer: NSAttention, blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, cotangent = (tensor.cpu() for tensor in self.inputs)
        names = [name for name, _ in layer.named_parameters()]

        def judge(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
            return reference.nsa(x, dict(zip(names, values)), layer.config, blocks)

        return with_gradients(judge, [t.detach().cpu().double() for t in (x, *layer.parameters())], cotangent.double())

    @cached_property
    def selected(self) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Of the selected branch alone: q, k, v; random blocks; the output's gradient; what the reference makes."""
        c = self.config
        q, k = (self.random(1, heads, self.length, c.d_k) for heads in (c.heads, c.groups))
        v, cotangent = (self.random(1, heads, self.length, c.d_v) for heads in (c.groups, c.heads))
        scores = torch.rand(1, c.groups, self.length, -(-self.length // c.l_sel), generator=self._generator)
        blocks = reference.select_blocks(scores, l_sel=c.l_sel, n_sel=c.n_sel)

        def judge(*tensors: torch.Tensor) -> torch.Tensor:
            return reference.selected_attention(*tensors, blocks, l_sel=c.l_sel)

        exact = with_gradients(judge, [t.cpu().double() for t in (q, k, v)], cotangent.cpu().double())
        return (q, k, v), blocks.to(self.device), cotangent, exact


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return a relative error: the larger of that of the norm and that of the largest entry."""
    found, exact = found.detach().cpu().double(), exact.detach().cpu().double()
    difference = found - exact
    if not difference.any():
        return 0.0
    norms = difference.norm() / exact.norm(), difference.abs().max() / exact.abs().max()
    return float(torch.stack(norms).max())  # NaN stays NaN


def largest(errors: Sequence[float]) -> float:
    """Return the largest of some errors, NaN if one is: `max` passes a NaN over that is not the first."""
    return torch.tensor(errors, dtype=torch.float64).max().item()


def selected_errors(subject: Subject, backend: str) -> Finding:
    """Hold one backend's output and gradients against the reference, on the same blocks."""
    tensors, blocks, cotangent, exact = subject.selected
    c = subject.config

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return selected_attention(*tensors, blocks, l_sel=c.l_sel, backend=backend)

    found = with_gradients(run, tensors, cotangent)
    allowed = budget.attention(tensors[0].cpu(), tensors[1].cpu(), keys=c.n_sel * c.l_sel)
    names = ("output", "dq", "dk", "dv")
    errors = {name: relative_error(mine, true) for name, mine, true in zip(names, found, exact)}
    return within_budget(errors, dict.fromkeys(names, allowed.gradient) | {"output": allowed.output})


def whole_errors(subject: Subject, backend: str) -> Finding:
    """Hold a whole layer's output, and its gradients by x and each parameter, against the reference."""
    layer, (x, cotangent) = subject.layer(backend), subject.inputs
    x = x.detach().clone().requires_grad_()
    output = layer(x)
    output.backward(cotangent)
    gradients = {"x": x.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}}
    allowed = budget.module(layer.cpu(), x.cpu())
    exact = dict(zip(("output", *gradients), subject.exact(backend)))
    errors = {"output": relative_error(output, exact["output"])}
    for name, gradient in gradients.items():
        found = torch.zeros_like(exact[name]) if gradient is None else gradient
        errors[f"gradient of {name}"] = relative_error(found, exact[name])
    return within_budget(errors, dict.fromkeys(errors, allowed.gradient) | {"output": allowed.output})


def selection_rule(subject: Subject) -> Finding:
    """Hold the choice of blocks against the reference's on the very scores that the layer computed."""
    layer, c = subject.layer(PLAIN), subject.config
    with torch.no_grad():
        p_cmp = layer._p_cmp(layer._project(subject.inputs[0]))
        chosen = layer._select(p_cmp).cpu()
        scores = block_scores(p_cmp, groups=c.groups, l=c.l, d=c.d, l_sel=c.l_sel).cpu()
    exact = reference.block_scores(p_cmp.cpu(), groups=c.groups, l=c.l, d=c.d, l_sel=c.l_sel)
    ranked = reference.select_blocks(scores, l_sel=c.l_sel, n_sel=c.n_sel)
    again = select_blocks(scores, l_sel=c.l_sel, n_sel=c.n_sel)
    wrong = (chosen != ranked).any(-1) | (again != ranked).any(-1)
    # A sum of n numbers, none of them negative, is off by n roundings at worst; each may also be scaled, by l / d.
    limit = (c.heads // c.groups + (c.l_sel + c.l) // c.d) * budget.unit(torch.float32)
    error = relative_error(scores, exact)
    detail = f"scores off by {error:.2g} (budget {limit:.2g}); {wrong.numel()} rows, chosen on identical scores"
    return Finding(int(wrong.sum()), 0, "rows", detail, not wrong.any() and error <= limit)


def fused_selection(subject: Subject) -> Finding:
    """Hold the blocks that `fused` chooses against float64 scores of the layer's own queries and compressed keys.

    Its scores are never written, so a choice is judged by what it gives away: by how much each block that it took has
    less than the best one in that place, over the row's best score. The fixed blocks, the order and the padding must be
    the reference's.
    """
    layer, c = subject.layer(FUSED), subject.config
    with torch.no_grad():
        parts = layer._project(subject.inputs[0])
        q, k_cmp = parts["query"].cpu(), layer._k_cmp(parts).cpu()
        chosen = layer.select(subject.inputs[0]).cpu()
    p_cmp = reference.compressed_probabilities(q, k_cmp, l=c.l, d=c.d)
    scores = reference.block_scores(p_cmp, groups=c.groups, l=c.l, d=c.d, l_sel=c.l_sel)
    given_away = share_given_away(chosen, scores, l_sel=c.l_sel)
    rows, moved = chosen[..., 0].numel(), int((given_away > 0).sum())
    detail = f"of a row's best score; {moved} of {rows} rows chose another block than float64 does"
    return at_most(float(f"{given_away.max():.3g}"), GIVEN_AWAY, "", detail)


def share_given_away(chosen: torch.Tensor, scores: torch.Tensor, *, l_sel: int) -> torch.Tensor:
    """Return by how much each row of blocks misses the best ones, over the row's best score; Inf for a broken rule.

    Args:
        chosen: blocks, int64 [B, G, T, n].
        scores: of all blocks, float64 [B, G, T, N].
        l_sel: tokens in a block.

    Returns:
        float64 [B, G, T].
    """
    n, blocks = chosen.shape[-1], scores.shape[-1]
    best = reference.select_blocks(scores, l_sel=l_sel, n_sel=n)
    own, block = torch.arange(scores.shape[2])[:, None] // l_sel, torch.arange(blocks)
    fixed, future = (block == 0) | (block == own) | (block == own - 1), block > own
    ranked = scores.masked_fill(fixed, math.inf).masked_fill(future, -math.inf)

    def values(rows: torch.Tensor) -> torch.Tensor:
        found = ranked.gather(-1, rows.clamp(0, blocks - 1)).masked_fill(rows < 0, -math.inf)
        return found.sort(dim=-1, descending=True).values

    had, got = values(best), values(chosen)
    highest = scores.masked_fill(fixed | future, 0).amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    missed = torch.where(had == got, 0.0, (had - got) / highest).amax(-1)
    padding = best == -1
    in_order = (chosen.diff(dim=-1) > 0) | padding[..., 1:]
    broken = ((chosen == -1) != padding).any(-1) | ~in_order.all(-1) | (chosen >= blocks).any(-1)
    return missed.masked_fill(broken, math.inf)


def future_influence(subject: Subject, backend: str) -> Finding:
    """Replace all tokens from one on: what the model says of the tokens before must keep its bits.

    `packed` places queries by what others chose, so its sums may be rounded otherwise; that much is allowed.
    """
    model, tokens, c = subject.model(layers=1, backend=backend), subject.tokens(subject.length), subject.config
    allowed = 0.0
    if backend == "packed":
        x = model.blocks[0].norm_attention(model.embedding(tokens))
        allowed = budget.module(model.blocks[0].attention.cpu(), x.cpu()).output
        model.to(subject.device)
    errors, moved = [], True
    with torch.no_grad():
        before = model.hidden(tokens)
        for token in edited_tokens(c, subject.length):
            edited = torch.cat([tokens[:, :token], (tokens[:, token:] + 1) % VOCAB], dim=1)
            after = model.hidden(edited)
            errors.append(relative_error(after[:, :token], before[:, :token]))
            moved &= bool((after[:, token:] != before[:, token:]).any(-1).all())
    worst = largest(errors)
    detail = "largest relative change of a row before the edited tokens"
    if not moved:
        detail = "an edited token did not move its own row"
    return Finding(float(f"{worst:.3g}"), float(f"{allowed:.3g}"), "", detail, worst <= allowed and moved)


def edited_tokens(c: NSAConfig, length: int) -> list[int]:
    """Return tokens to edit: early, around the ends of blocks, and late."""
    tokens = {1, c.d - 1, c.l_sel, c.w + 1, 2 * c.l_sel + c.l // 2, length - c.l_sel, length - 2}
    return sorted(tokens & set(range(1, length)))


def past_influence(subject: Subject, branch: str, backend: str) -> Finding:
    """Edit one token: with one branch alone, it must move every later row that may see it, and none that may not."""
    layer, x, c = subject.layer(backend, (branch,)), subject.inputs[0], subject.config
    expected = moved = wrong = 0
    with torch.no_grad():
        before = layer(x)
        for token in edited_tokens(c, subject.length):
            edited = x.clone()
            edited[:, token] = 4 * subject.random(c.dim)
            changed = (layer(edited) != before).any(-1)[0].cpu()
            may, may_not = who_sees(layer, branch, token, x, edited)
            expected, moved = expected + int(may.sum()), moved + int((changed & may).sum())
            wrong += int((changed & may_not).sum())
    detail = f"{moved:,} of {expected:,} rows that see an edited token moved; {wrong:,} moved that do not see it"
    return Finding(expected - moved + wrong, 0, "rows", detail, expected > 0 and moved == expected and wrong == 0)


def who_sees(
    layer: NSAttention, branch: str, token: int, x: torch.Tensor, edited: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows after a token that see it through a branch, and those after it that do not, [T] each."""
    c, rows = layer.config, torch.arange(x.shape[1])
    later = rows > token
    if branch == "win":
        sees = later & (rows < token + c.w)
    elif branch == "cmp":
        first_block = max(0, -((c.l - 1 - token) // c.d))
        sees = later & (rows >= first_block * c.d + c.l - 1)
    else:
        # Which blocks a row reads hangs on the edited token too: rows that choose otherwise are not looked at.
        chosen, again = layer.select(x).cpu(), layer.select(edited).cpu()
        same = (chosen == again).all(-1).all(1)[0]
        reads = (chosen == token // c.l_sel).any(-1)[0]
        return later & same & reads.all(0), later & same & ~reads.any(0)
    return sees, later & ~sees


def executed_route(subject: Subject, backend: str) -> Finding:
    """Look which backend a layer enters, as the running code names itself."""
    layer, x = subject.layer(backend), subject.inputs[0]
    ran = ", ".join(sorted(profiling.executed_routes(lambda: layer(x)))) or "none"
    return Finding(ran, backend, "", "backend that was entered, beside the one asked for", ran == backend)


def rope_distance(subject: Subject) -> Finding:
    """Give all tokens the same features: q . k of each head must then depend on the distance of two tokens alone."""
    layer, c = subject.layer(subject.case.model.backend), subject.config
    x = subject.random(1, 1, c.dim).expand(1, subject.length, -1)
    with torch.no_grad():
        parts = layer._project(x)
    q, allowed = (
        parts["query"][0].cpu().double(),
        2 * math.sqrt(2) * budget.rotation(subject.dtype, last_position=subject.length, width=c.d_k, base=c.rope_base),
    )
    drifts, turns = [], []
    for name in ("key_slc", "key_win"):
        k = parts[name][0].cpu().double().repeat_interleave(c.heads // c.groups, dim=0)
        logits = q @ k.mT
        size = q.norm(dim=-1).mean(-1) * k.norm(dim=-1).mean(-1) / math.sqrt(c.d_k)
        drift = torch.stack([spread_along_diagonals(head) for head in logits])
        drifts.append(float((drift / size).max()))
        turns.append(float((logits[:, -1].std(dim=-1) / size).min()))
    worst, least = largest(drifts), min(turns)
    detail = f"rms change of q . k at one distance, worst head of {c.heads}; over distances it changes by {least:.2g}"
    return Finding(float(f"{worst:.3g}"), float(f"{allowed:.3g}"), "", detail, worst <= allowed < least)


def spread_along_diagonals(logits: torch.Tensor) -> torch.Tensor:
    """Return the rms deviation of entries [T, T] at and below the diagonal from the mean of their diagonal."""
    diagonals = [logits.diagonal(-distance) for distance in range(len(logits))]
    deviations = torch.cat([diagonal - diagonal.mean() for diagonal in diagonals])
    return deviations.square().mean().sqrt()


def gradients_of(model: TinyLM, tokens: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Return the gradient of the loss by each parameter."""
    model.zero_grad(set_to_none=True)
    loss = training.chunked_cross_entropy(model.hidden(tokens[:, :-1]), model.head.weight, tokens[:, 1:])
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients_reach(subject: Subject) -> Finding:
    """Look for parameters whose gradient is missing, zero, NaN or Inf."""
    model = subject.model(layers=LAYERS, backend=subject.case.model.backend)
    model.grad_checkpointing = subject.case.grad_checkpointing
    gradients = gradients_of(model, subject.tokens(subject.length + 1))
    bad = [name for name, g in gradients.items() if g is None or not g.any() or not g.isfinite().all()]
    detail = f"of {len(gradients)}: " + (", ".join(bad) if bad else "all have a finite gradient that is not zero")
    return at_most(len(bad), 0, "parameters", detail)


def checkpointing_agrees(subject: Subject) -> Finding:
    """Hold the gradients of each parameter with checkpointing against those without."""
    model, tokens = subject.model(layers=LAYERS, backend=subject.case.model.backend), subject.tokens(subject.length + 1)
    found = []
    for model.grad_checkpointing in (False, True):
        gradients = gradients_of(model, tokens)
        found.append({n: torch.zeros(()) if g is None else g.cpu().double() for n, g in gradients.items()})
    plain, again = found
    errors = {name: relative_error(again[name].expand_as(g), g) for name, g in plain.items()}
    with torch.no_grad():
        x = model.blocks[0].norm_attention(model.embedding(tokens[:, :-1]))
    # The same operators on the same numbers; on a GPU, sums by atomics come in another order each time.
    allowed = budget.module(model.blocks[0].attention.cpu(), x.cpu()).gradient
    return within_budget(errors, dict.fromkeys(errors, allowed))
