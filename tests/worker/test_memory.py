import gc
from collections import Counter
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nsa_lib.contract.allocator import MIB
from nsa_lib.worker import memory
from nsa_lib.worker.allocator import AllocatorSimulation
from nsa_lib.worker.memory import CpuMeter, CudaMeter

FIELDS = {
    "alloc_mib",
    "reserved_mib",
    "active_mib",
    "peak_alloc_mib",
    "peak_reserved_mib",
    "alloc_retries",
    "ooms",
    "device_allocs",
    "ops",
}


def mib(size: float) -> torch.Tensor:
    """Return a new tensor of `size` MiB."""
    return torch.empty(int(size * MIB), dtype=torch.uint8)


def live_mib() -> float:
    """Return the size of all storages that the garbage collector can reach, each in units of 512 B."""
    storages = {}
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, nn.Parameter):
            storage = item.untyped_storage()
            storages[storage._cdata] = -(-storage.nbytes() // 512) * 512
    return sum(storages.values()) / MIB


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Net(nn.Module):
    """Two checkpointed layers with all that a tracker may trip over: views, a custom function, a cached table."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.head = nn.Linear(32, 64)

    @staticmethod
    @lru_cache
    def table(length: int) -> torch.Tensor:
        return torch.arange(length).float()[:, None] / length

    def block(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        halves = Square.apply(layer(x) + self.table(x.shape[1])).chunk(2, -1)
        return x + torch.cat(halves[::-1], -1).contiguous()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = checkpoint(self.block, layer, x, use_reentrant=False)
        return self.head(x)


def train(steps: int, meter: CpuMeter | None, after_step=lambda: None) -> tuple[list[float], list[dict]]:
    """Train a Net and return its losses and, with a meter, the figures of every step."""
    torch.manual_seed(0)
    Net.table.cache_clear()
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    tokens = torch.randint(0, 64, (2, 128))
    if meter:
        meter.track(net, optimizer, tokens)
    losses, figures = [], []
    for _ in range(steps):
        if meter:
            meter.begin_step()
        loss = F.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        if meter:
            meter.mark("forward")
        optimizer.zero_grad()
        loss.backward()
        if meter:
            meter.mark("backward")
        optimizer.step()
        losses.append(loss.item())
        del loss
        after_step()
        if meter:
            figures.append(meter.read())
    return losses, figures


def test_a_tensor_counts_from_its_birth_to_its_death_in_units_of_512_bytes():
    with CpuMeter("") as m:
        x = mib(1)
        assert m.read()["alloc_mib"] == 1
        y = torch.empty(513, dtype=torch.uint8)
        assert m.read()["alloc_mib"] == 1 + 1024 / MIB
        del x
        assert m.read()["alloc_mib"] == 1024 / MIB
        del y
    assert m.read()["alloc_mib"] == 0


def test_a_view_counts_once_and_keeps_its_storage():
    with CpuMeter("") as m:
        x = mib(1)
        views = [x.view(2, -1), x[::2], *x.split(1000), x.detach(), x.t()]
        assert m.read()["alloc_mib"] == 1
        del x
        assert m.read()["alloc_mib"] == 1
        views.clear()
        assert m.read()["alloc_mib"] == 0


def test_work_in_place_and_into_a_given_tensor_allocates_nothing():
    with CpuMeter("") as m:
        x, y = torch.zeros(MIB // 4), torch.ones(MIB // 4)
        x.add_(y).mul_(2)
        torch.add(x, y, out=y)
        torch._foreach_add_([x, y], 1.0)
        assert (m.read()["alloc_mib"], m.read()["peak_alloc_mib"]) == (2, 2)


def test_tensors_made_from_data_and_in_lists_are_seen():
    with CpuMeter("") as m:
        given = torch.tensor([1.0] * 256)
        assert m.read()["alloc_mib"] == 1024 / MIB
        pair = torch.sort(mib(1))  # values of 1 byte, indices of 8
        assert m.read()["alloc_mib"] == 9 + 1024 / MIB
        del given, pair
        assert m.read()["alloc_mib"] == 0


def test_the_peak_is_the_most_alive_at_once():
    with CpuMeter("") as m:
        x = mib(1)
        for _ in range(3):
            x = x + 1
        assert (m.read()["alloc_mib"], m.read()["peak_alloc_mib"]) == (1, 2)


def test_what_backward_needs_is_alive_until_backward():
    x = torch.zeros(MIB // 4, requires_grad=True)
    with CpuMeter("") as m:
        loss = x.exp().exp().sum()
        assert m.read()["alloc_mib"] == 2 + 512 / MIB
        loss.backward()
        assert m.read()["alloc_mib"] == 1 + 512 / MIB
        assert x.grad is not None


def test_optimizer_state_counts():
    weight = nn.Parameter(torch.zeros(MIB // 4))
    optimizer = torch.optim.AdamW([weight], foreach=False)
    with CpuMeter("") as m:
        m.track(weight)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert m.read()["alloc_mib"] == 2 + 2 + 512 / MIB  # with its gradient, two moments, the step count


def test_track_counts_what_existed_once():
    net = nn.Linear(512, 512, bias=False)
    net(torch.ones(1, 512)).sum().backward()
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
    optimizer.step()
    batch = {"tokens": [mib(2), mib(3)]}
    meter = CpuMeter("")
    meter.track(net, optimizer, batch, net.weight)
    assert meter.read()["alloc_mib"] == 3 + 5
    del batch
    assert meter.read()["alloc_mib"] == 3


def test_a_leak_of_a_twentieth_of_a_mib_is_seen_exactly():
    leaked, nbytes = [], 103 * 512
    with CpuMeter("") as m:
        _, figures = train(12, m, after_step=lambda: leaked.append(torch.empty(nbytes - 1, dtype=torch.uint8)))
        held = [figure["alloc_mib"] for figure in figures[1:]]
        assert [late - early for early, late in pairwise(held)] == [nbytes / MIB] * 10
        _, figures = train(12, m)
        assert len({figure["alloc_mib"] for figure in figures[1:]}) == 1


def test_live_bytes_agree_with_the_garbage_collector_and_the_training_is_untouched():
    gc.collect()
    Net.table.cache_clear()
    before = live_mib()
    scans = []
    with CpuMeter("expandable_segments:True") as m:
        losses, figures = train(4, m, after_step=lambda: scans.append(live_mib() - before))
    assert [figure["alloc_mib"] for figure in figures] == scans
    assert losses == train(4, None)[0]
    gc.collect()
    Net.table.cache_clear()
    assert m.read()["alloc_mib"] == 0


@pytest.mark.parametrize("anomaly", [False, True])
def test_two_runs_give_the_same_figures(anomaly, recwarn):
    recwarn.clear()
    runs = []
    for _ in range(2):
        with torch.autograd.set_detect_anomaly(anomaly), CpuMeter("expandable_segments:True") as m:
            runs.append((train(4, m), m.operator_counts))
    assert runs[0] == runs[1]
    figures = runs[0][0][1]
    assert figures[2] == figures[3]


def test_peaks_by_phase_and_of_the_step():
    with CpuMeter("") as m:
        kept = mib(20)
        m.begin_step()
        scratch = mib(30)
        del scratch
        m.mark("forward")
        scratch = mib(10)
        m.mark("backward")
        figures = m.read()
        assert (figures["peak_alloc_forward_mib"], figures["peak_alloc_backward_mib"]) == (50, 30)
        assert (figures["peak_alloc_mib"], figures["alloc_mib"]) == (50, 30)
        assert (figures["peak_reserved_forward_mib"], figures["peak_reserved_backward_mib"]) == (50, 50)
        m.begin_step()
        figures = m.read()
        assert figures["peak_alloc_mib"] == 30
        assert "peak_alloc_forward_mib" not in figures
    assert kept.numel() + scratch.numel() == 30 * MIB


def test_a_peak_after_the_last_phase_belongs_to_the_step():
    with CpuMeter("") as m:
        m.begin_step()
        m.mark("optimizer")
        x = mib(5)
        del x
        assert m.read()["peak_alloc_mib"] == 5


@pytest.mark.parametrize("alloc_conf", ["", "expandable_segments:True,max_split_size_mb:128"])
def test_reserved_is_what_the_simulation_says_for_the_same_allocations(alloc_conf):
    sizes = (91, 45.5, 2)
    simulation = AllocatorSimulation(alloc_conf)
    held, kept = [], []
    with CpuMeter(alloc_conf) as m:
        for _ in range(5):
            tensors = [mib(size) for size in sizes]
            kept.append(tensors.pop())
            del tensors[0], tensors[0]
            blocks = [simulation.allocate(int(size * MIB)) for size in sizes]
            held.append(blocks.pop())
            simulation.free(blocks[0])
            simulation.free(blocks[1])
        figures = m.read()
    assert figures["reserved_mib"] == simulation.reserved_mib
    assert figures["active_mib"] == simulation.active_mib == 10
    assert figures["device_allocs"] == simulation.device_allocs
    assert (figures["reserved_mib"] > 600) == bool(alloc_conf)


def test_operators_are_counted_by_the_step():
    x = torch.ones(3)
    with CpuMeter("") as m:
        m.begin_step()
        x + x
        x + x
        x.sum()
        assert m.operator_counts == Counter({"aten::add.Tensor": 2, "aten::sum": 1})
        assert m.read()["ops"] == 3
        m.begin_step()
        x.sum()
        assert m.operator_counts == Counter({"aten::sum": 1})


def test_memory_of_other_devices_and_of_fake_tensors_does_not_count():
    with CpuMeter("") as m:
        kept = [torch.empty(MIB, device="meta")]
        with FakeTensorMode():
            kept.append(torch.empty(MIB) + 1)
        assert m.read()["alloc_mib"] == 0
    with FakeTensorMode(), CpuMeter("") as m:
        kept.append(torch.empty(MIB) + 1)
        assert m.read()["alloc_mib"] == 0
    assert len(kept) == 3


def test_a_sparse_tensor_does_not_break_the_meter():
    with CpuMeter("") as m:
        values, indices = torch.ones(1024), torch.zeros(1, 1024, dtype=torch.int64)
        sparse = torch.sparse_coo_tensor(indices, values, (4,), check_invariants=True)
        assert m.read()["alloc_mib"] >= 12 * 1024 / MIB
        assert sparse.is_sparse


class FakeCuda:
    """Counters as torch keeps them, moved by hand."""

    def __init__(self, monkeypatch):
        self.current = Counter(allocated=0, reserved=0)
        self.peak = Counter()
        self.reads = 0
        monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", self.stats)
        for name in memory.RESETS:
            monkeypatch.setattr(torch._C, name, self.reset, raising=False)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: torch._C._cuda_resetPeakMemoryStats(0))

    def reset(self, device):
        self.peak = Counter(self.current)

    def hold(self, allocated_mib, reserved_mib):
        self.current = Counter(allocated=allocated_mib * MIB, reserved=reserved_mib * MIB)
        self.peak |= self.current

    def stats(self):
        self.reads += 1

        def counter(name):
            return {"all": {"current": self.current[name], "peak": self.peak[name]}, "small_pool": {}}

        return {
            "allocated_bytes": counter("allocated"),
            "active_bytes": counter("allocated"),
            "reserved_bytes": counter("reserved"),
            "num_alloc_retries": 2,
            "num_ooms": 1,
            "num_device_alloc": 7,
        }


def test_cuda_peaks_by_phase_and_of_the_step(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    with CudaMeter() as m:
        m.track(nn.Linear(2, 2))
        cuda.hold(900, 1000)
        cuda.hold(100, 1000)
        m.begin_step()
        cuda.hold(600, 1300)
        cuda.hold(300, 1100)
        m.mark("forward")
        cuda.hold(500, 1200)
        cuda.hold(200, 1200)
        m.mark("backward")
        cuda.hold(250, 1200)
        cuda.hold(150, 1100)
        assert m.read() == {
            "alloc_mib": 150,
            "reserved_mib": 1100,
            "active_mib": 150,
            "peak_alloc_mib": 600,
            "peak_reserved_mib": 1300,
            "peak_alloc_forward_mib": 600,
            "peak_reserved_forward_mib": 1300,
            "peak_alloc_backward_mib": 500,
            "peak_reserved_backward_mib": 1200,
            "alloc_retries": 2,
            "ooms": 1,
            "device_allocs": 7,
            "ops": None,
        }
        m.begin_step()
        assert m.read()["peak_alloc_mib"] == 150
    assert m.operator_counts is None


@pytest.mark.parametrize("name", memory.RESETS)
def test_peaks_that_the_measured_code_resets_are_not_lost(monkeypatch, name):
    cuda = FakeCuda(monkeypatch)
    with CudaMeter() as m:
        m.begin_step()
        cuda.hold(600, 1300)
        cuda.hold(300, 1300)
        getattr(torch._C, name)(0)  # as a library that prints its own peak does
        cuda.hold(400, 1300)
        m.mark("forward")
        cuda.hold(500, 1300)
        m.mark("backward")
        read = m.read()
    peaks = [read[f"peak_alloc_{of}mib"] for of in ("forward_", "backward_", "")]
    assert peaks == [600, 500, 600]
    assert cuda.reads == 4, "once a phase, at the end, and once for what was reset"
    assert getattr(torch._C, name) == cuda.reset, "nothing is left behind"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64", "max_split_size": 2**26, "expandable_segments": False},
            {"setting": "max_split_size_mb:64", "max_split_mib": 64, "expandable_segments": False},
        ),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "", "max_split_size": -1, "expandable_segments": True},
            {"setting": "", "max_split_mib": None, "expandable_segments": True},
        ),
        ({}, {}),
    ],
)
def test_on_cuda_torch_tells_which_setting_its_allocator_obeys(monkeypatch, settings, told):
    monkeypatch.setattr(torch.cuda.memory, "get_allocator_backend", lambda: "native")
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"allocator_settings": settings})
    assert CudaMeter().allocator() == told


def test_an_allocator_that_is_not_torchs_own_tells_its_setting_as_text_or_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda.memory, "get_allocator_backend", lambda: "cudaMallocAsync")
    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", lambda: "backend:cudaMallocAsync", raising=False)
    assert CudaMeter().allocator() == {"setting": "backend:cudaMallocAsync"}
    monkeypatch.delattr(torch._C, "_accelerator_getAllocatorSettings")
    assert CudaMeter().allocator() == {}


def test_on_the_cpu_the_simulation_tells_its_options_and_torch_or_the_environment_the_setting(monkeypatch):
    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", lambda: "as torch read it", raising=False)
    options = {"expandable_segments": True, "max_split_mib": 256}
    meter = CpuMeter("expandable_segments:True,max_split_size_mb:256")
    assert meter.allocator() == {"setting": "as torch read it", **options}
    monkeypatch.delattr(torch._C, "_accelerator_getAllocatorSettings")
    monkeypatch.setattr(memory, "started_with", {"PYTORCH_ALLOC_CONF": "as the process was started"}.__getitem__)
    assert meter.allocator() == {"setting": "as the process was started", **options}
    assert CpuMeter("").allocator()["max_split_mib"] is None


def test_both_meters_report_the_same_fields(monkeypatch):
    FakeCuda(monkeypatch)
    for m in (CudaMeter(), CpuMeter("")):
        m.begin_step()
        assert set(m.read()) == FIELDS
        m.mark("forward")
        assert set(m.read()) == FIELDS | {"peak_alloc_forward_mib", "peak_reserved_forward_mib"}


def test_a_cuda_step_reads_the_counters_once_a_phase(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    m = CudaMeter()
    m.begin_step()
    for phase in ("forward", "backward", "optimizer"):
        m.mark(phase)
    m.read()
    assert cuda.reads == 4


def test_on_a_simulated_device_that_is_full_what_is_cached_is_released_or_memory_is_out():
    with CpuMeter("", capacity_mib=64) as m:
        m.begin_step()
        cached = mib(30)
        del cached
        held = mib(40)
        figures = m.read()
        assert (figures["alloc_retries"], figures["reserved_mib"], figures["peak_reserved_mib"]) == (1, 40, 40)
        with pytest.raises(MemoryError, match="simulated device is full"):
            mib(40)
        del held
