import json

import pytest
import torch

from tests.bench_gpu.problem import kept_blocks
from tests.bench_selection import captured
from tests.bench_selection.captured import continued, pack, unpack, why_not
from tests.bench_selection.layers import union_size

SIZES = {"l_sel": 16, "n_sel": 6}


def made(length=512, *, groups=3, redrawn=0.1):
    generator = torch.Generator().manual_seed(0)
    return kept_blocks(groups, length, **SIZES, redrawn=redrawn, generator=generator, device="cpu")[0]


@pytest.mark.parametrize("length", [40, 250, 512])
def test_what_is_packed_is_unpacked(length):
    blocks = made(length)
    packed = json.loads(json.dumps(pack(blocks, 16)))
    assert torch.equal(unpack(packed), blocks)
    assert {name: packed[name] for name in ("groups", "length", "n_sel", "l_sel")} == {
        "groups": 3, "length": length, "n_sel": 6, "l_sel": 16
    }  # fmt: skip


def test_as_many_groups_are_kept_as_fit(monkeypatch):
    blocks, whole = made(), len(pack(made(), 16)["bits"])
    monkeypatch.setattr(captured, "MOST_CHARACTERS", whole - 1)
    packed = pack(blocks, 16)
    assert packed["groups"] == 2
    assert torch.equal(unpack(packed), blocks[:2])
    monkeypatch.setattr(captured, "MOST_CHARACTERS", 10)
    with pytest.raises(ValueError, match="one group's selection takes"):
        pack(blocks, 16)


def test_a_real_size_fits_even_where_neighbours_do_not_agree():
    generator = torch.Generator().manual_seed(0)
    blocks = kept_blocks(1, 8192, l_sel=64, n_sel=16, redrawn=1.0, generator=generator, device="cpu")[0]
    assert len(pack(blocks, 64)["bits"]) < captured.MOST_CHARACTERS


@pytest.mark.parametrize("length", [100, 512, 700, 4096])
def test_a_continued_selection_keeps_the_rules(length):
    found = continued(made(), length, l_sel=16, groups=5)
    assert (found.shape, found.dtype) == ((5, length, 6), torch.int32)
    assert torch.equal(found[:3, :512], made()[:, :length])
    for group in found.tolist():
        for query, row in enumerate(group):
            own = query // 16
            chosen = [block for block in row if block >= 0]
            assert row == sorted(set(chosen)) + [-1] * (6 - len(chosen))
            assert len(chosen) == min(own + 1, 6)
            assert {0, max(own - 1, 0), own} <= set(chosen) <= set(range(own + 1))


def test_a_continued_selection_changes_as_the_captured_one():
    was, now = made(), continued(made(), 4096, l_sel=16, groups=3)
    for tile in (4, 16):
        assert union_size(now[None, :, 256:], tile) == pytest.approx(union_size(was[None, :, 256:], tile), rel=1e-6)
    assert now[:, -1].max() == 255
    counts = torch.bincount(now[:, 2048:].flatten().long(), minlength=256)
    assert (counts[1:240] > 0).double().mean() > 0.9  # the old ones too, not only those near by


def test_repeated_groups_read_other_blocks():
    now = continued(made(groups=1), 2048, l_sel=16, groups=2)
    assert not torch.equal(now[0, 1600:], now[1, 1600:])


@pytest.mark.parametrize("length", [96, 528])
def test_what_is_too_short_to_be_continued_is_refused(length):
    with pytest.raises(ValueError, match="accepts twice a multiple of l_sel=16"):
        continued(made(length), 1024, l_sel=16, groups=3)


def test_why_a_layout_cannot_be_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(captured, "FILE", tmp_path / "selection.json")
    assert "was captured yet" in why_not(6, 16)
    captured.FILE.write_text(json.dumps({"captured": pack(made(), 16)}))
    assert why_not(6, 16) == ""
    assert torch.equal(captured.captured(), made())
    assert why_not(16, 64) == "the captured selection has n_sel=6, l_sel=16"
