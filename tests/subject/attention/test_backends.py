"""Every backend of the selected branch against the reference: one function, whoever computes it."""

import importlib
import math
from functools import cache, partial

import pytest
import torch

from nsa_lib.subject.attention import BACKENDS, reference, select_blocks, selected_attention
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS
from tests import budget

DTYPES = (torch.float64, torch.float32, torch.bfloat16)

L_SEL, HEADS, D_K, D_V = 16, 4, 16, 24

# length, l_sel, n_sel, groups. Covers each length, each number of groups, rows that choose and rows that take all, both
# sizes of block, a last block that is cut, and more places than there are blocks.
CASES = [
    (1, 64, 3, 1),
    (15, 64, 4, 2),
    (63, 16, 3, 4),
    (64, 64, 16, 1),
    (65, 64, 4, 2),
    (200, 16, 5, 1),
    (200, 16, 4, 2),
    (200, 16, 3, 4),
    (200, 64, 3, 2),
]

GATHER = importlib.import_module("nsa_lib.subject.attention.backends.gather")
"""The module, whose name its function hides."""

every_backend = pytest.mark.parametrize("backend", PLAIN_BACKENDS)

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def sample(length, groups):
    """Queries, keys, values, and a weight for the gradient."""
    shapes = ((1, HEADS, length, D_K), (1, groups, length, D_K), (1, groups, length, D_V), (1, HEADS, length, D_V))
    return [budget.sample(*shape) for shape in shapes]


def random_blocks(length, *, l_sel, n_sel, groups):
    scores = torch.rand(1, groups, length, math.ceil(length / l_sel), dtype=torch.float64)
    return select_blocks(scores, l_sel=l_sel, n_sel=n_sel)


@cache
def case(length, l_sel, n_sel, groups, largest_logit=None):
    """Inputs, weight, blocks, scale, and the reference's output and gradients."""
    *inputs, weight = sample(length, groups)
    blocks = random_blocks(length, l_sel=l_sel, n_sel=n_sel, groups=groups)
    q, k, _ = inputs
    scale = largest_logit and largest_logit / float((q.unflatten(1, (groups, -1)) @ k[:, :, None].mT).abs().max())
    judge = partial(reference.selected_attention, block_indices=blocks, l_sel=l_sel, scale=scale)
    return inputs, weight, blocks, scale, budget.with_gradients(judge, inputs, weight)


def assert_equals_the_reference(backend, dtype, length, l_sel, n_sel, groups, largest_logit=None):
    inputs, weight, blocks, scale, exact = case(length, l_sel, n_sel, groups, largest_logit)
    inputs = [x.to(dtype) for x in inputs]
    attend = partial(selected_attention, block_indices=blocks, l_sel=l_sel, scale=scale, backend=backend)
    got = budget.with_gradients(attend, inputs, weight)
    budget.assert_attention(got, exact, inputs, weight, keys=min(n_sel * l_sel, length), scale=scale)


def test_the_backends_are_those_that_can_be_asked_for():
    assert tuple(BACKENDS) == BACKEND_NAMES


@every_backend
@every_dtype
@pytest.mark.parametrize(("length", "l_sel", "n_sel", "groups"), CASES)
def test_output_and_gradients_equal_the_reference(backend, dtype, length, l_sel, n_sel, groups):
    assert_equals_the_reference(backend, dtype, length, l_sel, n_sel, groups)


@every_backend
@every_dtype
def test_logits_of_a_hundred(backend, dtype):
    assert_equals_the_reference(backend, dtype, 150, 16, 4, 2, largest_logit=100)


@every_backend
@pytest.mark.parametrize("value", [100.0, -100.0])
def test_equal_logits_of_a_hundred_are_a_mean(backend, value):
    _, _, v, _ = (x.float() for x in sample(100, 2))
    q, k = torch.full((1, HEADS, 100, 1), value), torch.ones(1, 2, 100, 1)
    blocks = random_blocks(100, l_sel=16, n_sel=3, groups=2)
    attend = partial(selected_attention, v=v, block_indices=blocks, l_sel=16, backend=backend)
    torch.testing.assert_close(attend(q, k, scale=1.0), attend(torch.zeros_like(q), k, scale=1.0))


@every_backend
def test_two_batch_entries_do_not_mix(backend):
    first, second = sample(70, 2), sample(70, 2)
    blocks = [random_blocks(70, l_sel=16, n_sel=3, groups=2) for _ in range(2)]
    together = selected_attention(
        *(torch.cat(pair) for pair in zip(first[:3], second[:3], strict=True)),
        torch.cat(blocks),
        l_sel=16,
        backend=backend,
    )
    for row, inputs in enumerate((first, second)):
        alone = selected_attention(*inputs[:3], blocks[row], l_sel=16, backend=backend)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=1e-12)


@every_backend
@every_dtype
def test_rows_without_a_token_are_zero_with_zero_gradients(backend, dtype):
    q, k, v, weight = (x.to(dtype) for x in sample(70, 2))
    blocks = random_blocks(70, l_sel=16, n_sel=3, groups=2)
    empty = torch.arange(70) % 3 == 1
    blocks[:, :, empty] = -1
    blocks[:, :, 7] = torch.tensor([2, 3, -1])
    empty[7] = True
    attend = partial(selected_attention, block_indices=blocks, l_sel=16, backend=backend)
    out, *_ = budget.with_gradients(attend, (q, k, v), weight)
    assert not out[:, :, empty].any()
    assert out[:, :, ~empty].any(-1).all()
    weight[:, :, ~empty] = 0
    for gradient in budget.with_gradients(attend, (q, k, v), weight)[1:]:
        assert not gradient.any()


@every_backend
def test_padding_and_unused_places_change_nothing(backend):
    q, k, v, _ = sample(100, 2)
    blocks = random_blocks(100, l_sel=16, n_sel=7, groups=2)
    wider = torch.cat([blocks, torch.full((1, 2, 100, 5), -1)], dim=-1)
    attend = partial(selected_attention, q, k, v, l_sel=16, backend=backend)
    assert (blocks == -1).any()
    torch.testing.assert_close(attend(wider), attend(blocks), rtol=1e-12, atol=1e-12)


@every_backend
def test_a_value_reaches_exactly_the_rows_that_chose_its_block(backend):
    length = 150
    q, k, v, _ = sample(length, 2)
    blocks = random_blocks(length, l_sel=16, n_sel=4, groups=2)
    attend = partial(selected_attention, q, k, block_indices=blocks, l_sel=16, backend=backend)
    before = attend(v=v)
    for token in (0, 15, 16, 70, 127, 149):
        edited = v.clone()
        edited[:, :, token] += 1
        changed = (attend(v=edited) - before).abs().amax(-1) > 1e-9
        expected = (blocks == token // 16).any(-1) & (torch.arange(length) >= token)
        assert torch.equal(changed, expected.repeat_interleave(HEADS // 2, dim=1)), f"token {token}"


@every_backend
def test_keys_and_queries_of_the_future_have_no_influence(backend):
    q, k, v, _ = sample(150, 2)
    blocks = random_blocks(150, l_sel=16, n_sel=4, groups=2)
    before = selected_attention(q, k, v, blocks, l_sel=16, backend=backend)
    for token in (1, 16, 100):
        edited = [torch.cat([x[:, :, :token], torch.randn_like(x[:, :, token:])], dim=2) for x in (q, k, v)]
        other = torch.cat([blocks[:, :, :token], random_blocks(150, l_sel=16, n_sel=4, groups=2)[:, :, token:]], dim=2)
        after = selected_attention(*edited, other, l_sel=16, backend=backend)
        if backend == "packed":
            rounding = budget.attention(q, k, keys=64).output
            assert budget.error(after[:, :, :token], before[:, :, :token]) <= rounding
        else:
            assert torch.equal(after[:, :, :token], before[:, :, :token])


@every_backend
def test_attention_mass_is_spread_over_the_chosen_tokens(backend):
    length = 70
    blocks = random_blocks(length, l_sel=16, n_sel=3, groups=1)
    mass = selected_attention(
        torch.zeros(1, 2, length, 8),
        torch.randn(1, 1, length, 8),
        torch.eye(length)[None, None],
        blocks,
        l_sel=16,
        backend=backend,
    )
    tokens = torch.arange(length)
    seen = (blocks[0, 0, :, :, None] == tokens // 16).any(1) & (tokens <= tokens[:, None])
    torch.testing.assert_close(mass, (seen / seen.sum(-1, keepdim=True)).expand(1, 2, -1, -1))


@every_backend
def test_gradients_of_a_block_that_all_rows_chose_are_not_summed_in_bfloat16(backend):
    """In bfloat16 a sum stops growing once it is 256 times its terms, and block 0 gets one from every row and head."""
    length = 400
    blocks = random_blocks(length, l_sel=16, n_sel=3, groups=1)
    q, k, v = (x.bfloat16().requires_grad_() for x in sample(length, 1)[:3])
    attend = partial(selected_attention, torch.zeros_like(q), k, v, blocks, l_sel=16, backend=backend)
    (dv,) = torch.autograd.grad(attend().sum(), v)
    tokens = torch.arange(length)
    seen = ((blocks[0, 0, :, :, None] == tokens // 16).any(1) & (tokens <= tokens[:, None])).double()
    exact = HEADS * (seen / seen.sum(-1, keepdim=True)).sum(0)
    allowed = budget.attention(torch.zeros_like(q), k, keys=48).gradient
    assert budget.error(dv, exact[:, None].expand_as(dv)) <= allowed


@every_backend
def test_scale_zero_is_a_scale(backend):
    q, k, v, _ = sample(40, 2)
    blocks = random_blocks(40, l_sel=16, n_sel=3, groups=2)
    attend = partial(selected_attention, k=k, v=v, block_indices=blocks, l_sel=16, backend=backend)
    torch.testing.assert_close(attend(q, scale=0.0), attend(torch.zeros_like(q)))


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (torch.tensor([0, 2, 2]), "twice"),
        (torch.tensor([0, 3, -1]), "range"),
        (torch.tensor([0, 1, -2]), "range"),
        (torch.tensor([0, 1, 2], dtype=torch.int32), "int64"),
    ],
)
def test_wrong_blocks_are_refused(blocks, said):
    q, k, v, _ = sample(40, 2)
    with pytest.raises(ValueError, match=said):
        selected_attention(q, k, v, blocks.expand(1, 2, 40, 3), l_sel=16)


def test_an_unknown_backend_is_refused():
    q, k, v, _ = sample(40, 2)
    with pytest.raises(ValueError, match="backend"):
        selected_attention(q, k, v, random_blocks(40, l_sel=16, n_sel=3, groups=2), l_sel=16, backend="flash")


def gathered_keys(monkeypatch, inputs, weight, blocks, dtype=torch.float32, **bounds):
    """Run gather under other bounds; return output and gradients, and the keys that each chunk gathered."""
    chunks, original = [], GATHER._gathered

    def watched(flat, source):
        chunks.append(original(flat, source))
        return chunks[-1]

    with monkeypatch.context() as patch:
        patch.setattr(GATHER, "_gathered", watched)
        for name, bound in bounds.items():
            patch.setattr(GATHER, name, bound)
        attend = partial(selected_attention, block_indices=blocks, l_sel=16, backend="gather")
        found = budget.with_gradients(attend, [x.to(dtype) for x in inputs], weight)
    return found, [chunk for chunk in chunks if chunk.shape[-1] == D_K]


@pytest.mark.parametrize("bounds", [{}, {"CHUNK_BYTES": 100_000}, {"CHUNK_SHARE": 2}])
@pytest.mark.parametrize(("length", "n_sel", "groups"), [(200, 4, 2), (1000, 5, 1), (300, 12, 4)])
def test_a_chunk_gathers_no_more_keys_than_either_bound(monkeypatch, length, n_sel, groups, bounds):
    *inputs, weight = sample(length, groups)
    blocks = random_blocks(length, l_sel=16, n_sel=n_sel, groups=groups)
    _, keys = gathered_keys(monkeypatch, inputs, weight, blocks, **bounds)
    most = {"CHUNK_BYTES": GATHER.CHUNK_BYTES, "CHUNK_SHARE": GATHER.CHUNK_SHARE, **bounds}
    all_keys = groups * length * D_K * 4
    row = groups * n_sel * 16 * D_K * 4
    bound = min(most["CHUNK_BYTES"], most["CHUNK_SHARE"] * all_keys)
    assert bound > row
    assert bound - row < max(chunk.nbytes for chunk in keys) <= bound
    assert sum(chunk.shape[2] for chunk in keys) == 2 * length  # each query once in forward, once in backward


@every_dtype
@pytest.mark.parametrize("bounds", [{"CHUNK_BYTES": 1}, {"CHUNK_BYTES": 100_000}, {"CHUNK_SHARE": 2}])
def test_chunks_change_neither_output_nor_gradients(monkeypatch, dtype, bounds):
    *inputs, weight = sample(200, 2)
    blocks = random_blocks(200, l_sel=16, n_sel=4, groups=2)
    whole, keys = gathered_keys(monkeypatch, inputs, weight, blocks, dtype, CHUNK_SHARE=10**6)
    assert len(keys) == 2
    parts, keys = gathered_keys(monkeypatch, inputs, weight, blocks, dtype, **bounds)
    assert len(keys) > 10
    for got, want in zip(parts, whole, strict=True):
        torch.testing.assert_close(got, want)
