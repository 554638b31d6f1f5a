import pytest
import torch
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from nsa_lib.config import ConfigError
from nsa_lib.operators import operator_growth
from nsa_lib.profiling import FEWEST_STEPS, WINDOW_STEPS, OperatorWindows, executed_routes


def enter(*names: str) -> torch.Tensor:
    x = torch.ones(4)
    for name in names:
        with record_function(name):
            x = x.exp()
    return x


def test_the_routes_are_those_that_were_entered():
    assert executed_routes(lambda: enter("nsa::selected::masked")) == {"masked"}
    assert executed_routes(lambda: enter("nsa::selected::gather", "nsa::selected::packed")) == {"gather", "packed"}


def test_other_ranges_and_other_work_are_no_route():
    assert executed_routes(lambda: enter("masked", "nsa::compressed", "selected::masked")) == set()
    assert executed_routes(lambda: torch.ones(3).sum()) == set()


def test_a_route_outside_the_call_does_not_count():
    with record_function("nsa::selected::masked"):
        assert executed_routes(lambda: enter("nsa::selected::packed")) == {"packed"}


def test_a_route_entered_in_backward_alone_is_seen():
    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            with record_function("nsa::selected::packed"):
                return grad * 2

    x = torch.ones(3, requires_grad=True)
    assert executed_routes(lambda: Layer.apply(x).sum().backward()) == {"packed"}


def test_a_route_is_seen_through_checkpointing():
    def layer(x):
        with record_function("nsa::selected::gather"):
            return x.exp()

    x = torch.ones(3, requires_grad=True)
    assert executed_routes(lambda: checkpoint(layer, x, use_reentrant=False).sum().backward()) == {"gather"}


def test_a_failure_while_looking_is_not_hidden():
    def run():
        enter("nsa::selected::masked")
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        executed_routes(run)


def profiled(steps: int, step) -> OperatorWindows:
    with OperatorWindows(steps=steps, device="cpu") as windows:
        for number in range(1, steps + 1):
            step(number)
            windows.step()
    return windows


def counts(window: dict) -> dict[str, int]:
    return {name: row["count"] for name, row in window.items()}


@pytest.mark.parametrize("steps", [FEWEST_STEPS, 30])
def test_the_windows_are_the_first_three_steps_after_warmup_and_the_last_three(steps):
    x = torch.ones(4)

    def step(number):
        for _ in range(number):
            torch.sin(x)

    windows = profiled(steps, step)
    assert windows.early["aten::sin"]["count"] == 11 + 12 + 13
    assert windows.late["aten::sin"]["count"] == 3 * steps - 3


def test_steady_work_is_counted_the_same_early_and_late():
    weight = torch.ones(8, 8, requires_grad=True)
    windows = profiled(20, lambda _: (weight @ weight).relu().sum().backward())
    assert counts(windows.early) == counts(windows.late)
    assert windows.early["aten::relu"]["count"] == WINDOW_STEPS
    assert not any(name.startswith(("ProfilerStep", "[memory]")) for name in windows.early)


def test_a_hook_added_every_step_is_found():
    weight = torch.ones(8, 8, requires_grad=True)

    def step(_):
        weight.register_hook(lambda grad: grad.cos())
        (weight @ weight).sum().backward()

    windows = profiled(30, step)
    growth = operator_growth(counts(windows.early), counts(windows.late), steps=WINDOW_STEPS)
    assert growth.worst == "aten::cos"
    assert (growth.worst_early, growth.worst_late) == (12, 29)


def test_a_row_holds_time_and_memory():
    windows = profiled(FEWEST_STEPS, lambda _: torch.empty(2**20, dtype=torch.uint8).fill_(1))
    row = windows.late["aten::empty"]
    assert set(row) == {"count", "self_cpu_ms", "self_device_ms", "self_cpu_mib", "self_device_mib"}
    assert row["self_cpu_mib"] == WINDOW_STEPS
    assert row["self_device_ms"] == row["self_device_mib"] == 0
    assert 0 < windows.late["aten::fill_"]["self_cpu_ms"] < 1000


def test_too_few_steps_for_two_windows_are_refused():
    with pytest.raises(ConfigError, match=f"steps={FEWEST_STEPS - 1}: accepts {FEWEST_STEPS} or more"):
        OperatorWindows(steps=FEWEST_STEPS - 1, device="cpu")


def test_a_failure_within_a_window_leaves_no_profiler_running():
    def step(number):
        if number == 12:
            assert torch.autograd._profiler_enabled()
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        profiled(20, step)
    assert not torch.autograd._profiler_enabled()
