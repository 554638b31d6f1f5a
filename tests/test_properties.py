"""What must hold for every input: the choice of blocks, their scores, and the reading of parameters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_lib.runs.parameters import read_value
from nsa_lib.subject.attention import block_scores, select_blocks
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import QUESTIONS

settings.register_profile("workbook", max_examples=60, deadline=None, derandomize=True)

settings.load_profile("workbook")


@st.composite
def scored(draw):
    """Return scores [1, 1, T, N] with many ties, l_sel and n_sel."""
    l_sel, n_sel = draw(st.integers(1, 20)), draw(st.integers(3, 9))
    length = draw(st.integers(1, 90))
    levels = draw(st.sampled_from([1, 3, 1000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = draw(st.sampled_from([1e-6, 1.0, 1e4]))
    scores = torch.randint(levels, (1, 1, length, math.ceil(length / l_sel)), generator=generator).double() * size
    return scores, l_sel, n_sel


@given(scored())
def test_a_choice_is_causal_complete_and_by_score(case):
    scores, l_sel, n_sel = case
    chosen = select_blocks(scores, l_sel=l_sel, n_sel=n_sel)[0, 0]
    for query, row in enumerate(chosen.tolist()):
        own = query // l_sel
        blocks = [block for block in row if block >= 0]
        assert row == blocks + [-1] * (n_sel - len(blocks)), "padding stands at the end"
        assert blocks == sorted(set(blocks)), "ascending, none twice"
        assert len(blocks) == min(n_sel, own + 1)
        assert blocks[-1] <= own, "none from the future"
        fixed = {0, own, max(own - 1, 0)}
        assert fixed <= set(blocks)
        ranked = {block: (-scores[0, 0, query, block].item(), block) for block in range(own + 1) if block not in fixed}
        taken = [ranked[block] for block in blocks if block in ranked]
        left = [rank for block, rank in ranked.items() if block not in blocks]
        assert not taken or not left or max(taken) < min(left), "by score, ties to the lower index"


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 100), st.sampled_from([1, 2, 4]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_scores_keep_the_attention_they_are_given(d, blocks_in_l, ls_in_l_sel, length, groups, seed):
    l, l_sel = d * blocks_in_l, d * blocks_in_l * ls_in_l_sel
    compressed = max(0, (length - l) // d + 1)
    p = torch.rand(1, 4, length, compressed, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = block_scores(p, groups=groups, l=l, d=d, l_sel=l_sel)
    assert scores.shape == (1, groups, length, math.ceil(length / l_sel))
    # Each compressed block hands on its attention once for each stride that it spans.
    given_away = p.unflatten(1, (groups, -1)).sum(dim=(2, 4)) * blocks_in_l
    torch.testing.assert_close(scores.sum(dim=-1), given_away)
    assert (scores >= 0).all()


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.binary(max_size=5),
    st.lists(st.integers(-5, 5000), max_size=5), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(["true", "1e-4", "[128, 256]", "nan", "None", "../x", "<script>", "masked", "0x10", "1_0"]),
)  # fmt: skip

DECLARED = [(notebook, name) for notebook, question in QUESTIONS.items() for name in question.request.parameters]


@settings(max_examples=600)
@given(st.sampled_from(DECLARED), VALUES)
def test_a_value_is_read_in_its_type_or_refused_in_one_line_that_names_it(declared, value):
    notebook, name = declared
    parameter = QUESTIONS[notebook].request.parameters[name]
    try:
        read, refusal = read_value(QUESTIONS[notebook].request.parameters, name, value), None
    except ConfigError as error:
        read, refusal = None, str(error)
    if refusal is not None:
        assert refusal.startswith(f"{name}=")
        assert len(refusal.splitlines()) == 1
        return
    if read is None:
        assert parameter.default is None
        return
    assert read in parameter.also or type(read) is (tuple if parameter.kind is list else parameter.kind)
    assert not parameter.choices or read in parameter.choices
    if parameter.kind is float:
        assert math.isfinite(read)
    # What was read is read again as itself, from the text that a command line makes of it.
    text = str(list(read)) if parameter.kind is list else str(read)
    assert read_value(QUESTIONS[notebook].request.parameters, name, text) == read


@pytest.mark.parametrize("given_", ["[128, 256]", [128, 256], (128.0, "256")])
def test_a_list_of_lengths_is_read(given_):
    assert read_value(QUESTIONS["backward_scaling"].request.parameters, "seq_lens", given_) == (128, 256)


@pytest.mark.parametrize(
    "given_", ["128", 128, [], "[]", [256, 128], [128, 128], [0, 128], ["x"], "[1,", [1.5], [True]]
)
def test_what_is_no_ascending_list_of_lengths_is_refused(given_):
    with pytest.raises(ConfigError, match="seq_lens="):
        read_value(QUESTIONS["backward_scaling"].request.parameters, "seq_lens", given_)
