import random
from itertools import pairwise

import pytest

from nsa_lib.contract.allocator import MIB
from nsa_lib.subject.config import ConfigError
from nsa_lib.worker.allocator import AllocatorSimulation

SETTINGS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:64",
    "expandable_segments:True,max_split_size_mb:64",
)

PAGE_MIB = 20
"""A request is checked against the capacity by its own size, but mapped in pages."""

under_every_setting = pytest.mark.parametrize("alloc_conf", SETTINGS)


def reserved_after(alloc_conf: str, *sizes: float) -> float:
    """Return what is reserved once blocks of these sizes in MiB are held."""
    simulation = AllocatorSimulation(alloc_conf)
    for size in sizes:
        simulation.allocate(int(size * MIB))
    return simulation.reserved_mib


def held_and_freed(alloc_conf: str, *sizes: float) -> AllocatorSimulation:
    """Return a simulation that held blocks of these sizes in MiB, all at once, and freed them."""
    simulation = AllocatorSimulation(alloc_conf)
    for block in [simulation.allocate(int(size * MIB)) for size in sizes]:
        simulation.free(block)
    return simulation


def random_trace(simulation: AllocatorSimulation, seed: int, calls: int = 3000):
    """Allocate and free at random and yield the live blocks after each call; stop at a full device."""
    rng, live = random.Random(seed), []
    for _ in range(calls):
        if live and rng.random() < 0.5:
            simulation.free(live.pop(rng.randrange(len(live))))
        else:
            live.append(simulation.allocate(int(2 ** rng.uniform(5, 27))))
        yield live


def test_both_options_together_make_reserved_balloon_as_published():
    """The reproducer of pytorch pull request 193400: reserved MiB after 0, 20, ... 100 rounds."""
    reserved = {}
    for alloc_conf in ("expandable_segments:True,max_split_size_mb:128", "expandable_segments:True"):
        simulation = AllocatorSimulation(alloc_conf)
        simulation.allocate(64 * MIB)
        reserved[alloc_conf] = []
        for round_number in range(101):
            blocks = [simulation.allocate(91 * MIB), simulation.allocate(int(45.5 * MIB))]
            simulation.allocate(2 * MIB)
            for block in blocks:
                simulation.free(block)
            if round_number % 20 == 0:
                reserved[alloc_conf].append(simulation.reserved_mib)
    both, expandable_alone = reserved.values()
    assert both == [220, 2980, 5760, 8520, 11300, 14060]
    assert expandable_alone == [220, 260, 300, 340, 380, 420]


def test_sizes_round_up_to_512_bytes():
    simulation = AllocatorSimulation()
    blocks = [simulation.allocate(nbytes) for nbytes in (1, 512, 513)]
    assert [block.size for block in blocks] == [512, 512, 1024]
    assert simulation.active_mib == 2048 / MIB


def test_nothing_is_allocated_for_no_bytes():
    simulation = AllocatorSimulation()
    assert simulation.allocate(0) is None
    simulation.free(None)
    assert simulation.device_allocs == simulation.reserved_mib == 0


@pytest.mark.parametrize(
    ("alloc_conf", "size", "reserved"),
    [
        ("", 1, 2),
        ("", 1.001, 20),
        ("", 9.999, 20),
        ("", 10, 10),
        ("", 11.5, 12),
        ("expandable_segments:True", 1, 2),
        ("expandable_segments:True", 1.001, 20),
        ("expandable_segments:True", 10, 20),
        ("expandable_segments:True", 30, 40),
    ],
)
def test_segment_of_the_first_request(alloc_conf, size, reserved):
    assert reserved_after(alloc_conf, size) == reserved


def test_small_and_large_requests_do_not_share_segments():
    assert reserved_after("", 1, 1) == 2
    assert reserved_after("", 1, 1, 1) == 4
    assert reserved_after("", 8, 8, 1) == 22


def test_the_best_fit_is_taken():
    simulation = AllocatorSimulation()
    large, small = simulation.allocate(40 * MIB), simulation.allocate(30 * MIB)
    large_address, small_address = large.address, small.address
    simulation.free(large)
    simulation.free(small)
    assert simulation.allocate(28 * MIB).address == small_address
    assert simulation.allocate(28 * MIB).address == large_address
    assert simulation.reserved_mib == 70


def test_equal_fits_are_taken_from_the_lowest_address():
    simulation = AllocatorSimulation()
    blocks = [simulation.allocate(30 * MIB) for _ in range(3)]
    lowest = min(block.address for block in blocks)
    for block in reversed(blocks):
        simulation.free(block)
    assert simulation.allocate(30 * MIB).address == lowest


@pytest.mark.parametrize(
    ("alloc_conf", "size", "active"),
    [
        ("", 29, 30),  # a rest of 1 MiB stays with its block
        ("", 28.5, 28.5),
        ("expandable_segments:True", 29, 29),
        ("max_split_size_mb:25", 24, 24),
        ("max_split_size_mb:25", 26, 30),  # oversized requests are not cut
        ("expandable_segments:True,max_split_size_mb:25", 26, 26),
    ],
)
def test_splitting_a_free_block_of_30_mib(alloc_conf, size, active):
    simulation = held_and_freed(alloc_conf, 30)
    simulation.allocate(int(size * MIB))
    assert simulation.active_mib == active


def test_a_small_block_is_split_to_the_last_512_bytes():
    simulation = AllocatorSimulation()
    blocks = [simulation.allocate(MIB - 512), simulation.allocate(MIB), simulation.allocate(512)]
    assert simulation.reserved_mib == simulation.active_mib == 2
    assert len({block.address for block in blocks}) == 3


def test_free_neighbours_merge_and_others_do_not():
    simulation = AllocatorSimulation()
    first, second, third = (simulation.allocate(6 * MIB) for _ in range(3))
    simulation.free(first)
    simulation.free(third)
    simulation.allocate(12 * MIB)
    assert simulation.reserved_mib == 32
    simulation.free(second)
    simulation.allocate(20 * MIB)
    assert simulation.reserved_mib == 32


def test_an_expandable_segment_grows_by_what_its_free_end_lacks():
    simulation = held_and_freed("expandable_segments:True", 30)
    assert simulation.device_allocs == 1
    simulation.allocate(70 * MIB)
    assert simulation.reserved_mib == 80
    assert simulation.device_allocs == 2


def test_a_block_that_can_still_grow_is_left_for_last():
    simulation = AllocatorSimulation("expandable_segments:True")
    hole, _, end = simulation.allocate(50 * MIB), simulation.allocate(10 * MIB), simulation.allocate(40 * MIB)
    hole_address = hole.address
    simulation.free(hole)
    simulation.free(end)
    assert simulation.allocate(30 * MIB).address == hole_address


@pytest.mark.parametrize("prefix", ["", "expandable_segments:True,"])
@pytest.mark.parametrize(("max_split_mb", "reserved"), [(100, 180), (101, 120)])
def test_a_free_block_of_the_split_size_serves_no_smaller_request(prefix, max_split_mb, reserved):
    simulation = AllocatorSimulation(f"{prefix}max_split_size_mb:{max_split_mb}")
    block, _ = simulation.allocate(100 * MIB), simulation.allocate(2 * MIB)
    simulation.free(block)
    assert simulation.reserved_mib == 120
    simulation.allocate(60 * MIB)
    assert simulation.reserved_mib == reserved


@pytest.mark.parametrize(("size", "reserved"), [(60, 140), (61, 80)])
def test_an_oversized_request_takes_a_block_that_is_less_than_20_mib_larger(size, reserved):
    simulation = held_and_freed("max_split_size_mb:50", 80)
    simulation.allocate(size * MIB)
    assert simulation.reserved_mib == reserved


def test_the_peak_of_reserved_starts_anew():
    simulation = AllocatorSimulation(capacity_mib=100)
    for block in (simulation.allocate(60 * MIB), simulation.allocate(30 * MIB)):
        simulation.free(block)
    simulation.allocate(70 * MIB)
    assert (simulation.reserved_mib, simulation.reserved_peak_mib) == (70, 90)
    simulation.reset_peak()
    assert simulation.reserved_peak_mib == 70


def test_a_full_device_gives_up_what_is_cached_and_counts_a_retry():
    simulation = AllocatorSimulation(capacity_mib=100)
    kept, freed = simulation.allocate(30 * MIB), simulation.allocate(60 * MIB)
    simulation.free(freed)
    assert simulation.retries == 0
    simulation.allocate(70 * MIB)
    assert (simulation.retries, simulation.reserved_mib, simulation.reserved_peak_mib) == (1, 100, 100)
    with pytest.raises(MemoryError, match=r"full: 40\.0 MiB on top of 100\.0 MiB"):
        simulation.allocate(40 * MIB)
    simulation.free(kept)
    simulation.allocate(30 * MIB)
    assert simulation.retries == 2


def test_an_emptied_cache_leaves_a_hole_that_a_request_it_can_hold_fills():
    simulation = AllocatorSimulation("expandable_segments:True")
    first, kept = simulation.allocate(80 * MIB), simulation.allocate(20 * MIB)
    simulation.free(first)
    simulation.empty_cache()
    assert (simulation.reserved_mib, simulation.retries) == (20, 0)
    assert simulation.allocate(60 * MIB).address < kept.address < simulation.allocate(40 * MIB).address
    assert simulation.reserved_mib == 120


def test_a_full_device_takes_back_whole_pages_of_an_expandable_segment():
    simulation = AllocatorSimulation("expandable_segments:True", capacity_mib=130)
    _, middle, _ = [simulation.allocate(size * MIB) for size in (10, 60, 10)]
    simulation.free(middle)
    assert simulation.reserved_mib == 80
    simulation.allocate(80 * MIB)
    # Of the free range 10-70 the pages 20-60 went back, and four more came for the 80 MiB.
    assert (simulation.retries, simulation.reserved_mib) == (1, 80 - 40 + 80)


def test_pages_given_back_merge_with_the_unmapped_rest_of_their_segment():
    simulation = AllocatorSimulation("expandable_segments:True", capacity_mib=100)
    for block in [simulation.allocate(40 * MIB) for _ in range(2)]:
        simulation.free(block)
    simulation.allocate(100 * MIB)
    assert (simulation.retries, simulation.device_allocs) == (1, 3)


@under_every_setting
@pytest.mark.parametrize("seed", range(3))
def test_live_blocks_never_overlap_and_fit_into_what_is_reserved(alloc_conf, seed):
    simulation = AllocatorSimulation(alloc_conf)
    for call, live in enumerate(random_trace(simulation, seed)):
        assert simulation.active_mib == sum(block.size for block in live) / MIB
        assert simulation.active_mib <= simulation.reserved_mib <= simulation.reserved_peak_mib
        if call % 50 == 0:
            ranges = sorted((block.address, block.address + block.size) for block in live)
            assert all(end <= start for (_, end), (start, _) in pairwise(ranges))


@under_every_setting
def test_everything_freed_merges_back(alloc_conf):
    capacity_mib = 20_000
    simulation = AllocatorSimulation(alloc_conf, capacity_mib)
    *_, live = random_trace(simulation, seed=5)
    for block in live:
        simulation.free(block)
    assert simulation.active_mib == 0
    # One block of the whole device fits only if not one fragment of a segment is left behind.
    simulation.allocate(capacity_mib * MIB)
    assert simulation.reserved_mib == capacity_mib


@under_every_setting
def test_the_capacity_holds_for_any_trace(alloc_conf):
    simulation = AllocatorSimulation(alloc_conf, capacity_mib=900)
    trace = random_trace(simulation, seed=0, calls=100_000)
    with pytest.raises(MemoryError):
        any(simulation.reserved_mib > 900 + PAGE_MIB for _ in trace)
    assert simulation.retries > 0
    assert simulation.reserved_peak_mib <= 900 + PAGE_MIB


def test_a_block_is_freed_once():
    simulation = AllocatorSimulation()
    block = simulation.allocate(MIB)
    simulation.free(block)
    with pytest.raises(ValueError, match="free already"):
        simulation.free(block)


@pytest.mark.parametrize(
    "option",
    [
        "garbage_collection_threshold:0.8",
        "roundup_power2_divisions:4",
        "backend:cudaMallocAsync",
        "expandable_segments:true",
        "expandable_segments",
        "max_split_size_mb:20",
        "max_split_size_mb:1e3",
        "nonsense",
    ],
)
def test_an_option_that_is_not_simulated_is_refused_by_name(option):
    with pytest.raises(ConfigError) as refusal:
        AllocatorSimulation(f"expandable_segments:True,{option}")
    assert repr(option) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_spaces_and_empty_options_are_accepted():
    assert reserved_after(" expandable_segments : True , ", 30) == 40
