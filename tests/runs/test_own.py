"""What a user may write for her own code, and what is refused before any work in one line."""

import sys

import pytest

from nsa_lib.runs import own
from nsa_lib.runs.own import UsersError
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import plan

GOOD = """
import torch
from torch import nn

class Good(nn.Module):
    def __init__(self, dim, heads, scale=1.0):
        super().__init__()
        self.out = nn.Linear(dim, dim)
        self.scale = scale
    def forward(self, x):
        return self.out(x.cumsum(1)) * self.scale
"""

BAD = {
    "raises": ("import torch\n1 / 0", "Bad", "cannot be imported: ZeroDivisionError: division by zero"),
    "exits": ("import sys\nprint('usage: me')\nsys.exit(3)", "Bad", "cannot be imported: SystemExit: 3"),
    "ends": ("import os\nprint('no')\nos._exit(0)", "Bad", "it ended the process with status 0"),
    "no such name": (GOOD, "Bad", "has no Bad: AttributeError: module 'bad' has no attribute 'Bad'"),
    "no class": ("Bad = 3", "Bad", "it is int; accepts a class or a function"),
    "other arguments": (
        GOOD.replace("dim, heads", "width, count").replace("Good", "Bad"), "Bad",
        "it cannot be called with no arguments: TypeError",
    ),
    "no module": ("def Bad(dim): return dim", "Bad", "it gives int; accepts a torch.nn.Module"),
    "twice": (GOOD + "one = Good(128, 4)\ndef Bad(): return one", "Bad", "it gives the same object twice"),
    "other shape": (
        GOOD + "class Bad(Good):\n    def forward(self, x): return super().forward(x)[:, :-1]", "Bad",
        "forward gives shape (2, 255, 128); accepts (2, 256, 128)",
    ),
    "other dtype": (
        GOOD + "class Bad(Good):\n    def forward(self, x): return super().forward(x).double()", "Bad",
        "forward gives dtype torch.float64; accepts torch.float32",
    ),
    "other device": (
        GOOD + "class Bad(Good):\n    def forward(self, x): return super().forward(x).to('meta')", "Bad",
        "forward gives device meta; accepts cpu",
    ),
    "empty tuple": (
        GOOD + "class Bad(Good):\n    def forward(self, x): return ()", "Bad", "forward gives an empty tuple",
    ),
    "needs more": (
        GOOD + "class Bad(Good):\n    def forward(self, x, mask): return x", "Bad",
        "TypeError: Bad.forward() missing 1 required positional argument: 'mask'",
    ),
}  # fmt: skip


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def asked(notebook="preflight", **given):
        return plan(notebook, {"profile": "laptop", "out_dir": str(tmp_path / "made"), **given})

    return asked


def test_what_can_be_used_is_called_with_the_sizes_that_it_names_and_told_with_its_files(ask, tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    found = ask(attention="good.py:Good", attention_args="{'scale': 2.0}")
    case = found.cases[0]
    assert (case.model.attention, case.model.own.spec) == ("own", f"{tmp_path}/good.py:Good")
    assert case.model.own.arguments == {"scale": 2.0}
    assert case.model.own.sizes["dim"] == 128
    assert case.model.own.sizes["seq_len"] == 512
    assert found.on_trial["label"] == "good.py:Good"
    assert found.on_trial["judged"] == "judged without a reference"
    assert len(found.on_trial["sha256"]) == 64
    assert found.custom == (), "what is on trial is open; readiness counts it"
    assert type(case).from_json(case.to_json()) == case
    assert "good" not in sys.modules, "her code is loaded in a process of its own"


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_used_is_refused_in_one_line_with_the_users_own_traceback(ask, tmp_path, kind):
    source, name, line = BAD[kind]
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(UsersError) as caught:
        ask(attention=f"bad.py:{name}")
    said = str(caught.value)
    assert said.startswith(f"attention={tmp_path}/bad.py:{name}")
    assert line in said
    assert "\n" not in said
    assert "nsa_lib" not in caught.value.user_traceback
    assert not list((tmp_path / "made").glob("runs/*"))


def test_what_prints_is_no_harm(ask, tmp_path):
    (tmp_path / "good.py").write_text("print('{}')\n" + GOOD)
    assert ask(attention="good.py:Good").on_trial["label"] == "good.py:Good"


def test_what_never_returns_is_ended_and_its_stack_is_shown(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(own, "TRIAL_LIMIT_S", 1)
    (tmp_path / "bad.py").write_text("import time\ntime.sleep(600)")
    with pytest.raises(UsersError, match="did not return within 1 s") as caught:
        ask(attention="bad.py:Bad")
    assert "bad.py" in caught.value.user_traceback
    assert "nsa_lib" not in caught.value.user_traceback
    assert "<frozen" not in caught.value.user_traceback


def test_what_kills_its_process_is_named_by_its_signal(ask, tmp_path):
    (tmp_path / "bad.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(UsersError, match="killed by SIGSEGV") as caught:
        ask(attention="bad.py:Bad")
    assert "bad.py" in caught.value.user_traceback, "the stack of a crash is hers"
    assert "nsa_lib" not in caught.value.user_traceback


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"attention": "good.py"}, "names a file and nothing in it"),
        ({"attention": "good.py:"}, "names nothing behind the colon"),
        ({"attention": "gone.py:Good"}, "no file gone.py in"),
        ({"attention": "my-package:Good"}, "neither a module nor a .py file"),
        ({"model": "nothing"}, "no entry point of the group nsa_lib.models"),
        ({"attention": "a:b", "attention_args": "[1]"}, "attention_args='[1]': accepts a mapping"),
        ({"model": "a:b", "model_args": "[1]"}, "model_args='[1]': accepts a mapping"),
        ({"model": "a:b", "model_args": "{1: 2}"}, "model_args='{1: 2}': accepts a mapping"),
        ({"model": "a:b", "model_args": 3}, "model_args=3: accepts a mapping"),
        ({"model": "a:b", "model_args": "depth: 3"}, "model_args='depth: 3': accepts a mapping"),
        ({"model": "a:b", "model_args": ["depth"]}, "model_args=['depth']: accepts a mapping"),
        ({"attention": "a:b", "attention_args": {"of": {1, 2}}}, "attention_args={'of': {1, 2}}: accepts a mapping"),
        ({"attention": "a:b", "model": "c:d"}, "one at a time"),
        ({"attention": "a:b", "backend": "packed"}, "one at a time"),
        ({"attention_args": "{'a': 1}"}, "attention=nsa is ours and takes none"),
    ],
)
def test_a_spec_that_names_nothing_is_refused_before_any_process(ask, monkeypatch, given, line):
    monkeypatch.setattr(own, "TRIAL", ("/no/such/program",))
    with pytest.raises(ConfigError) as caught:
        ask(**given)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_changed_since_it_was_tried_is_not_run(ask, tmp_path):
    path = tmp_path / "good.py"
    path.write_text(GOOD)
    tried = ask(attention="good.py:Good").on_trial
    assert own.why_changed(tried) == own.why_changed(None) == ""
    path.write_text(GOOD + "half saved(")
    assert own.why_changed(tried) == f"{path} has changed since it was tried; run again"
    path.unlink()
    assert own.why_changed(tried)
