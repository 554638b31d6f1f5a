"""The maps of what the attention looks at."""

import numpy as np
import pytest

from nsa_lib.report.charts.attention_map import NOT_KEPT, gate_map, selection_map
from nsa_lib.subject.config import ConfigError
from tests.made import with_case
from tests.workbook.explore.made import MAP, smoke
from tests.workbook.smoke.made import healthy


def test_the_selection_map_shows_shares_and_leaves_the_future_empty():
    figure = selection_map(smoke(), layer=1)
    shown = np.array(figure.data[0].z, dtype=float)
    assert np.isnan(shown[np.triu_indices(3, k=1)]).all()
    assert shown[2].tolist() == [1, 0.25, 1]
    assert figure.layout.xaxis.title.text == "key block (64 tokens)"
    assert figure.layout.yaxis.title.text == "query block (64 tokens)"
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], "query 0 is on top"
    assert figure.layout.coloraxis.colorbar.title.text == "share of queries"
    assert "layer 1 of 2" in figure.layout.title.subtitle.text
    for layer in (0, 3):
        with pytest.raises(ConfigError, match=f"layer={layer}: accepts 1 to 2"):
            selection_map(smoke(), layer=layer)


def test_the_gate_map_has_a_panel_for_each_branch():
    figure = gate_map(smoke())
    assert [np.array(panel.z).tolist() for panel in figure.data] == [
        [[layer[0][branch]] * 4 for layer in MAP["branch_gates"]] for branch in range(3)
    ]
    assert [list(panel.y) for panel in figure.data] == [[1, 2]] * 3, "layers count from 1, as everywhere"
    assert [title.text for title in figure.layout.annotations] == ["compressed", "selected", "sliding"]
    assert figure.layout.coloraxis.colorbar.title.text == "mean gate"
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert "selected 0.375" in figure.layout.title.subtitle.text


@pytest.mark.parametrize("kept", [None, {**MAP, "selected": []}])
def test_a_run_that_kept_no_map_says_so(kept):
    evidence = with_case(healthy("laptop"), "training", attention_map=kept)
    assert NOT_KEPT in selection_map(evidence, layer=1).layout.title.subtitle.text
    assert bool(gate_map(evidence).data) == (kept is not None and kept != "null")
