"""Where `fused` can run, and what it lacks elsewhere, in one line that names it."""

import pytest

from nsa_lib.contract.backends import runnable_backends, why_not_fused
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS, ConfigError
from tests.made import resolved

GPU = {"torch": "2.11.0", "cuda_usable": True, "triton": "3.6.0", "compute_capability": "9.0"}


def values(profile="checklist", **given):
    return resolved("preflight", given, profile=profile)


def found(facts, profile="checklist", **given):
    decided = values(profile, **given)
    return why_not_fused(lambda name: decided[name].value, facts)


@pytest.mark.parametrize("capability", ["8.0", "8.9", "9.0", "10.0", "12.1"])
def test_from_ampere_on_it_runs(capability):
    decided, facts = values(), {**GPU, "compute_capability": capability}
    assert runnable_backends(lambda name: decided[name].value, facts) == BACKEND_NAMES


@pytest.mark.parametrize(
    ("given", "facts", "line"),
    [
        ({"profile": "laptop"}, {}, "backend=fused, device=cpu: accepts cuda"),
        ({"dtype": "float64"}, {}, "backend=fused, dtype=float64: accepts bfloat16, float16, float32"),
        ({"d_v": 256}, {}, "backend=fused, d_v=256: accepts up to 128"),
        ({"l_sel": 48}, {}, "backend=fused, l_sel=48: accepts 16, 32, 64, 128"),
        ({"n_sel": 33}, {}, "backend=fused, n_sel=33: accepts up to 32"),
        ({}, {"triton": None}, "backend=fused: needs Triton, which is not installed"),
        ({}, {"compute_capability": "7.5"}, "backend=fused: needs compute capability 8.0 or more, this is 7.5"),
        ({}, {"compute_capability": None}, "backend=fused: needs compute capability 8.0 or more, this is None"),
    ],
)
def test_what_it_lacks_is_named_and_the_plain_backends_are_left(given, facts, line):
    decided = values(**given)
    parameter = lambda name: decided[name].value  # noqa: E731
    assert why_not_fused(parameter, {**GPU, **facts}) == line
    assert runnable_backends(parameter, {**GPU, **facts}) == PLAIN_BACKENDS


def test_sizes_that_do_not_fit_are_refused_as_ever():
    with pytest.raises(ConfigError, match="heads=12, groups=5"):
        found(GPU, groups=5)
