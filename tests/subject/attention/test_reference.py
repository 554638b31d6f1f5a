"""The judge is judged: by closed forms, and by a second formulation with dense masks and einsum."""

import math

import pytest
import torch
from torch.nn.functional import silu

from nsa_lib.subject.attention import reference
from nsa_lib.subject.config import NSAConfig

B, H, G, T, D_K, D_V = 2, 4, 2, 50, 6, 10


def assert_same(out, expected):
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)


def sample(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def dense_attention(q, k, v, mask):
    """Softmax attention with a boolean mask that broadcasts to [B, H, T, keys]; rows without a key give 0."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    logits = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.shape[-1])
    p = logits.masked_fill(~mask, -1e300).softmax(-1) * mask
    return torch.einsum("bhts,bhsd->bhtd", p, v)


def compressed_mask(length, compressed, *, l, d):
    return torch.arange(compressed) * d + l - 1 <= torch.arange(length)[:, None]


def selected_mask(block_indices, length, heads, *, l_sel):
    blocks = torch.arange(length) // l_sel
    mask = (block_indices[..., None] == blocks).any(-2) & torch.ones(length, length, dtype=torch.bool).tril()
    return mask.repeat_interleave(heads // block_indices.shape[1], dim=1)


def sliding_mask(length, w):
    ones = torch.ones(length, length, dtype=torch.bool)
    return ones.tril() & ones.triu(1 - w)


def complex_rope(x, positions, base=10000.0):
    half = x.shape[-1] // 2
    turns = torch.polar(
        torch.ones(len(positions), half, dtype=torch.float64),
        positions.double()[:, None] * base ** (-torch.arange(half, dtype=torch.float64) / half),
    )
    turned = torch.complex(x[..., :half], x[..., half:]) * turns
    return torch.cat([turned.real, turned.imag], dim=-1)


def sorted_blocks(scores, *, l_sel, n_sel):
    """Select by one stable sort, with the fixed blocks above and the future below every score."""
    length, blocks = scores.shape[-2:]
    own, j = torch.arange(length)[:, None] // l_sel, torch.arange(blocks)
    keys = scores.masked_fill((j == 0) | (j == own) | (j == own - 1), math.inf).masked_fill(j > own, -math.inf)
    top = keys.sort(dim=-1, descending=True, stable=True)
    chosen = top.indices.masked_fill(top.values == -math.inf, blocks)[..., :n_sel].sort(dim=-1).values
    chosen = torch.cat([chosen, torch.full((*chosen.shape[:-1], n_sel), blocks)], dim=-1)[..., :n_sel]
    return chosen.masked_fill(chosen == blocks, -1)


def random_blocks(length, n_sel, *, l_sel):
    return sorted_blocks(torch.rand(B, G, length, math.ceil(length / l_sel)), l_sel=l_sel, n_sel=n_sel)


def test_rope_is_a_rotation_in_the_complex_plane():
    x, positions = sample(B, H, T, D_K), torch.arange(T) * 16 + 31
    assert_same(reference.rope(x, positions), complex_rope(x, positions))
    assert_same(reference.rope(x, base=500.0), complex_rope(x, torch.arange(T), 500.0))


@pytest.mark.parametrize(("l", "d"), [(16, 16), (8, 4)])
def test_compression_is_phi_over_unfolded_blocks(l, d):
    x, kernel = sample(B, G, T, D_K), torch.rand(l, dtype=torch.float64)
    expected = torch.einsum("bgcdl,l->bgcd", x.unfold(2, l, d), kernel)
    assert_same(reference.compress(x, lambda block: torch.einsum("...ld,l->...d", block, kernel), l=l, d=d), expected)


def test_compression_of_a_short_sequence_is_empty():
    assert reference.compress(sample(B, G, 15, D_K), lambda block: block.mean(-2), l=16, d=16).shape == (B, G, 0, D_K)


@pytest.mark.parametrize("branch", ["compressed", "selected", "sliding"])
def test_attention_and_its_gradients_equal_dense_masks(branch):
    keys = 11 if branch == "compressed" else T
    q, k, v, weight = sample(B, H, T, D_K), sample(B, G, keys, D_K), sample(B, G, keys, D_V), sample(B, H, T, D_V)
    if branch == "compressed":
        out, mask = reference.compressed_attention(q, k, v, l=8, d=4), compressed_mask(T, keys, l=8, d=4)
    elif branch == "selected":
        blocks = random_blocks(T, 3, l_sel=8)
        out, mask = reference.selected_attention(q, k, v, blocks, l_sel=8), selected_mask(blocks, T, H, l_sel=8)
    else:
        out, mask = reference.sliding_attention(q, k, v, w=13), sliding_mask(T, 13)
    expected = dense_attention(q, k, v, mask)
    assert_same(out, expected)
    for got, want in zip(
        torch.autograd.grad((out * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        assert_same(got, want)


def test_some_queries_by_their_positions_equal_the_rows_of_all():
    q, k, v, weight = sample(B, H, T, D_K), sample(B, G, T, D_K), sample(B, G, T, D_V), sample(B, H, T, D_V)
    blocks, rows = random_blocks(T, 3, l_sel=8), torch.tensor([0, 7, 8, 31, T - 1])
    whole = reference.selected_attention(q, k, v, blocks, l_sel=8)
    some = reference.selected_attention(q[:, :, rows], k, v, blocks[:, :, rows], l_sel=8, positions=rows)
    assert_same(some, whole[:, :, rows])
    only = torch.zeros_like(weight).index_copy(2, rows, weight[:, :, rows])
    for got, want in zip(
        torch.autograd.grad((some * weight[:, :, rows]).sum(), (q, k, v)),
        torch.autograd.grad((whole * only).sum(), (q, k, v)),
        strict=True,
    ):
        assert_same(got, want)


def test_attention_with_a_zero_query_is_the_mean_of_what_it_sees():
    v = sample(1, 1, T, D_V)
    out = reference.sliding_attention(torch.zeros(1, 1, T, D_K), sample(1, 1, T, D_K), v, w=7)
    assert_same(out[0, 0, 2], v[0, 0, :3].mean(0))
    assert_same(out[0, 0, 40], v[0, 0, 34:41].mean(0))


def test_scale_multiplies_the_logits():
    q, k, v = sample(1, 2, 9, D_K), sample(1, 2, 9, D_K), sample(1, 2, 9, D_V)
    assert_same(
        reference.sliding_attention(q, k, v, w=9, scale=0.7),
        reference.sliding_attention(q * 0.7 * math.sqrt(D_K), k, v, w=9),
    )


@pytest.mark.parametrize(("l", "d", "l_sel"), [(16, 16, 64), (32, 16, 64), (8, 4, 16)])
def test_block_scores_are_the_double_sum_of_equation_9(l, d, l_sel):
    length = 200
    compressed, blocks = (length - l) // d + 1, math.ceil(length / l_sel)
    p = torch.rand(B, H, length, compressed, dtype=torch.float64)
    expected = torch.zeros(B, G, length, blocks, dtype=torch.float64)
    for j in range(blocks):
        for m in range(l_sel // d):
            for n in range(l // d):
                i = j * l_sel // d + m - n
                if 0 <= i < compressed:
                    expected[..., j] += p[..., i].unflatten(1, (G, H // G)).sum(2)
    assert_same(reference.block_scores(p, groups=G, l=l, d=d, l_sel=l_sel), expected)


def test_block_scores_weigh_32_16_64_as_1_2_2_2_1():
    p = torch.eye(11).reshape(1, 1, 11, 11).repeat_interleave(20, dim=2)[:, :, :192]
    scores = reference.block_scores(p, groups=1, l=32, d=16, l_sel=64)
    assert scores[0, 0, ::20, 1].tolist() == [0, 0, 0, 1, 2, 2, 2, 1, 0, 0]


@pytest.mark.parametrize("n_sel", [3, 4, 9])
@pytest.mark.parametrize("ties", [False, True])
def test_selection_equals_a_stable_sort(n_sel, ties):
    scores = torch.rand(B, G, 100, 7, dtype=torch.float64)
    scores = (scores * 3).round() if ties else scores
    assert torch.equal(
        reference.select_blocks(scores, l_sel=16, n_sel=n_sel), sorted_blocks(scores, l_sel=16, n_sel=n_sel)
    )


def test_selection_by_hand():
    scores = torch.tensor([0.0, 5.0, 7.0, 7.0, 1.0, 0.0]).expand(1, 1, 12, 6)
    chosen = reference.select_blocks(scores, l_sel=2, n_sel=4)[0, 0, ::2].tolist()
    assert chosen == [[0, -1, -1, -1], [0, 1, -1, -1], [0, 1, 2, -1], [0, 1, 2, 3], [0, 2, 3, 4], [0, 2, 4, 5]]


def module_parameters(config):
    """Random float64 parameters under the module's names."""

    def weight(*shape):
        return (torch.randn(*shape, dtype=torch.float64) / math.sqrt(shape[-1])).requires_grad_()

    parameters = {"query.weight": weight(config.heads * config.d_k, config.dim)}
    for branch in config.branches:
        parameters[f"value_{branch}.weight"] = weight(config.groups * config.d_v, config.dim)
    for branch in set(config.branches) | ({"cmp"} if "slc" in config.branches else set()):
        parameters[f"key_{branch}.weight"] = weight(config.groups * config.d_k, config.dim)
    for name, width in (("phi_k", config.d_k), ("phi_v", config.d_v)):
        parameters[f"{name}.position"] = weight(config.l, width)
        parameters[f"{name}.reduce.weight"] = weight(width, config.l * width)
        parameters[f"{name}.mix.weight"] = weight(width, width)
    parameters["branch_gates.weight"] = weight(config.heads * len(config.branches), config.dim)
    parameters["out.weight"] = weight(config.dim, config.heads * config.d_v)
    return parameters


def dense_nsa(x, parameters, config):
    """The whole module again, from einsum, masks, complex rotation and one sort."""
    c, length = config, x.shape[1]

    def heads(name, count):
        weight = parameters[f"{name}.weight"].unflatten(0, (count, -1))
        return torch.einsum("btm,hdm->bhtd", x, weight)

    def phi(name, tokens):
        blocks = tokens.unfold(2, c.l, c.d).transpose(-1, -2)
        if c.phi == "mean":
            return blocks.mean(-2)
        blocks = blocks + parameters[f"{name}.position"]
        weight = parameters[f"{name}.reduce.weight"].unflatten(1, (c.l, -1))
        hidden = silu(torch.einsum("bgcld,eld->bgce", blocks, weight))
        return torch.einsum("bgce,fe->bgcf", hidden, parameters[f"{name}.mix.weight"])

    now = torch.arange(length)
    q = complex_rope(heads("query", c.heads), now, c.rope_base)
    k_cmp = phi("phi_k", heads("key_cmp", c.groups))
    ends = torch.arange(k_cmp.shape[2]) * c.d + c.l - 1
    k_cmp = complex_rope(k_cmp, ends, c.rope_base)
    visible = compressed_mask(length, k_cmp.shape[2], l=c.l, d=c.d)
    eye = torch.eye(k_cmp.shape[2], dtype=x.dtype).expand(x.shape[0], c.groups, -1, -1)
    p = dense_attention(q, k_cmp, eye, visible).detach()
    starts, block_starts = ends - c.l + 1, torch.arange(math.ceil(length / c.l_sel)) * c.l_sel
    tokens = torch.arange(length)
    in_compressed = (tokens >= starts[:, None]) & (tokens <= ends[:, None])
    in_block = (tokens >= block_starts[:, None]) & (tokens < block_starts[:, None] + c.l_sel)
    shared = in_compressed.double() @ in_block.double().T / c.d
    scores = (p @ shared).unflatten(1, (c.groups, -1)).sum(2)
    blocks = sorted_blocks(scores, l_sel=c.l_sel, n_sel=c.n_sel)

    outputs = {}
    for branch in c.branches:
        v = heads(f"value_{branch}", c.groups)
        if branch == "cmp":
            outputs[branch] = dense_attention(q, k_cmp, phi("phi_v", v), visible)
            continue
        k = complex_rope(heads(f"key_{branch}", c.groups), now, c.rope_base)
        mask = selected_mask(blocks, length, c.heads, l_sel=c.l_sel) if branch == "slc" else sliding_mask(length, c.w)
        outputs[branch] = dense_attention(q, k, v, mask)
    gates = torch.sigmoid(
        torch.einsum("btm,hnm->nbht", x, parameters["branch_gates.weight"].unflatten(0, (c.heads, -1)))
    )
    mixed = sum(gate[..., None] * out for gate, out in zip(gates, outputs.values(), strict=True))
    return torch.einsum("bhtd,mhd->btm", mixed, parameters["out.weight"].unflatten(1, (c.heads, -1)))


@pytest.mark.parametrize(
    ("phi", "branches"),
    [("mlp", ("cmp", "slc", "win")), ("mean", ("win", "cmp", "slc")), ("mlp", ("slc",)), ("mlp", ("cmp",))],
)
def test_the_whole_module_equals_the_dense_formulation(phi, branches):
    config = NSAConfig(
        dim=24, heads=4, groups=2, d_k=6, d_v=10, l=8, d=4, l_sel=16, n_sel=4, w=20, phi=phi, branches=branches
    )
    parameters, x = module_parameters(config), sample(1, 120, 24)
    out, expected = reference.nsa(x, parameters, config), dense_nsa(x, parameters, config)
    assert_same(out, expected)
    weight, inputs = torch.randn(1, 120, 24, dtype=torch.float64), (x, *parameters.values())
    for got, want in zip(
        torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True),
        torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True),
        strict=True,
    ):
        assert (got is None) == (want is None)
        if got is not None:
            assert_same(got, want)


def test_given_blocks_replace_the_selection():
    config = NSAConfig(dim=8, heads=2, groups=1, d_k=4, d_v=4, l=4, d=4, l_sel=4, n_sel=3, w=4, branches=("slc",))
    parameters, x = module_parameters(config), sample(1, 40, 8)
    own = reference.select_blocks(reference.selection_scores(x, parameters, config), l_sel=4, n_sel=3)
    assert_same(reference.nsa(x, parameters, config, own), reference.nsa(x, parameters, config))
    first_only = torch.where(torch.arange(3) == 0, own, -1)
    v = (x @ parameters["value_slc.weight"].T).unsqueeze(1)
    assert not torch.equal(reference.nsa(x, parameters, config, first_only), reference.nsa(x, parameters, config))
    gates = torch.sigmoid(x @ parameters["branch_gates.weight"].T)[0, 0]
    expected = (gates[:, None] * v[0, 0, 0]).flatten() @ parameters["out.weight"].T
    assert_same(reference.nsa(x, parameters, config, first_only)[0, 0], expected)


def test_wrong_blocks_and_scores_are_refused():
    q, k, v = sample(1, 1, 8, 4), sample(1, 1, 8, 4), sample(1, 1, 8, 4)
    with pytest.raises(ValueError, match="twice"):
        reference.selected_attention(q, k, v, torch.zeros(1, 1, 8, 2, dtype=torch.int64), l_sel=4)
    with pytest.raises(ValueError, match="outside"):
        reference.selected_attention(q, k, v, torch.full((1, 1, 8, 1), 2), l_sel=4)
    with pytest.raises(FloatingPointError):
        reference.select_blocks(torch.full((1, 1, 8, 2), math.nan), l_sel=4, n_sel=3)
