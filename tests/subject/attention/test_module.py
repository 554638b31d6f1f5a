"""The whole attention module, with each backend, against the reference; what it reads, keeps and trains."""

import copy
import math
import weakref
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from nsa_lib.subject.attention import NSAttention, reference
from nsa_lib.subject.attention.tables import own_tables
from nsa_lib.subject.config import BRANCHES, PLAIN_BACKENDS, NSAConfig
from tests import budget

MIB = 2**20

DTYPES = (torch.float64, torch.float32, torch.bfloat16)

every_backend = pytest.mark.parametrize("backend", PLAIN_BACKENDS)

every_branch_alone = pytest.mark.parametrize("branch", BRANCHES)


def config(**changes):
    small = {"dim": 32, "heads": 4, "groups": 2, "d_k": 8, "d_v": 12, "l": 8, "d": 4, "l_sel": 16, "n_sel": 5, "w": 48}
    return NSAConfig(**small | changes)


# Covers each length, (l, d, l_sel), number of groups, phi, branch alone and another order of the branches; rows that
# choose by score and rows that take all; sequences below, at and above w and l_sel.
PAPER, OVERLAPPING = {"l": 16, "d": 16, "l_sel": 64}, {"l": 32, "d": 16, "l_sel": 64}

CASES = {
    "one token": (1, config(**PAPER)),
    "short of a block": (15, config(**OVERLAPPING, groups=1, phi="mean")),
    "short of l_sel": (63, config(**PAPER, groups=4)),
    "l_sel": (64, config(**OVERLAPPING)),
    "past l_sel": (65, config(**PAPER, groups=1, phi="mean")),
    "padded selection": (200, config(**OVERLAPPING, groups=4)),
    "chosen by score": (200, config()),
    "chosen by score, one group": (200, config(groups=1, phi="mean", n_sel=4)),
    "six large blocks": (330, config(**PAPER, n_sel=4)),
    "cmp alone": (130, config(**PAPER, branches=("cmp",))),
    "slc alone": (150, config(branches=("slc",))),
    "win alone": (150, config(branches=("win",))),
    "win, then slc": (130, config(branches=("win", "slc"), phi="mean", groups=4)),
}


@cache
def subject(name):
    """Inputs, a weight for the gradient, and a float64 module whose parameters bfloat16 holds exactly."""
    length, sizes = CASES[name]
    module = NSAttention(sizes).bfloat16().double()
    batch = 2 if length < 100 else 1
    return budget.sample(batch, length, sizes.dim), budget.sample(batch, length, sizes.dim), module


@cache
def judged(name, blocks):
    """The reference's output and gradients by x and each parameter; its own selection where `blocks` is None."""
    x, weight, module = subject(name)
    blocks = None if blocks is None else torch.tensor(blocks).view(len(x), module.config.groups, x.shape[1], -1)
    names = [key for key, _ in module.named_parameters()]
    return budget.with_gradients(
        lambda x, *values: reference.nsa(x, dict(zip(names, values, strict=True)), module.config, blocks),
        [x, *module.parameters()],
        weight,
    )


def copied(name, dtype, backend):
    module = copy.deepcopy(subject(name)[2]).to(dtype)
    module.backend = backend
    return module


@every_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_output_and_each_gradient_equal_the_reference(name, dtype, backend):
    x, weight, _ = subject(name)
    module = copied(name, dtype, backend)
    x = x.to(dtype, copy=True).requires_grad_()
    out = module(x)
    assert out.dtype == dtype
    out.backward(weight.to(dtype))
    # Below float64 the run may choose other blocks of nearly equal score; test_selection judges that.
    own = "slc" in module.config.branches and dtype != torch.float64
    exact, *gradients = judged(name, tuple(module.select(x).flatten().tolist()) if own else None)

    allowed = budget.module(module, x)
    assert budget.error(out, exact) <= allowed.output
    cancelled = math.sqrt(sum(float(gradient.norm()) ** 2 for gradient in gradients))
    for (parameter, mine), true in zip([("x", x), *module.named_parameters()], gradients, strict=True):
        found = budget.error(torch.zeros_like(mine) if mine.grad is None else mine.grad, true, cancelled=cancelled)
        assert found <= allowed.gradient, f"{parameter}: relative error {found:.2e}, budget {allowed.gradient:.2e}"


@pytest.mark.parametrize("name", [name for name, (_, sizes) in CASES.items() if "slc" in sizes.branches])
def test_selection_equals_the_reference(name):
    x, _, module = subject(name)
    c = module.config
    scores = reference.selection_scores(x, dict(module.named_parameters()), c)
    assert torch.equal(module.select(x), reference.select_blocks(scores, l_sel=c.l_sel, n_sel=c.n_sel))


@pytest.mark.parametrize("branches", [BRANCHES, ("cmp",), ("slc",), ("win",), ("win", "slc")])
@pytest.mark.parametrize("phi", ["mlp", "mean"])
def test_parameters_are_those_of_the_branches(branches, phi):
    c = config(branches=branches, phi=phi)
    expected = {"query.weight": (32, 32), "branch_gates.weight": (4 * len(branches), 32), "out.weight": (32, 48)}
    expected |= {f"key_{branch}.weight": (16, 32) for branch in branches}
    expected |= {f"value_{branch}.weight": (24, 32) for branch in branches}
    compressing = [("phi_k", 8)] * bool({"cmp", "slc"} & set(branches)) + [("phi_v", 12)] * ("cmp" in branches)
    if compressing:
        expected["key_cmp.weight"] = (16, 32)
    for name, width in compressing * (phi == "mlp"):
        expected |= {f"{name}.position": (8, width), f"{name}.reduce.weight": (width, 8 * width)}
        expected |= {f"{name}.mix.weight": (width, width)}
    assert {name: tuple(value.shape) for name, value in NSAttention(c).named_parameters()} == expected


@every_backend
@pytest.mark.parametrize("branches", [BRANCHES, ("cmp",), ("slc",), ("win",)])
def test_every_trained_parameter_has_a_finite_gradient_that_is_not_zero(backend, branches):
    module = NSAttention(config(branches=branches), backend)
    module(torch.randn(2, 100, 32)).square().sum().backward()
    fixed = set()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
        else:
            fixed.add(name.split(".")[0])
    assert fixed == ({"key_cmp", "phi_k"} if branches == ("slc",) else set())


@every_backend
@pytest.mark.parametrize("branches", [BRANCHES, ("cmp",), ("slc",), ("win",)])
def test_the_future_has_no_influence_and_the_present_has(backend, branches):
    length = 150
    module, x = NSAttention(config(branches=branches), backend), torch.randn(2, length, 32)
    rounding = budget.module(module, x).output
    with torch.no_grad():
        before = module(x)
        for token in (1, 7, 48, 64, 119):
            edited = x.clone()
            edited[:, token] += 1
            after = module(edited)
            if backend == "packed" and "slc" in branches:
                assert budget.error(after[:, :token], before[:, :token]) <= rounding
            else:
                assert torch.equal(after[:, :token], before[:, :token])
            if branches != ("cmp",):
                assert (after[:, token] != before[:, token]).any(-1).all()
            if "cmp" in branches:
                assert (after[:, -1] != before[:, -1]).any(-1).all()


@every_backend
def test_gradients_with_and_without_checkpointing_are_equal(backend):
    layers, x = torch.nn.ModuleList(NSAttention(config(), backend) for _ in range(3)), torch.randn(2, 100, 32)
    gradients = []
    for run in (lambda layer, y: layer(y), lambda layer, y: checkpoint(layer, y, use_reentrant=False)):
        layers.zero_grad()
        y = x
        for layer in layers:
            y = y + run(layer, y)
        y.square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in layers.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@every_branch_alone
@pytest.mark.parametrize("phi", ["mlp", "mean"])
def test_values_are_not_rotated(branch, phi):
    """Tokens that are all alike give rows that are all alike, if nothing but queries and keys knows its position."""
    module = NSAttention(config(branches=(branch,), phi=phi)).double()
    x = torch.randn(1, 1, 32, dtype=torch.float64).expand(1, 100, 32)
    rows = module(x)[:, 7:]
    assert rows.abs().max() > 1e-3
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows), rtol=1e-10, atol=1e-12)


def test_attention_depends_on_distances_and_not_on_positions():
    module = NSAttention(config(branches=("win",), w=20)).double()
    motif = torch.randn(1, 60, 32, dtype=torch.float64)
    early, late = (
        module(torch.cat([torch.randn(1, lead, 32, dtype=torch.float64), motif], dim=1))[:, -41:] for lead in (7, 90)
    )
    torch.testing.assert_close(early, late, rtol=1e-10, atol=1e-12)


@every_branch_alone
def test_attention_reads_more_than_the_first_key(branch):
    """Every token that a row of the branch can see moves it; attention to the first key alone would be moved by one."""
    sizes = config(branches=(branch,), w=100, n_sel=7)
    module, x = NSAttention(sizes).double(), torch.randn(1, 100, 32, dtype=torch.float64, requires_grad=True)
    (influence,) = torch.autograd.grad(module(x)[0, 99].sum(), x)
    assert influence[0].any(-1).all()


@every_backend
@pytest.mark.parametrize("branches", [BRANCHES, ("cmp",), ("slc",), ("win",)])
def test_nan_is_not_swallowed(backend, branches):
    x = torch.randn(1, 100, 32)
    x[0, 20, 3] = math.nan
    assert NSAttention(config(branches=branches), backend)(x)[0, 20].isnan().all()


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend"):
        NSAttention(config(), backend="flash")


@every_backend
def test_training_works_after_inference_mode(backend):
    """Tables that are made once must not be inference tensors. The lengths are those of no other test."""
    module, x = NSAttention(config(), backend), torch.randn(1, 83, 32)
    with torch.inference_mode():
        expected = module(x)
    out = module(x)
    out.sum().backward()
    assert torch.equal(out, expected)


# Dynamo itself makes an instance of autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
def test_the_masked_module_compiles_to_one_graph():
    module, x = NSAttention(config()), torch.randn(2, 70, 32)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))


class Tensors(TorchDispatchMode):
    """Watch what operators make: bytes alive, and who makes tensors with T x T elements per head."""

    def __init__(self, length: int, heads: int):
        super().__init__()
        self.length, self.square = length, heads * length * length
        self.square_makers, self.alive, self.peak_bytes = set(), {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor, func.overloadpacket.__name__)
        return out

    def _see(self, tensor, maker):
        if list(tensor.shape).count(self.length) >= 2 or tensor.numel() >= self.square:
            self.square_makers.add(maker)
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, key)
            self.peak_bytes = max(self.peak_bytes, sum(self.alive.values()))


def watch_a_layer(backend):
    """One forward and backward of the checklist's layer at 2,048 tokens, parameters and input not counted."""
    sizes = NSAConfig(dim=768, heads=12, groups=12, d_k=64, d_v=64, l=16, d=16, l_sel=64, n_sel=16, w=512)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        module, x = NSAttention(sizes, backend), torch.randn(1, 2048, sizes.dim, requires_grad=True)
    finally:
        torch.set_default_dtype(default)
    with Tensors(2048, sizes.heads) as watched:
        module(x).sum().backward()
    return watched


@contextmanager
def fake():
    """Run on tensors without data: gather would need half a minute of CPU, and memory depends on shapes alone."""
    with own_tables(), FakeTensorMode():
        yield


@every_backend
def test_a_layer_at_2048_tokens_stays_within_400_mib_and_makes_no_square_but_the_mask(backend):
    with fake():
        watched = watch_a_layer(backend)
    assert watched.peak_bytes <= 400 * MIB, f"{watched.peak_bytes / MIB:.0f} MiB"
    # What makes a mask; scores would come from a product or a softmax, their gradients from a product.
    mask_only = {
        "full",
        "ones",
        "triu_",
        "gt",
        "index_select",
        "masked_fill",
        "masked_fill_",
        "unsqueeze",
        "view",
        "slice",
    }
    assert watched.square_makers <= (mask_only if backend == "masked" else set())


def test_tensors_without_data_take_the_memory_of_real_ones():
    with fake():
        pretended = watch_a_layer("packed").peak_bytes
    assert pretended > 100 * MIB
    assert watch_a_layer("packed").peak_bytes == pytest.approx(pretended, rel=0.02)
