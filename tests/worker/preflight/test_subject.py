"""The layer that is judged is small, and like the one of the run in all that decides."""

from nsa_lib.worker.preflight.subject import judged_sizes
from tests.worker.preflight.planted import NSA


def test_the_judged_layer_keeps_widths_and_share_and_scores_decide():
    small, length = judged_sizes(NSA)
    assert (small.d_k, small.d_v, small.l, small.d, small.l_sel, small.phi) == (16, 8, 8, 8, 16, "mlp")
    assert small.heads // small.groups == NSA.heads // NSA.groups
    assert length // small.l_sel > small.n_sel
    assert length % small.l_sel
    assert length % small.d
