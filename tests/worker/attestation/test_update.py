"""AdamW in any order of operations, as the kernels of CPU and GPU differ, is right; with other numbers it is not."""

import math

import pytest
import torch

from nsa_lib.worker.attestation.records import Entries
from nsa_lib.worker.attestation.update import AdamW, judge_update

ENTRIES, STEPS, LR = 200_000, 12, 3e-4

FIRST_MOMENTS = {
    "interpolated": lambda m, g, b: torch.lerp(m, g, 1 - b),
    "summed": lambda m, g, b: b * m + (1 - b) * g,
    "summed with beta in float32": lambda m, g, b: torch.tensor(b) * m + (1 - torch.tensor(b)) * g,
    "from the difference": lambda m, g, b: g + b * (m - g),
}


def last_update(dtype, first_moment, *, lr=LR, betas=(0.9, 0.999), decay=1e-2):
    """Take steps in float32, stored in a dtype, with gradients that have much in common, and return the last one."""
    draw = torch.Generator().manual_seed(0)
    common, noise = (1e-3 * torch.randn(2, ENTRIES, generator=draw)).unbind()
    p = (0.03 * torch.randn(ENTRIES, generator=draw)).to(dtype)
    m = v = torch.zeros(ENTRIES, dtype=dtype)
    for step in range(1, STEPS + 1):
        g = (common + noise.roll(step)).to(dtype)
        before = {"parameter": p, "exp_avg": m, "exp_avg_sq": v, "step": torch.tensor(step - 1.0)}
        p32, m32, v32, g32 = (x.float() for x in (p, m, v, g))
        m32, v32 = first_moment(m32, g32, betas[0]), betas[1] * v32 + (1 - betas[1]) * g32 * g32
        down = (v32.sqrt() / math.sqrt(1 - betas[1] ** step)) + 1e-8
        p32 = p32 - lr * decay * p32 - lr / (1 - betas[0] ** step) * m32 / down
        p, m, v = (x.to(dtype) for x in (p32, m32, v32))
        after = {"parameter": p, "exp_avg": m, "exp_avg_sq": v, "step": torch.tensor(float(step))}
    return {"p": Entries((slice(None),), before, ENTRIES, g, after)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("first_moment", FIRST_MOMENTS.values(), ids=FIRST_MOMENTS)
def test_an_update_is_right_in_any_order_of_operations(first_moment, dtype):
    """Ties of the dtype are frequent, and an order of operations decides all of them alike: that is no error."""
    found = judge_update(last_update(dtype, first_moment), AdamW(lr=LR), STEPS)
    assert found.ok, found


WRONG = {
    "lr by 3 %": dict(lr=1.03 * LR),
    "beta1": dict(betas=(0.89, 0.999)),
    "beta2": dict(betas=(0.9, 0.998)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_other_numbers_are_found(change, dtype):
    assert not judge_update(last_update(dtype, FIRST_MOMENTS["summed"], **change), AdamW(lr=LR), STEPS).ok


def test_weight_decay_that_is_forgotten_is_found_where_the_dtype_can_tell_it():
    assert not judge_update(last_update(torch.float32, FIRST_MOMENTS["summed"], decay=0.0), AdamW(lr=LR), STEPS).ok
