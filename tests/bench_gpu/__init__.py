"""The benchmark of attention on a GPU: `make bench-gpu`.

Everything that is compared is measured in one run on one device: dense attention, every backend of the selected branch,
every part of the `fused` backend, fla-core's kernel where it applies, and the step of the whole model. A contestant is
compared with float64 before it is timed; what cannot run, or is wrong, is a row that says so and counts for nothing.

Letters: B batch, T = S tokens, H heads, G groups, D head width, C compressed tokens, N selection blocks.
"""
