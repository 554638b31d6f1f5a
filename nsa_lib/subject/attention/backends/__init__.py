"""The backends of the selected branch: one function, several ways to compute it.

Each takes q [B, H, T, D], k [B, G, T, D], v [B, G, T, d_v], block_indices int64 [B, G, T, n] of which every row sees at
least one token, `l_sel` and `scale`, and returns [B, H, T, d_v]. There is no fallback from one to another. Each
runs in a profiler range that it names itself (`protocol.ROUTE_PREFIX`), so that a profile shows which one ran. `fused`
is the selected branch of `attention.fused`, which computes the other branches too.
"""

from nsa_lib.subject.attention.backends.gather import gather
from nsa_lib.subject.attention.backends.masked import masked
from nsa_lib.subject.attention.backends.packed import packed
from nsa_lib.subject.attention.fused import selected_attention as fused

BACKENDS = {"masked": masked, "gather": gather, "packed": packed, "fused": fused}
