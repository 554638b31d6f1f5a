"""Strict reading of what papermill hands over, and what the profiles make of it."""

import pytest

from nsa_lib.runs.parameters import read_value
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import QUESTIONS
from tests.made import resolved

SMOKE = QUESTIONS["smoke"].request


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("steps", 100, 100),
        ("steps", "100", 100),
        ("steps", 1e4, 10000),
        ("steps", "1e4", 10000),
        ("lr", "1e-4", 1e-4),
        ("lr", 1, 1.0),
        ("compile", "true", True),
        ("compile", "False", False),
        ("compile", "graph", "graph"),
        ("grad_checkpointing", None, None),
        ("grad_checkpointing", "None", None),
        ("tag", "a100-run.1", "a100-run.1"),
    ],
)
def test_what_is_unambiguous_is_read(name, given, read):
    value = read_value(SMOKE.parameters, name, given)
    assert value == read
    assert type(value) is type(read)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("steps", "ten"),
        ("steps", 10.5),
        ("steps", True),
        ("steps", 0),
        ("steps", [100]),
        ("lr", "nan"),
        ("lr", float("inf")),
        ("lr", None),
        ("compile", 1),
        ("compile", "yes"),
        ("compile", "Graph"),
        ("compile", None),
        ("dtype", "bf16"),
        ("tag", 7),
        ("tag", "../up"),
        ("tag", ".hidden"),
        ("tag", "a/b"),
        ("tag", "x" * 41),
        ("profile", "gpu"),
    ],
)
def test_the_rest_is_refused_in_one_line_that_names_the_parameter(name, given):
    with pytest.raises(ConfigError) as refusal:
        read_value(SMOKE.parameters, name, given)
    assert str(refusal.value).startswith(f"{name}=")
    assert "accepts" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_number_given_for_text_says_how_to_pass_text():
    with pytest.raises(ConfigError, match="-r instead of -p"):
        read_value(SMOKE.parameters, "tag", 7)


def effective(profile, **given):
    return resolved("smoke", given, profile=profile)


def test_the_profile_decides_what_was_not_given():
    values = effective("checklist", seq_len=512)
    assert (values["dim"].value, values["dim"].origin) == (768, "profile")
    assert (values["seq_len"].value, values["seq_len"].origin) == (512, "given")
    assert (values["lr"].value, values["lr"].origin) == (3e-4, "default")
    assert values["seq_len"].differs
    assert not values["dim"].differs


def test_the_checklist_profile_is_the_checklist():
    said = dict(dim=768, layers=12, heads=12, groups=12, d_k=64, d_v=64, l=16, d=16, l_sel=64, n_sel=16, w=512)
    said |= dict(seq_len=2048, batch=1, steps=100, dtype="bfloat16", grad_checkpointing=True, vocab=50257)
    said |= dict(alloc_conf="expandable_segments:True,max_split_size_mb:256", reserved_limit_mib=70000)
    values = effective("checklist")
    assert {name: values[name].value for name in said} == said
    assert SMOKE.differences(values, profile="checklist") == []


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"seq_len": 1024}, "seq_len=1024 (checklist: 2048)"),
        ({"grad_checkpointing": False}, "grad_checkpointing=False (checklist: True)"),
        ({"dtype": "float32"}, "dtype=float32 (checklist: bfloat16)"),
        ({"steps": 60}, "steps=60 (checklist: 100)"),
        ({"reserved_limit_mib": 80000}, "reserved_limit_mib=80000 (checklist: 70000)"),
        ({"seed": 7}, "seed=7 (checklist: 0)"),
        ({"lr": 1e-3}, "lr=0.001 (checklist: 0.0003)"),
        ({"compile": True}, "compile=True (checklist: False)"),
    ],
)
def test_any_other_value_than_the_profile_s_and_fewer_steps_are_custom(given, word):
    assert SMOKE.differences(effective("checklist", **given), profile="checklist") == [word]


@pytest.mark.parametrize("given", [{"steps": 500}, {"backend": "packed"}, {"tag": "x"}, {"total_timeout_s": 60}])
def test_more_steps_or_another_route_is_not_custom(given):
    assert SMOKE.differences(effective("checklist", **given), profile="checklist") == []


def test_the_laptop_has_a_limit_only_at_the_sizes_whose_peak_is_known():
    assert effective("laptop")["reserved_limit_mib"].value > 0
    assert effective("laptop", layers=5)["reserved_limit_mib"].value is None
    assert effective("laptop", layers=5, reserved_limit_mib=99)["reserved_limit_mib"].value == 99


def test_every_profile_value_is_one_its_parameter_accepts():
    for profile in SMOKE.profiles.values():
        for name, value in profile.items():
            assert read_value(SMOKE.parameters, name, value) == value


def test_help_and_defaults_survive_papermills_line_parser():
    for name, parameter in SMOKE.parameters.items():
        assert "#" not in parameter.help, name
        assert "=" not in parameter.help, name
        assert not isinstance(parameter.default, str) or "#" not in parameter.default
