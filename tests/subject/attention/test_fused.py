"""The fused kernels against the reference: in Triton's interpreter here, on the device where there is a GPU.

The interpreter's bfloat16 is wrong, so a CPU judges float32 and float16. All memory is filled with NaN before a kernel
writes to it.
"""

import math
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from itertools import chain

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nsa_lib.subject.attention import BACKENDS, NSAttention, block_scores, compressed_probabilities, fused, reference
from nsa_lib.subject.attention import select_blocks as choose
from nsa_lib.subject.attention.fused import compressed, grouped, listed, selected, short, tma, whole
from nsa_lib.subject.attention.rope import apply_rope
from nsa_lib.subject.attention.tables import own_tables
from nsa_lib.subject.config import BRANCHES, FUSED_MOST_SELECTED, NSAConfig
from tests import budget

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if DEVICE == "cuda" else ())
SCALE = 0.25
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_source = pytest.mark.parametrize("by_tma", [False, True], ids=["plain", "TMA"])
HAS_TMA = DEVICE == "cpu" or torch.cuda.get_device_capability()[0] == 9  # the interpreter takes descriptors too


@pytest.fixture(autouse=True)
def _poisoned_memory():
    torch.use_deterministic_algorithms(True)  # which also fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)


def sample(length, heads=2, groups=1, keys=None, d_k=16, d_v=24):
    """Queries, keys, values, and a weight for the gradient."""
    keys = length if keys is None else keys
    shapes = ((1, heads, length, d_k), (1, groups, keys, d_k), (1, groups, keys, d_v), (1, heads, length, d_v))
    return [budget.sample(*shape) for shape in shapes]


def on_device(tensors, dtype):
    return [x.to(dtype).to(DEVICE) for x in tensors]


def assert_equal(function, judge, tensors, dtype, *, keys, scale):
    """Hold output and gradients of an attention against the reference's."""
    *inputs, weight = tensors
    exact = budget.with_gradients(judge, inputs, weight)
    got = budget.with_gradients(function, on_device(inputs, dtype), weight.to(DEVICE))
    inputs = [x.to(dtype) for x in inputs]
    budget.assert_attention([x.cpu() for x in got], exact, inputs, weight, keys=keys, scale=scale)


def random_blocks(length, *, l_sel, n_sel, groups=1):
    scores = torch.rand(1, groups, length, math.ceil(length / l_sel), dtype=torch.float64)
    return choose(scores, l_sel=l_sel, n_sel=n_sel)


def read(monkeypatch, by_tma):
    """Have 16-bit tiles read through descriptors, or not."""
    if by_tma and not HAS_TMA:
        pytest.skip("tensor descriptors need compute capability 9.0")
    monkeypatch.setattr(tma, "has_engine", lambda x: by_tma)


def scale_for(tensors, largest_logit):
    q, k = tensors[:2]
    return largest_logit / float((q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].mT).abs().max())


# way, length, l_sel, n_sel, heads, groups: lengths at and around a block, one block cut, more places than blocks, each
# way that there is, groups of one, some and all heads.
WAYS = [
    ("short", 1, 64, 3, 2, 1),
    ("short", 65, 64, 4, 2, 2),
    ("short", 150, 32, 3, 2, 1),
    ("listed", 63, 16, 3, 2, 2),
    ("listed", 200, 32, 5, 2, 1),
    ("listed", 15, 16, 4, 1, 1),
    ("grouped", 60, 16, 3, 8, 1),
    ("grouped", 33, 16, 4, 9, 1),
]


def force(monkeypatch, way):
    if way != "short":
        monkeypatch.setattr(short, "MOST_BLOCKS", 0)


@every_source
@every_dtype
@pytest.mark.parametrize(("way", "length", "l_sel", "n_sel", "heads", "groups"), WAYS)
def test_selected_attention_equals_the_reference(monkeypatch, way, length, l_sel, n_sel, heads, groups, dtype, by_tma):
    force(monkeypatch, way)
    read(monkeypatch, by_tma)
    tensors, scale = sample(length, heads, groups), 0.25
    blocks = random_blocks(length, l_sel=l_sel, n_sel=n_sel, groups=groups)
    assert selected.way(*tensors[:2], l_sel).__name__.endswith(way)
    function = partial(fused.selected_attention, block_indices=blocks.to(DEVICE), l_sel=l_sel, scale=scale)
    judge = partial(reference.selected_attention, block_indices=blocks, l_sel=l_sel, scale=scale)
    assert_equal(function, judge, tensors, dtype, keys=min(n_sel * l_sel, length), scale=scale)


@pytest.mark.parametrize("way", ["short", "listed", "grouped"])
def test_selected_attention_with_logits_of_a_hundred_and_any_choice(monkeypatch, way):
    force(monkeypatch, way)
    heads = 8 if way == "grouped" else 1
    tensors = sample(70, heads)
    scale = scale_for(tensors, 100)
    blocks = random_blocks(70, l_sel=16, n_sel=4)
    blocks[:, :, ::2] = torch.tensor([2, 1, -1, -1])  # neither block 0 nor, later, the own one; not in order
    blocks[:, :, :32] = torch.tensor([0, -1, -1, -1])
    function = partial(fused.selected_attention, block_indices=blocks.to(DEVICE), l_sel=16, scale=scale)
    judge = partial(reference.selected_attention, block_indices=blocks, l_sel=16, scale=scale)
    assert_equal(function, judge, tensors, torch.float32, keys=64, scale=scale)


def test_passes_over_few_heads_change_nothing(monkeypatch):
    force(monkeypatch, "listed")
    q, k, v, weight = on_device([x.expand(2, *x.shape[1:]) for x in sample(40, 4, 2)], torch.float32)
    blocks = random_blocks(40, l_sel=16, n_sel=3, groups=2).expand(2, -1, -1, -1).to(DEVICE)
    attend = partial(fused.selected_attention, block_indices=blocks, l_sel=16, scale=0.25)
    whole = budget.with_gradients(attend, (q, k, v), weight)
    monkeypatch.setattr(listed, "PARTIAL_BYTES", 1)
    assert listed._heads_a_pass(q, k, blocks, 24) == 2
    for one, other in zip(budget.with_gradients(attend, (q, k, v), weight), whole, strict=True):
        assert torch.equal(one, other)


@every_source
@pytest.mark.parametrize("way", ["short", "listed", "grouped"])
def test_wide_heads(monkeypatch, way, by_tma):
    """Heads of up to 128 have tiles of their own; and so has a width that is no power of two."""
    force(monkeypatch, way)
    read(monkeypatch, by_tma)
    tensors, blocks = sample(70, 8 if way == "grouped" else 1, d_k=128, d_v=96), random_blocks(70, l_sel=16, n_sel=4)
    function = partial(fused.selected_attention, block_indices=blocks.to(DEVICE), l_sel=16, scale=0.1)
    judge = partial(reference.selected_attention, block_indices=blocks, l_sel=16, scale=0.1)
    assert_equal(function, judge, tensors, torch.float16, keys=64, scale=0.1)


@pytest.mark.skipif(not HAS_TMA, reason="tensor descriptors need compute capability 9.0")
@pytest.mark.parametrize(("heads", "groups", "length"), [(2, 2, 60), (8, 1, 36)])
def test_the_sequences_of_a_batch_do_not_mix(monkeypatch, heads, groups, length):
    """By the ways of long sequences, listed and grouped, with all that is read through descriptors."""
    monkeypatch.setattr(short, "MOST_BLOCKS", 0)
    read(monkeypatch, by_tma=True)
    config = sizes(heads, groups, l=8, d=8, l_sel=16, n_sel=4, w=20, d_v=16)
    shapes = [(heads, length), *[(groups, length // 8)] * 2, *[(groups, length)] * 4]
    inputs = [torch.randn(2, lanes, rows, 16).half().to(DEVICE) for lanes, rows in shapes]
    inputs.append(torch.rand(2, heads, length, 3).half().to(DEVICE))
    weight = torch.randn(2, heads, length, 16).half().to(DEVICE)
    attend = partial(fused.nsa, config=config)
    together = budget.with_gradients(attend, inputs, weight)
    for i in range(2):
        alone = budget.with_gradients(attend, [x[i : i + 1] for x in inputs], weight[i : i + 1])
        for mine, other in zip(alone, together, strict=True):
            assert budget.error(other[i : i + 1], mine) <= budget.steps(torch.float16, roundings=4, terms=100)


@every_source
@pytest.mark.parametrize("branch", ["cmp", "win"])
def test_bands_of_wide_heads(monkeypatch, branch, by_tma):
    read(monkeypatch, by_tma)
    config = NSAConfig(dim=32, heads=2, groups=1, d_k=128, d_v=96, l=16, d=8, l_sel=32, n_sel=3, w=40)
    tensors = sample(100, 2, 1, 11 if branch == "cmp" else 100, d_k=128, d_v=96)
    attend = {
        "cmp": partial(reference.compressed_attention, l=16, d=8),
        "win": partial(reference.sliding_attention, w=40),
    }
    judge = partial(attend[branch], scale=128**-0.5)
    assert_equal(one_branch(branch, config), judge, tensors, torch.float16, keys=40, scale=128**-0.5)


@pytest.mark.parametrize("way", ["listed", "grouped"])
def test_blocks_that_all_queries_chose_are_shared_out(monkeypatch, way):
    """Several programs work on each of them, and several shares are added, always in the same order."""
    force(monkeypatch, way)
    monkeypatch.setattr(listed, "_FORWARD_CHUNK", 32)
    monkeypatch.setattr(listed, "_LEAST_CHUNK", 4)
    monkeypatch.setattr(grouped, "_LEAST_CHUNK", 4)
    tensors, length = sample(112, 8 if way == "grouped" else 2, 1), 112
    blocks = random_blocks(length, l_sel=16, n_sel=6)
    late = torch.arange(4 * 16, length)
    blocks[:, :, late] = torch.stack([late * 0 + j for j in (0, 1, 2)] + [late // 16 - 1, late // 16, late * 0 - 1], -1)
    function = partial(fused.selected_attention, block_indices=blocks.to(DEVICE), l_sel=16, scale=SCALE)
    judge = partial(reference.selected_attention, block_indices=blocks, l_sel=16, scale=SCALE)
    assert_equal(function, judge, tensors, torch.float16, keys=96, scale=SCALE)
    *inputs, weight = on_device(tensors, torch.float16)
    for one, other in zip(*(budget.with_gradients(function, inputs, weight) for _ in range(2)), strict=True):
        assert torch.equal(one, other)


@every_source
@pytest.mark.parametrize("together", [0, 0.3, 1])
def test_queries_with_their_neighbours_and_alone(monkeypatch, together, by_tma):
    """Some tiles of four choose alike, others do not; the gradient of all is right whichever way each goes."""
    force(monkeypatch, "grouped")
    read(monkeypatch, by_tma)
    monkeypatch.setattr(grouped, "_MOST_SHARED", together)
    tensors, blocks = sample(100, 9), random_blocks(100, l_sel=16, n_sel=4)
    blocks[:, :, 80:90] = blocks[:, :, 80:81]
    function = partial(fused.selected_attention, block_indices=blocks.to(DEVICE), l_sel=16, scale=SCALE)
    judge = partial(reference.selected_attention, block_indices=blocks, l_sel=16, scale=SCALE)
    assert_equal(function, judge, tensors, torch.float16, keys=64, scale=SCALE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_which_tiles_go_over_a_union_is_shown(monkeypatch, dtype):
    force(monkeypatch, "grouped")
    monkeypatch.setattr(grouped, "_MOST_SHARED", 0.3)
    config, shown = sizes(8, 1, l=8, d=8, l_sel=16, n_sel=4, w=20, d_v=16), {}
    q, k_cmp, v_cmp, _ = sample(150, 8, 1, 18, d_v=16)
    q[:, :, 100:120] = q[:, :, 100:101]  # neighbours that choose alike
    pairs = [*sample(150, 8, d_v=16)[1:3], *sample(150, 8, d_v=16)[1:3]]
    tensors = on_device([q, k_cmp, v_cmp, *pairs, torch.rand(1, 8, 150, 3)], dtype)
    fused.nsa(*tensors, config=config, observe=lambda name, mixed, **beside: shown.update(beside) or mixed)
    tile = 1 if dtype == torch.float32 else 4
    rows = [{block for block in row if block >= 0} for row in shown["blocks"][0, 0].tolist()]
    unions = [len(set.union(*rows[first : first + tile])) for first in range(0, 150, tile)]
    assert shown["by_union"][0, 0].tolist() == [size <= 0.3 * tile * 4 for size in unions]
    assert 0 < shown["by_union"].sum() < len(unions)


def test_as_many_blocks_as_there_may_be(monkeypatch):
    """A bit of a word stands for each."""
    force(monkeypatch, "listed")
    tensors = sample(40 * 16, 1)
    blocks = random_blocks(40 * 16, l_sel=16, n_sel=FUSED_MOST_SELECTED)
    blocks[:, :, -64:] = torch.arange(1, FUSED_MOST_SELECTED + 1)  # all of them far
    function = partial(fused.selected_attention, block_indices=blocks.to(DEVICE), l_sel=16, scale=SCALE)
    judge = partial(reference.selected_attention, block_indices=blocks, l_sel=16, scale=SCALE)
    assert_equal(function, judge, tensors, torch.float32, keys=FUSED_MOST_SELECTED * 16, scale=SCALE)


def test_long_offsets_change_nothing(monkeypatch):
    force(monkeypatch, "listed")
    q, k, v, weight = on_device(sample(90, 2, 2), torch.float32)
    blocks = random_blocks(90, l_sel=16, n_sel=5, groups=2).to(DEVICE)
    attend = partial(fused.selected_attention, block_indices=blocks, l_sel=16, scale=SCALE)
    short_ones = budget.with_gradients(attend, (q, k, v), weight)
    monkeypatch.setattr(listed, "_MOST_OFFSET", 0)
    for one, other in zip(budget.with_gradients(attend, (q, k, v), weight), short_ones, strict=True):
        assert torch.equal(one, other)


def sizes(heads=2, groups=1, *, d_v=24, **changed):
    given = {"l": 16, "d": 16, "l_sel": 32, "n_sel": 3, "w": 40} | changed
    return NSAConfig(dim=32, heads=heads, groups=groups, d_k=16, d_v=d_v, **given)


def one_branch(branch, config):
    """Return the attention of one branch alone, as a function of queries, keys and values."""
    alone = replace(config, branches=(branch,))

    def attend(q, k, v):
        keys_values = dict.fromkeys(BRANCHES, (None, None)) | {branch: (k, v)}
        return fused.nsa(q, *chain(*keys_values.values()), torch.ones_like(q[..., :1]), config=alone)

    return attend


# length, l, d, l_sel, groups of two heads: shorter than a block, at its end, several tiles of keys, a key a token.
BANDS = [(15, 32, 16, 32, 1), (64, 16, 16, 32, 2), (150, 32, 16, 32, 1), (70, 1, 1, 16, 2)]


@every_source
@every_dtype
@pytest.mark.parametrize(("length", "l", "d", "l_sel", "groups"), BANDS)
def test_compressed_attention_equals_the_reference(monkeypatch, length, l, d, l_sel, groups, dtype, by_tma):
    read(monkeypatch, by_tma)
    keys = max(0, (length - l) // d + 1)
    tensors = sample(length, 2, groups, keys)
    function = one_branch("cmp", sizes(2, groups, l=l, d=d, l_sel=l_sel))
    judge = partial(reference.compressed_attention, l=l, d=d, scale=SCALE)
    assert_equal(function, judge, tensors, dtype, keys=max(1, keys), scale=SCALE)


@every_source
@every_dtype
@pytest.mark.parametrize(("length", "w", "groups"), [(1, 1, 1), (65, 64, 2), (150, 48, 1), (70, 1, 2), (40, 256, 1)])
def test_sliding_attention_equals_the_reference(monkeypatch, length, w, groups, dtype, by_tma):
    read(monkeypatch, by_tma)
    tensors = sample(length, 2, groups)
    judge = partial(reference.sliding_attention, w=w, scale=SCALE)
    function = one_branch("win", sizes(2, groups, w=w))
    assert_equal(function, judge, tensors, dtype, keys=min(w, length), scale=SCALE)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_band_with_logits_of_a_hundred(sign):
    tensors = sample(80, 2, 1)
    tensors[0] *= sign * scale_for(tensors, 100) / SCALE
    judge = partial(reference.sliding_attention, w=30, scale=SCALE)
    function = one_branch("win", sizes(w=30))
    assert_equal(function, judge, tensors, torch.float32, keys=30, scale=SCALE)


@every_dtype
@pytest.mark.parametrize(
    ("branches", "groups", "length"),
    [(("cmp", "slc", "win"), 2, 120), (("win", "cmp", "slc"), 1, 120), (("slc", "cmp"), 2, 70), (("win",), 2, 33)],
)
@pytest.mark.parametrize("way", ["short", "listed"])
def test_the_gated_sum_and_all_its_gradients(monkeypatch, way, branches, groups, length, dtype):
    """Small logits and rounded inputs: what is left is a rounding of each output, each gate and each gradient, and sums
    over queries and widths."""
    force(monkeypatch, way)
    config = sizes(2, groups, branches=branches, n_sel=4)
    q, k_cmp, v_cmp, weight = sample(length, 2, groups, (length - 16) // 16 + 1)
    _, k_slc, v_slc, _ = sample(length, 2, groups)
    _, k_win, v_win, _ = sample(length, 2, groups)
    gates = torch.rand(1, 2, length, len(branches)).bfloat16().double()
    gates[:, :, 5] = 0  # a gate so low that it is 0
    pairs = {"cmp": (k_cmp, v_cmp), "slc": (k_slc, v_slc), "win": (k_win, v_win)}
    inputs = [q, *chain(*(pairs[branch] for branch in branches)), gates]

    def parts(q, *others):
        mine = dict(zip(branches, zip(others[:-1:2], others[1:-1:2], strict=True), strict=True))
        key = k_cmp.to(q) if "cmp" not in mine else mine["cmp"][0]
        return {"cmp": (key, None), "slc": (None, None), "win": (None, None)} | mine, others[-1]

    def run(q, *others):
        mine, gates = parts(q, *others)
        return fused.nsa(q, *chain(*mine.values()), gates, config=config)

    blocks = fused.chosen_blocks(*on_device([q, k_cmp], dtype), config=config).cpu().long()
    attend = {
        "cmp": partial(reference.compressed_attention, l=16, d=16, scale=SCALE),
        "slc": partial(reference.selected_attention, block_indices=blocks, l_sel=32, scale=SCALE),
        "win": partial(reference.sliding_attention, w=40, scale=SCALE),
    }

    def judge(q, *others):
        mine, gates = parts(q, *others)
        return sum(
            g[..., None] * attend[name](q, *mine[name]) for name, g in zip(branches, gates.unbind(-1), strict=True)
        )

    exact = budget.with_gradients(judge, inputs, weight)
    got = budget.with_gradients(run, on_device(inputs, dtype), weight.to(DEVICE))
    names = ("output", "q", *(f"{kv} of {branch}" for branch in branches for kv in ("k", "v")), "gates")
    for name, mine, true in zip(names, got, exact, strict=True):
        assert budget.error(mine.cpu(), true) <= budget.steps(dtype, roundings=6, terms=400), name


# length, l, l_sel, n_sel, heads, groups: heads that choose alone by one kernel, by another where its tiles would be too
# large, and together; and, in 16 bits, what attends and chooses at once.
CHOICES = [
    (200, 16, 16, 32, 4, 2, 2),
    (260, 32, 16, 64, 3, 2, 1),
    (400, 32, 16, 64, 4, 1, 1),
    (150, 32, 16, 32, 5, 3, 1),
    (20, 32, 16, 64, 4, 1, 1),
    (200, 4, 2, 32, 4, 2, 2),
    (1100, 4, 4, 16, 6, 1, 1),
]


@every_source
@every_dtype
@pytest.mark.parametrize(("length", "l", "d", "l_sel", "n_sel", "heads", "groups"), CHOICES)
def test_the_choice_is_that_of_float64_where_scores_are_apart(
    monkeypatch, length, l, d, l_sel, n_sel, heads, groups, dtype, by_tma
):
    read(monkeypatch, by_tma)
    keys = max(0, (length - l) // d + 1)
    q, k, *_ = sample(length, heads, groups, keys)
    config = sizes(heads, groups, l=l, d=d, l_sel=l_sel, n_sel=n_sel)
    found = fused.chosen_blocks(*on_device([q, k], dtype), config=config)
    assert found.dtype == torch.int32
    p = compressed_probabilities(q, k, l=l, d=d, scale=SCALE)
    scores = block_scores(p, groups=groups, l=l, d=d, l_sel=l_sel)
    exact = choose(scores, l_sel=l_sel, n_sel=n_sel)
    differ = (found.cpu().long() != exact).any(-1)
    # Inputs are exact in every dtype; what is left is float32, and the bits that ranking drops: 17 of 24 stay here.
    worst = scores.gather(-1, exact.clamp(min=0)).masked_fill(exact < 0, math.inf).amin(-1)
    best_left = scores.scatter(-1, exact.clamp(min=0), -1.0).amax(-1)
    assert (best_left[differ] >= worst[differ] * (1 - 2**-15)).all()
    assert differ.float().mean() < 0.01


@every_dtype
@pytest.mark.parametrize(("l", "n_sel", "w"), [(16, 4, 40), (32, 3, 300)])
def test_all_branches_at_once_are_those_one_by_one(monkeypatch, l, n_sel, w, dtype):
    config = sizes(2, 2, l=l, n_sel=n_sel, w=w)
    q, k_cmp, v_cmp, weight = sample(150, 2, 2, (150 - l) // 16 + 1)
    inputs = [q, k_cmp, v_cmp, *sample(150, 2, 2)[1:3], *sample(150, 2, 2)[1:3], torch.rand(1, 2, 150, 3)]
    attend = partial(fused.nsa, config=config)
    at_once = budget.with_gradients(attend, on_device(inputs, dtype), weight.to(DEVICE))
    blocks = fused.chosen_blocks(*on_device([q, k_cmp], dtype), config=config)
    monkeypatch.setattr(whole, "goes_back", lambda *shape: False)
    assert torch.equal(fused.chosen_blocks(*on_device([q, k_cmp], dtype), config=config), blocks)
    one_by_one = budget.with_gradients(attend, on_device(inputs, dtype), weight.to(DEVICE))
    for mine, other in zip(at_once, one_by_one, strict=True):
        assert budget.error(mine, other) <= budget.steps(dtype, roundings=4, terms=100)


@every_source
def test_a_head_attends_and_chooses_at_once(monkeypatch, by_tma):
    """Two tiles of keys, the last one cut; output and gradients of the compressed branch."""
    monkeypatch.setattr(short, "MOST_BLOCKS", 0)
    read(monkeypatch, by_tma)
    config = sizes(1, 1, l=4, d=4, l_sel=16, n_sel=5, branches=("cmp", "slc"))
    tensors = sample(310, 1, 1, 77)
    assert compressed.takes(tensors[0].half(), config)

    def run(q, k, v):
        gates = torch.tensor([1.0, 0.0], device=q.device, dtype=q.dtype).expand(1, 1, 310, 2)
        k_slc, v_slc = q.detach(), torch.zeros(1, 1, 310, 24, device=q.device, dtype=q.dtype)
        return fused.nsa(q, k, v, k_slc, v_slc, None, None, gates, config=config)

    judge = partial(reference.compressed_attention, l=4, d=4, scale=SCALE)
    assert_equal(run, judge, tensors, torch.float16, keys=77, scale=SCALE)


def scored(blocks, heads, best):
    """Return queries, and keys four a block, by which each head scores the blocks of `best` {block: key} higher."""
    q = torch.randn(1, heads, 1, 16)
    k = -q[:, :, None].expand(1, heads, blocks, 4, 16).clone()
    for block, key in best.items():
        k[:, :, block, block % 4] = key(q[:, :, 0])
    return [x.half().to(DEVICE) for x in (q.expand(1, heads, blocks * 16, 16), k.flatten(2, 3))]


def test_equal_scores_go_to_the_lower_block_whichever_tile_they_are_in():
    """Blocks of three tiles have the same score, while the maximum rises from tile to tile."""
    same = torch.randn(1, 2, 16) * 0.3
    rising = {17 * i: lambda q, i=i: q * (1 + 0.37 * i) for i in (1, 2)}
    q, k = scored(40, 2, {j: lambda q: same for j in (4, 6, 8, 20, 30, 32, 36)} | rising)
    found = fused.chosen_blocks(q, k, config=sizes(2, 2, l=4, d=4, l_sel=16, n_sel=8)).cpu()
    assert found[0, :, -1].tolist() == [[0, 4, 6, 8, 17, 34, 38, 39]] * 2


@pytest.mark.skipif(DEVICE == "cpu", reason="a minute in the interpreter")
def test_more_of_the_best_blocks_in_one_set_than_it_keeps():
    """The tile's queries are scored again."""
    best = {5 + 16 * i: lambda q, i=i: q * (1 + 0.2 * (i * 5 % 8)) for i in range(8)}
    q, k = scored(120, 1, best)
    found = fused.chosen_blocks(q, k, config=sizes(1, 1, l=4, d=4, l_sel=16, n_sel=11)).cpu()
    assert found[0, 0, -1].tolist() == [0, *best, 118, 119]


def test_equal_scores_go_to_the_lower_block():
    length, l_sel = 400, 32
    # Every block of two keys the same, and products exact, in whatever order they are added.
    k = torch.randint(-2, 3, (1, 1, 2, 16)).repeat(1, 1, 13, 1)[:, :, :25].float().to(DEVICE)
    q = torch.randint(-2, 3, (1, 1, length, 16)).float().to(DEVICE)
    found = fused.chosen_blocks(q, k, config=sizes(1, l_sel=l_sel, n_sel=6)).cpu()
    assert torch.equal(found[0, 0, -1], torch.tensor([0, 1, 2, 3, 11, 12], dtype=torch.int32))
    assert torch.equal(found.long(), choose(torch.zeros(1, 1, length, 13), l_sel=l_sel, n_sel=6))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")  # where a query does not see the key
@pytest.mark.parametrize("steepness", [3, 100, -100])
@pytest.mark.parametrize("heads", [1, 2])
@every_dtype
def test_scores_that_rise_or_fall_beyond_all_measure(heads, steepness, dtype):
    """Rising ones replace the whole list, again and again, and those far below the largest count as equal."""
    length, l_sel = 1000, 16
    k = torch.linspace(0, steepness, 62)[None, None, :, None].expand(1, 1, 62, 16).contiguous().to(DEVICE, dtype)
    q = torch.ones(1, heads, length, 16).to(DEVICE, dtype)
    found = fused.chosen_blocks(q, k, config=sizes(heads, l_sel=l_sel, n_sel=8)).cpu()
    best = list(range(56, 61)) if steepness > 0 else list(range(1, 6))
    assert torch.equal(found[0, 0, -1], torch.tensor([0, *best, 61, 62], dtype=torch.int32))


@every_dtype
@pytest.mark.parametrize(("length", "stride", "offset"), [(1, 1, 0), (70, 1, 0), (9, 16, 31), (0, 16, 31)])
def test_a_rotation_and_the_one_back(length, stride, offset, dtype):
    x, weight = budget.sample(2, 3, length, 48)[..., :24], budget.sample(2, 3, length, 24)  # rows with a gap between
    plain = partial(apply_rope, stride=stride, offset=offset)
    exact = budget.with_gradients(plain, [x], weight)
    got = budget.with_gradients(
        partial(fused.apply_rope, stride=stride, offset=offset), on_device([x], dtype), weight.to(DEVICE)
    )
    allowed = budget.rotation(dtype, last_position=length * stride + offset, width=24, base=10000.0)
    for mine, true in zip(got, exact, strict=True):
        assert mine.dtype == dtype
        assert budget.error(mine.cpu(), true) <= allowed


SMALL = {"dim": 32, "heads": 2, "d_k": 16, "d_v": 8, "n_sel": 3, "w": 40}


@cache
def layer(groups, l, branches, phi):
    config = NSAConfig(groups=groups, l=l, d=16, l_sel=32, branches=branches, phi=phi, **SMALL)
    torch.manual_seed(1)
    return NSAttention(config, "fused")


@pytest.mark.parametrize(
    ("groups", "l", "branches", "phi"),
    [
        (2, 16, ("cmp", "slc", "win"), "mlp"),
        (1, 32, ("win", "slc", "cmp"), "mean"),
        (1, 16, ("slc",), "mlp"),
        (2, 16, ("cmp",), "mlp"),
        (1, 16, ("win",), "mlp"),
    ],
)
def test_the_whole_module_equals_the_reference(groups, l, branches, phi):
    module = layer(groups, l, branches, phi).to(DEVICE)
    x, weight = budget.sample(1, 110, 32), budget.sample(1, 110, 32)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    blocks = module.select(x.float().to(DEVICE)).cpu() if "slc" in branches else None

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    def judge(x, *values):
        fixed = {name: p.detach().cpu().double() for name, p in module.named_parameters()}
        return reference.nsa(x, fixed | dict(zip(names, values, strict=True)), module.config, blocks)

    parameters = [module.get_parameter(name).detach() for name in names]
    got = budget.with_gradients(run, [x.float().to(DEVICE), *parameters], weight.to(DEVICE))
    exact = budget.with_gradients(judge, [x, *(p.cpu().double() for p in parameters)], weight)
    for name, mine, true in zip(("output", "x", *names), got, exact, strict=True):
        assert budget.error(mine.cpu(), true) <= 1e-5, name  # float32: rounding is 1e-7 a step


def test_no_influence_of_the_future_and_the_same_bits_twice():
    module = layer(1, 16, ("cmp", "slc", "win"), "mlp").to(DEVICE)
    x = torch.randn(1, 110, 32, device=DEVICE)
    with torch.no_grad():
        before = module(x)
        assert torch.equal(module(x), before)
        for token in (1, 50, 96):
            edited = torch.cat([x[:, :token], torch.randn_like(x[:, token:])], dim=1)
            after = module(edited)
            assert torch.equal(after[:, :token], before[:, :token])
            assert (after[:, token:] != before[:, token:]).any(-1).all()


@pytest.mark.parametrize("way", ["short", "listed", "grouped"])
def test_a_value_reaches_exactly_the_rows_that_chose_its_block(monkeypatch, way):
    force(monkeypatch, way)
    heads = 8 if way == "grouped" else 1
    length = 40 if way == "grouped" else 90
    q, k, v, _ = on_device(sample(length, heads), torch.float32)
    blocks = random_blocks(length, l_sel=16, n_sel=3).to(DEVICE)
    before = fused.selected_attention(q, k, v, blocks, l_sel=16, scale=0.25)
    for token in (0, 17, length - 5):
        edited = v.clone()
        edited[:, :, token] += 1
        changed = (fused.selected_attention(q, k, edited, blocks, l_sel=16, scale=0.25) != before).any(-1)
        expected = (blocks == token // 16).any(-1) & (torch.arange(length, device=DEVICE) >= token)
        assert torch.equal(changed, expected.expand_as(changed)), f"token {token}"


@every_source
@pytest.mark.parametrize("width", [3 * 16 + 5, 3 * 16 + 8])
def test_cut_and_misaligned_rows_are_read_rightly(monkeypatch, width, by_tma):
    read(monkeypatch, by_tma)
    wide = torch.randn(1, 40, width, device=DEVICE, dtype=torch.float16)
    q, k, v = (wide[..., 5 + i * 16 : 21 + i * 16][:, None] for i in range(3))
    attend = one_branch("win", sizes(1, d_v=16, w=16))
    assert torch.equal(attend(q, k, v), attend(q.contiguous(), k.contiguous(), v.contiguous()))


def test_on_fake_tensors_it_only_allocates(monkeypatch):
    config = NSAConfig(groups=2, l=16, d=16, l_sel=32, **SMALL)
    for most_blocks in (32, 0):
        monkeypatch.setattr(short, "MOST_BLOCKS", most_blocks)
        with FakeTensorMode(), own_tables():
            x = torch.empty(1, 2048, 32, requires_grad=True)
            out = NSAttention(config, "fused")(x)
            out.sum().backward()
            assert out.shape == x.grad.shape == (1, 2048, 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": torch.float64}, "float64, accepts one of bfloat16, float16, float32"),
        ({"d_k": 130}, "130 wide, accepts up to 128"),
        ({"l_sel": 48}, "l_sel=48, accepts 16, 32, 64, 128"),
        ({"n_sel": FUSED_MOST_SELECTED + 1}, "33 blocks a query, accepts up to 32"),
    ],
)
def test_what_the_kernels_cannot_take_is_refused(change, said):
    sizes = {"dtype": torch.float32, "d_k": 16, "l_sel": 16, "n_sel": 3} | change
    q, k, v, _ = (x.to(sizes["dtype"]) for x in sample(40, d_k=sizes["d_k"]))
    blocks = torch.full((1, 1, 40, sizes["n_sel"]), -1)
    with pytest.raises(ValueError, match=said):
        BACKENDS["fused"](q, k, v, blocks, l_sel=sizes["l_sel"], scale=1.0)


def test_a_tensor_on_the_cpu_is_refused_outside_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code = (
        "import torch; from nsa_lib.subject.attention import fused; x = torch.zeros(1, 1, 16, 16)\n"
        "fused.selected_attention(x, x, x, torch.zeros(1, 1, 16, 3).int(), l_sel=16, scale=1.0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1] == "ValueError: backend='fused': a tensor on cpu, accepts cuda"


def test_every_way_is_one_that_the_shapes_lead_to():
    q, many, few = torch.empty(1, 8, 40 * 16, 16), torch.empty(1, 8, 40 * 16, 16), torch.empty(1, 1, 40 * 16, 16)
    assert selected.way(q, many, 64) is short
    assert selected.way(q, many, 16) is listed
    assert selected.way(q, few, 16) is grouped


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does, of any Function
@pytest.mark.filterwarnings("ignore:Profiler record function")
def test_a_module_is_one_graph_for_a_compiler():
    module = layer(1, 16, ("cmp", "slc", "win"), "mlp").to(DEVICE)
    x = torch.randn(1, 70, 32, device=DEVICE)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    weights = list(module.parameters())
    for mine, true in zip(
        torch.autograd.grad(compiled(x).square().sum(), weights),
        torch.autograd.grad(module(x).square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(mine, true)
