"""What a user brings is imported, called and run once before any work: what cannot be used is refused in one line."""

import textwrap
from dataclasses import replace

import pytest

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.subject.config import OWN, ModelConfig, NSAConfig, Own
from nsa_lib.subject.own.loading import OwnError
from nsa_lib.worker.loop import run_case
from nsa_lib.worker.own_trial import tried

SIZES = NSAConfig(dim=16, heads=2, groups=2, d_k=8, d_v=8, l=8, d=8, l_sel=8, n_sel=3, w=16)

VOCAB = 40

MODEL = """
import torch
from torch import nn
from types import SimpleNamespace

class Base(nn.Module):
    def __init__(self, vocab, dim):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
    def forward(self, tokens):
        return SimpleNamespace(last_hidden_state=self.embed(tokens).cumsum(1))

class Good(nn.Module):
    def __init__(self, vocab, dim):
        super().__init__()
        self.base, self.head = Base(vocab, dim), nn.Linear(dim, vocab, bias=False)
    def forward(self, tokens):
        return SimpleNamespace(logits=self.head(self.base(tokens).last_hidden_state))

class Told(Good):
    base_model = property(lambda self: self.base)
    def get_output_embeddings(self):
        return self.head

def Padded(vocab, dim):
    return Good(vocab + 24, dim)

def PaddedTold(vocab, dim):
    return Told(vocab + 24, dim)
"""

KERNEL = """
import torch

def good(q, k, v, block_indices, *, l_sel, scale):
    shared = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(shared, 1) for t in (k, v))
    causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    return (q @ k.mT * scale).masked_fill(~causal, -torch.inf).softmax(-1) @ v
"""


def case_of(folder, role, source, name="Bad", **arguments):
    (folder / "bad.py").write_text(textwrap.dedent(source))
    own = Own(role=role, spec=f"{folder}/bad.py:{name}", arguments=arguments)
    part = {} if role == "model" else {role: OWN}
    return CaseConfig(
        case_id="training", work="train", model=ModelConfig(nsa=SIZES, layers=1, vocab=VOCAB, own=own, **part),
        seq_len=32, batch=1, steps=1, warmup_steps=0, dtype="float32", grad_checkpointing=False, lr=1e-3, seed=0,
        device="cpu",
    )  # fmt: skip


MODELS = {
    "fewer logits than tokens": ("class Bad(Good):\n  def __init__(self, vocab, dim):\n"
                                 "    super().__init__(vocab, dim); self.head = nn.Linear(dim, 30)",
                                 "forward gives shape (2, 32, 30); accepts (2, 32, 40)"),
    "a head of fewer": ("class Bad(Told):\n  def __init__(self, vocab, dim):\n"
                        "    super().__init__(vocab, dim); self.head = nn.Linear(dim, 30, bias=False)",
                        "forward gives shape (2, 32, 30); accepts (2, 32, 40)"),
    "dropout": ("class Bad(Good):\n"
                "  def forward(self, x): return nn.functional.dropout(super().forward(x).logits, 0.1, self.training)",
                "in training it draws random numbers, as dropout does, and no step could be taken again; "
                "accepts dropout 0, which model_args may set"),
    "a table that is too small": ("class Bad(Good):\n  def __init__(self, vocab, dim):\n"
                                  "    super().__init__(vocab, dim); self.base = Base(vocab - 1, dim)",
                                  "cannot be run on 2 sequences of 32 tokens, float32: IndexError"),
    "no logits": ("class Bad(Good):\n  def forward(self, tokens): return SimpleNamespace(scores=1)",
                  "forward gives SimpleNamespace; accepts a tensor or .logits"),
    "nothing": ("class Bad(Good):\n  def forward(self, tokens): return None", "forward gives NoneType"),
    "an empty tuple": ("class Bad(Good):\n  def forward(self, tokens): return ()", "forward gives tuple"),
    "the last row alone": ("class Bad(Good):\n  def forward(self, x): return super().forward(x).logits[:, -1]",
                           "forward gives shape (2, 40); accepts (2, 32, 40)"),
    "another device": ("class Bad(Good):\n"
                       "  def forward(self, tokens): return super().forward(tokens).logits.to('meta')",
                       "forward gives device meta; accepts cpu"),
    "an input that we do not give": ("class Bad(Good):\n  def forward(self, tokens, mask): return tokens",
                                     "TypeError: Bad.forward() missing 1 required positional argument: 'mask'"),
    "a base of another width": ("class Bad(Told):\n  def __init__(self, vocab, dim):\n"
                                "    super().__init__(vocab, dim); self.base = Base(vocab, 7)",
                                "its base model gives shape (2, 32, 7); accepts (2, 32, 16)"),
    "a base that gives a word": ("class Bad(Told):\n  base_model = property(lambda self: self.word)\n"
                                 "  def __init__(self, vocab, dim):\n    super().__init__(vocab, dim)\n"
                                 "    self.word = type('Word', (nn.Module,), {'forward': lambda self, x: 'word'})()",
                                 "its base model gives str; accepts a tensor or .last_hidden_state"),
    "scaled logits": ("class Bad(Told):\n  def forward(self, tokens): return super().forward(tokens).logits / 8",
                      "something scales or caps them"),
    "capped logits": ("class Bad(Told):\n"
                      "  def forward(self, tokens): return 30 * torch.tanh(super().forward(tokens).logits / 30)",
                      "something scales or caps them"),
    "the same twice": ("one = Good(40, 16)\ndef Bad(): return one", "it gives the same object twice"),
    "a number": ("def Bad(): return 3", "it gives int; accepts a torch.nn.Module"),
    "a made one": ("Bad = Good(40, 16)", "it is a module that is already made; accepts a class or a function"),
    "other arguments": ("class Bad(Good):\n  def __init__(self, width): super().__init__(40, width)",
                        "it cannot be called with no arguments: TypeError"),
    "an assert": ("class Bad(Good):\n  def forward(self, tokens): assert tokens.shape[0] == 1, 'one at a time'",
                  "AssertionError: one at a time"),
}  # fmt: skip

ATTENTION = """
import torch
from collections import namedtuple
from dataclasses import dataclass
from torch import nn

class Good(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.out = nn.Linear(dim, dim)
    def forward(self, x):
        return self.out(x.cumsum(1))

class Odd(BaseException): pass

Pair = namedtuple("Pair", "hidden weights")
"""

ATTENTIONS = {
    "a generator": ("def Bad(dim): yield Good(dim)", "it gives generator; accepts a torch.nn.Module"),
    "a function that gives one": ("def Bad(dim): return Good(dim).forward", "it gives method; accepts a torch.nn"),
    "an instance": ("Bad = Good(16)", "it is a module that is already made; accepts a class or a function"),
    "an argument without a name": ("class Bad(Good):\n  def __init__(self, width, /): super().__init__(width)",
                                   "it cannot be called with no arguments: TypeError"),
    "a mapping": ("class Bad(Good):\n  def forward(self, x): return {'output': x}", "forward gives dict; accepts a"),
    "no layout of rows": ("class Bad(Good):\n  def forward(self, x): return super().forward(x).to_sparse()",
                          "forward gives layout torch.sparse_coo; accepts torch.strided"),
    "an error of no kind": ("class Bad(Good):\n  def forward(self, x): raise Odd('so')", "float32: Odd: so"),
    "a stop button": ("class Bad(Good):\n  def forward(self, x): raise KeyboardInterrupt", ": KeyboardInterrupt"),
    "without end": ("class Bad(Good):\n  def forward(self, x): return self.forward(x)", "RecursionError"),
    "complex": ("class Bad(Good):\n  def __init__(self, dim):\n    super().__init__(dim)\n"
                "    self.turn = nn.Parameter(torch.ones(dim, dtype=torch.cfloat))",
                "its parameter turn is complex; accepts real ones"),
    "lazy": ("class Bad(Good):\n  def __init__(self, dim):\n    super().__init__(dim)\n"
             "    self.out = nn.LazyLinear(dim)",
             "its parameter out.weight is made in its first call"),
    "no room": ("class Bad(Good):\n  def __init__(self, dim): raise MemoryError", "dim=16: MemoryError"),
}  # fmt: skip

UNUSUAL = {
    "a lambda": "Mine = lambda dim: Good(dim)",
    "a named tuple": "class Mine(Good):\n  def forward(self, x): return Pair(super().forward(x), None)",
    "a list": "class Mine(Good):\n  def forward(self, x): return [super().forward(x)]",
    "compiled": "def Mine(dim): return torch.compile(Good(dim), backend='eager')",
    "a dataclass": "@dataclass(eq=False)\nclass Mine(nn.Module):\n  dim: int\n  def __post_init__(self):\n"
                   "    super().__init__()\n    self.out = nn.Linear(self.dim, self.dim)\n"
                   "  def forward(self, x): return self.out(x)",
    "a method of a class": "class Mine:\n  @classmethod\n  def build(cls, dim): return Good(dim)",
    "sizes by name and more": "class Mine(Good):\n  def __init__(self, *, dim, **more): super().__init__(dim)",
}  # fmt: skip

KERNELS = {
    "another shape": ("def Bad(q, k, v, b, *, l_sel, scale): return q[..., :3]",
                      "forward gives shape (2, 2, 32, 3); accepts (2, 2, 32, 8)"),
    "another dtype": ("def Bad(q, k, v, b, *, l_sel, scale): return q.double()",
                      "forward gives dtype torch.float64; accepts torch.float32"),
    "another device": ("def Bad(q, k, v, b, *, l_sel, scale): return q.to('meta')",
                       "forward gives device meta; accepts cpu"),
    "an empty tuple": ("def Bad(q, k, v, b, *, l_sel, scale): return ()", "forward gives an empty tuple"),
    "nothing": ("def Bad(q, k, v, b, *, l_sel, scale): pass", "forward gives NoneType; accepts a tensor"),
    "other arguments": ("def Bad(q, k, v): return q", "TypeError: Bad() got an unexpected keyword argument 'l_sel'"),
    "no scale": ("def Bad(q, k, v, block_indices, *, l_sel): return q",
                 "TypeError: Bad() got an unexpected keyword argument 'scale'"),
    "it raises": ("def Bad(q, k, v, b, *, l_sel, scale): return q[99]", "IndexError: index 99 is out of bounds"),
    "it exits": ("import sys\ndef Bad(q, k, v, b, *, l_sel, scale): sys.exit('no GPU')", "SystemExit: no GPU"),
}  # fmt: skip


def refused(case):
    with pytest.raises(OwnError) as caught:
        tried(case)
    return str(caught.value), caught.value.user_traceback


@pytest.mark.parametrize(
    ("role", "kind"),
    [*(("model", kind) for kind in MODELS), *(("backend", kind) for kind in KERNELS),
     *(("attention", kind) for kind in ATTENTIONS)],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, role, kind):
    above, kinds = {
        "model": (MODEL, MODELS),
        "backend": (KERNEL, KERNELS),
        "attention": (ATTENTION, ATTENTIONS),
    }[role]
    source, line = kinds[kind]
    said, _ = refused(case_of(tmp_path, role, f"{above}\n{source}\n"))
    assert said.startswith(f"{role}={tmp_path}/bad.py:Bad: ")
    assert line in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("role", "source"),
    [
        ("model", f"{MODEL}\nclass Bad(Good):\n  def forward(self, tokens):\n    return self.lost\n"),
        ("backend", f"{KERNEL}\ndef Bad(q, k, v, b, *, l_sel, scale):\n  return good(q, k, v, b, l_sel=3)\n"),
        ("attention", f"{MODEL}\nclass Bad(Good):\n  def forward(self, x):\n    return self.lost\n"),
    ],
)  # fmt: skip
def test_the_traceback_is_of_the_users_frames_alone(tmp_path, role, source):
    _, told = refused(case_of(tmp_path, role, source))
    files = [line for line in told.splitlines() if line.startswith("  File ")]
    assert files
    assert all(f"{tmp_path}/bad.py" in line for line in files), told


@pytest.mark.parametrize("name", ["Good", "Told", "Padded", "PaddedTold"])
def test_a_model_that_can_be_used_is_told_with_what_it_has(tmp_path, name):
    found = tried(case_of(tmp_path, "model", MODEL, name))
    assert (found["role"], found["judged"], found["has"]) == ("model", "judged without a reference", [])


def test_a_kernel_that_can_be_used_is_judged_by_the_reference(tmp_path):
    found = tried(case_of(tmp_path, "backend", KERNEL, "good"))
    assert (found["role"], found["judged"]) == ("backend", "judged by the float64 reference")


def test_what_it_is_called_with_overrules_the_sizes_of_the_run(tmp_path):
    case = case_of(tmp_path, "model", f"{MODEL}\nclass Bad(Good): pass\n", vocab=30)
    assert "IndexError" in refused(case)[0]
    assert tried(replace(case, model=replace(case.model, vocab=30)))["label"] == "bad.py:Bad"


def test_dropout_0_and_a_draw_in_every_call_are_no_dropout_that_was_forgotten_to_be_set(tmp_path):
    """The second is a mistake, which the checks find."""
    above = (
        f"{MODEL}\nclass Bad(Good):\n  def forward(self, x): return nn.functional.dropout(super().forward(x).logits, "
    )
    for rate in ("0.0, self.training)", "0.1)"):
        assert tried(case_of(tmp_path, "model", above + rate + "\n"))["label"] == "bad.py:Bad"


@pytest.mark.parametrize("file", ["my-attention.py", "an attention.v2.py", "torch.py", "2nd.py"])
def test_a_file_may_have_any_name(tmp_path, file):
    case = case_of(tmp_path, "model", MODEL, "Good")
    (tmp_path / "bad.py").rename(tmp_path / file)
    named = replace(case, model=replace(case.model, own=Own(role="model", spec=f"{tmp_path}/{file}:Good")))
    assert tried(named)["label"] == f"{file}:Good"


@pytest.mark.parametrize("name", ["Good", "Told", "Padded", "PaddedTold"])
def test_a_training_is_recorded_judged_and_taken_again_with_or_without_a_head(tmp_path, name):
    case = replace(case_of(tmp_path, "model", MODEL, name), steps=6, warmup_steps=1, attest=True, show_fresh=True)
    facts = {}
    for known in run_case(case, Heartbeat(tmp_path / "heartbeat.jsonl")):
        facts.update(known)
    assert facts["replay"]["same_bits"]
    assert facts["replay"]["wrong"] == {}
    assert all(not any(step["wrong"].values()) for step in facts["attestation"])
    assert facts["fresh_tokens"]["changes"]


@pytest.mark.parametrize(
    ("folder", "source", "name"),
    [
        ("my code", "class Mine(Good): pass", "Mine"),
        ("C:", "class Mine(Good): pass", "Mine"),  # a colon in the path: the last one stands before the name
        ("nested", "class Outer:\n  class Inner(Good): pass", "Outer.Inner"),
        ("partial", "import functools\nMine = functools.partial(Good, dim=16)", "Mine"),
        ("rest", "class Mine(Good):\n  def __init__(self, *args): super().__init__(*(args or (40, 16)))", "Mine"),
        ("ours", "import nsa_lib\nfrom nsa_lib.subject.config import NSAConfig\nMine = Good", "Mine"),
    ],
)
def test_what_is_named_or_made_in_an_unusual_way_is_loaded(tmp_path, folder, source, name):
    (tmp_path / folder).mkdir()
    assert tried(case_of(tmp_path / folder, "model", f"{MODEL}\n{source}\n", name))["label"] == f"bad.py:{name}"


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_attention_that_is_made_in_an_unusual_way_is_taken(tmp_path, kind):
    name = "Mine.build" if "build" in UNUSUAL[kind] else "Mine"
    case = case_of(tmp_path, "attention", f"{ATTENTION}\n{UNUSUAL[kind]}\n", name)
    assert tried(case)["label"] == f"bad.py:{name}"


def test_an_object_that_cannot_be_called_is_refused(tmp_path):
    said, _ = refused(case_of(tmp_path, "model", f"{MODEL}\nclass Kind: pass\nBad = Kind()\n"))
    assert said.endswith("it is Kind; accepts a class or a function")
