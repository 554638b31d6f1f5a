"""The Triton kernels of the fused attention; nothing else imports triton.

Letters: B batch, T queries, H heads, G groups, GS = H / G heads a group, D width of queries and keys, E of values, both
as powers of two DP and EP, C keys of a band, N selection blocks of BS tokens, n blocks a query (NP as a power of two).
M or TQ queries and BN keys make a tile.

Queries, keys and values are [B, heads, T, width] with any strides but the last, which is 1. What a kernel writes for
each token (outputs, gradients) is laid out by token, [B, T, heads, width], and lies without gaps; log-sum-exps are
float32 in nats, [B, H, T]. Offsets over whole tensors are int64. Nothing is added atomically in floating point, so two
runs give the same bits.
"""
