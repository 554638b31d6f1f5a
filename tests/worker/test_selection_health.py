"""The judge is the definition, in loops over queries and blocks."""

import pytest
import torch

from nsa_lib.subject.attention import select_blocks
from nsa_lib.subject.config import NSAConfig
from nsa_lib.worker.selection_health import NEAR_TIE, STUCK, Selection, near_ties, selection_health

CONFIG = NSAConfig(dim=8, heads=4, groups=2, d_k=4, d_v=4, l=4, d=4, l_sel=4, n_sel=5, w=14)
LENGTH = 61


def scores(length=LENGTH, batch=2):
    return torch.rand(batch, CONFIG.groups, length, -(-length // CONFIG.l_sel), dtype=torch.float64)


def chosen(scores):
    return select_blocks(scores, l_sel=CONFIG.l_sel, n_sel=CONFIG.n_sel)


def queries(blocks):
    """Yield, for each query that has more blocks than it reads: its place, its set, what it picked, the set before."""
    for b, sequence in enumerate(blocks.tolist()):
        for g, group in enumerate(sequence):
            for t, row in enumerate(group):
                own = t // CONFIG.l_sel
                if own + 1 > CONFIG.n_sel:
                    picked = {block for block in row if block not in (0, own, own - 1)}
                    yield (b, g, t), set(row), picked, set(group[t - 1])


def test_every_share_is_that_of_loops():
    blocks = chosen(scores())
    found = Selection.of(blocks, CONFIG.l_sel)
    first = CONFIG.n_sel * CONFIG.l_sel
    read = picked = forced = kept = of = window = 0
    counts = {}
    for (b, g, t), row, free, before in queries(blocks):
        read, picked, forced = read + len(row), picked + len(free), forced + len(row - free)
        if t > first:
            kept, of = kept + len(free & before), of + len(free)
        window += sum(all(t - CONFIG.w < block * CONFIG.l_sel + i for i in range(CONFIG.l_sel)) for block in free)
        for block in free:
            counts[b, g, block] = counts.get((b, g, block), 0) + 1
    assert found.forced() == pytest.approx(forced / read)
    assert found.overlap() == pytest.approx(kept / of)
    assert found.in_window(CONFIG.w) == pytest.approx(window / picked)
    assert 0 < found.in_window(CONFIG.w) < 1
    last_own = (LENGTH - 1) // CONFIG.l_sel
    places = [(b, g, block) for b in range(2) for g in range(2) for block in range(1, last_own - 1)]
    assert found.candidates == last_own - 2
    assert found.counts().flatten().tolist() == [counts.get(place, 0) for place in places]
    assert found.never_picked() == pytest.approx(sum(place not in counts for place in places) / len(places))


def test_near_ties_are_those_of_loops():
    exact = scores()
    exact[0, :, 30:, 1:] = 0.25 + exact[0, :, 30:, 1:] * 2.0**-7  # many of these nearly tie
    positions = torch.arange(0, LENGTH, 3)
    tied = of = 0
    for b in range(2):
        for g in range(2):
            for t in positions.tolist():
                own = t // CONFIG.l_sel
                if own + 1 > CONFIG.n_sel:
                    ranked = sorted((float(exact[b, g, t, block]) for block in range(1, own - 1)), reverse=True)
                    last, left = ranked[CONFIG.n_sel - 4], ranked[CONFIG.n_sel - 3]
                    tied, of = tied + (last - left <= NEAR_TIE * last), of + 1
    assert 0 < tied < of
    assert near_ties(exact[:, :, positions], positions, CONFIG) == pytest.approx(tied / of)


def test_equal_scores_all_tie_and_far_ones_do_not():
    t = torch.arange(LENGTH)
    assert near_ties(torch.ones(1, 2, LENGTH, 16), t, CONFIG) == 1
    assert near_ties(torch.zeros(1, 2, LENGTH, 16), t, CONFIG) == 1  # nothing tells them apart either
    assert near_ties((2.0 ** torch.arange(16)).expand(1, 2, LENGTH, 16), t, CONFIG) == 0


def test_a_choice_of_the_newest_blocks_lies_in_a_window_that_holds_them():
    newest = chosen(torch.arange(16.0).expand(1, 2, LENGTH, 16))
    found = Selection.of(newest, CONFIG.l_sel)
    assert found.in_window(4 * CONFIG.l_sel + 4) == 1
    assert found.in_window(2 * CONFIG.l_sel) == 0
    assert found.overlap() == 1  # what becomes old enough to be picked was read before


def test_a_choice_of_the_same_blocks_agrees_and_leaves_the_others():
    same = chosen((-torch.arange(16.0)).expand(1, 2, LENGTH, 16))
    found = Selection.of(same, CONFIG.l_sel)
    assert found.overlap() == 1
    assert found.never_picked() == pytest.approx(1 - 2 / found.candidates)


def test_who_reads_all_there_is_chooses_nothing():
    short = CONFIG.n_sel * CONFIG.l_sel
    assert Selection.of(chosen(scores(short)), CONFIG.l_sel) is None
    assert near_ties(scores(short), torch.arange(short), CONFIG) is None
    one = Selection.of(chosen(scores(short + 1)), CONFIG.l_sel)
    assert one.blocks.shape[2] == 1
    assert one.overlap() is None


def test_three_blocks_are_all_forced():
    blocks = select_blocks(scores(), l_sel=CONFIG.l_sel, n_sel=3)
    found = Selection.of(blocks, CONFIG.l_sel)
    assert found.forced() == 1
    assert found.overlap() is None
    assert found.in_window(CONFIG.w) is None
    assert found.never_picked() == 1


BRANCHES = ("cmp", "slc", "win")


def test_gates_that_never_leave_an_end_are_stuck():
    gates = torch.full((2, 4, 30, 3), 0.5)
    gates[:, 1, :, 1] = STUCK  # head 1 is shut, head 2 all but once, head 3 open
    gates[:, 2, :, 1] = 0.0
    gates[1, 2, 7, 1] = 2 * STUCK
    gates[:, 3, :, 2] = 1.0
    found = selection_health(chosen(scores()), l_sel=4, w=14, gates=gates, gate_names=BRANCHES)
    assert (found.shut, found.wide_open) == ({"cmp": 0, "slc": 1, "win": 0}, {"cmp": 0, "slc": 0, "win": 1})
    assert found.heads == 4
    assert found.gates["slc"] == pytest.approx((2 * 0.5 + STUCK + 2 * STUCK / 60) / 4, abs=1e-6)


def test_all_that_is_found_stands_in_one_record():
    blocks = chosen(scores())
    found, selection = selection_health(blocks, l_sel=4, w=14, gates=None, gate_names=()), Selection.of(blocks, 4)
    assert found.choosing == pytest.approx((LENGTH - 20) / LENGTH)
    assert (found.overlap, found.forced) == (selection.overlap(), selection.forced())
    assert (found.in_window, found.never_picked) == (selection.in_window(14), selection.never_picked())
    assert (found.near_ties, found.gates, found.heads) == (None, {}, None)
    assert selection_health(blocks, l_sel=4, w=14, gates=None, gate_names=(), ties=0.25).near_ties == 0.25
    short = selection_health(blocks[:, :, :20], l_sel=4, w=14, gates=None, gate_names=())
    assert (short.choosing, short.overlap, short.in_window) == (0, None, None)


def test_the_share_of_tiles_over_a_union_is_their_mean():
    options = {"l_sel": 4, "w": 14, "gates": None, "gate_names": ()}
    tiles = torch.tensor([[[1, 0, 0, 1]]], dtype=torch.int32)
    assert selection_health(chosen(scores()), **options, by_union=tiles).by_union == 0.5
    assert selection_health(chosen(scores()), **options).by_union is None
