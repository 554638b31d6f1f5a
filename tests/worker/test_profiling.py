import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from nsa_lib.judgement.operators import operator_growth
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.backend_contrast import measures
from nsa_lib.worker import profiling
from nsa_lib.worker.devices import DEVICES
from nsa_lib.worker.profiling import FEWEST_STEPS, WINDOW_STEPS, OperatorWindows, executed_routes


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
    with OperatorWindows(steps=steps, activities=DEVICES["cpu"].activities) as windows:
        for number in range(1, steps + 1):
            step(number)
            windows.step()
    return windows


def counts(window: dict) -> dict[str, int]:
    return {name: row["count"] for name, row in window.items()}


@pytest.mark.parametrize("steps", [FEWEST_STEPS, 30])
def test_the_windows_are_the_first_step_after_warmup_and_the_last(steps):
    x = torch.ones(4)

    def step(number):
        for _ in range(number):
            torch.sin(x)

    windows = profiled(steps, step)
    assert windows.early["aten::sin"]["count"] == 11
    assert windows.late["aten::sin"]["count"] == steps


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
    assert (growth.worst_early, growth.worst_late) == (11, 30)


def operator(name, tid, ts, dur, number):
    return {"cat": "cpu_op", "name": name, "tid": tid, "ts": ts, "dur": dur, "args": {"External id": number}}


def allocation(ts, device, size):
    arguments = {"Device Type": device, "Bytes": size}
    return {"cat": "cpu_instant_event", "name": "[memory]", "tid": 1, "ts": ts, "args": arguments}


def on_device(category, name, dur, **arguments):
    return {"cat": category, "name": name, "tid": 7, "ts": 500, "dur": dur, "args": arguments}


TRACE = [
    operator("aten::linear", 1, 0, 100, 1),
    operator("aten::mm", 1, 10, 50, 2),
    allocation(20, 1, 2**21),
    allocation(30, 0, 2**30),
    allocation(70, 1, -(2**20)),
    allocation(900, 1, 2**20),
    operator("aten::mm", 2, 15, 5, 3),
    on_device("kernel", "gemm", 3000, **{"External id": 2}),
    on_device("kernel", "gemm", 1000, **{"External id": 3}),
    on_device("gpu_memcpy", "Memcpy HtoD", 500),
    {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "tid": 1, "ts": 12, "dur": 1, "args": {"External id": 2}},
    {"name": "process_name", "ph": "M", "args": {"name": "python"}},
]


def test_a_row_holds_calls_and_the_time_and_memory_that_an_operator_itself_took_on_the_device():
    recorded = SimpleNamespace(
        export_chrome_trace=lambda path: Path(path).write_text(json.dumps({"traceEvents": TRACE}))
    )
    assert profiling._operators(recorded) == {
        "aten::linear": {"count": 1, "self_device_ms": 0, "self_device_mib": -1},
        "aten::mm": {"count": 2, "self_device_ms": 4, "self_device_mib": 2},
        "gemm": {"count": 2, "self_device_ms": 0, "self_device_mib": 0},
        "Memcpy HtoD": {"count": 1, "self_device_ms": 0.5, "self_device_mib": 0},
    }


def test_the_kernels_of_fused_are_counted_to_their_operator_and_not_to_the_range_around_it():
    trace = [
        operator("nsa::selected::fused", 1, 0, 100, 1),
        operator("nsa::short_forward", 1, 10, 50, 2),
        on_device("kernel", "short_forward", 2000, **{"External id": 2}),
    ]
    recorded = SimpleNamespace(
        export_chrome_trace=lambda path: Path(path).write_text(json.dumps({"traceEvents": trace}))
    )
    found = profiling._operators(recorded)
    assert {name: row["self_device_ms"] for name, row in found.items()} == {
        "nsa::selected::fused": 0, "nsa::short_forward": 2, "short_forward": 0,
    }  # fmt: skip
    assert [name for name in found if measures.OPERATOR.fullmatch(name)] == ["nsa::short_forward"]


def test_counts_are_those_that_the_profiler_itself_tells():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
        x = torch.ones(8, 8, requires_grad=True)
        (x @ x).relu().sum().backward()
    told = {event.key: event.count for event in recorded.key_averages() if event.key.startswith("aten::")}
    found = {n: row["count"] for n, row in profiling._operators(recorded).items() if n.startswith("aten::")}
    # It counts an operator that calls one of its own name, here another overload, once.
    assert found == told | {"aten::sum": 2}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_time_and_memory_on_a_gpu_are_those_that_the_profiler_itself_tells():
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    x = torch.ones(512, 512, device="cuda", requires_grad=True)
    with torch.profiler.profile(activities=activities, profile_memory=True) as recorded:
        (x @ x).relu().sum().backward()
        torch.cuda.synchronize()
    found = profiling._operators(recorded)
    for event in recorded.key_averages():
        if event.key.startswith("aten::"):
            row = found[event.key]
            assert row["self_device_ms"] == pytest.approx(event.self_device_time_total / 1000, abs=0.01)
            assert row["self_device_mib"] == pytest.approx(event.self_device_memory_usage / 2**20)


def test_too_few_steps_for_two_windows_are_refused():
    with pytest.raises(ConfigError, match=f"steps={FEWEST_STEPS - 1}: accepts {FEWEST_STEPS} or more"):
        OperatorWindows(steps=FEWEST_STEPS - 1, activities=DEVICES["cpu"].activities)


def test_a_failure_within_a_window_leaves_no_profiler_running():
    def step(number):
        if number == 11:
            assert torch.autograd._profiler_enabled()
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        profiled(20, step)
    assert not torch.autograd._profiler_enabled()
