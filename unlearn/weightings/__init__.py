"""Weightings: pure functions from per-token statistics to the weight of each token. They import torch alone.

Shapes, names of needs and what keyword-only means are those of `unlearn.objectives`; what returns is [N],
fp32 and detached: a weight says how hard a token is pulled and is itself never pulled on. A weighting that
needs only `logp` and `ref_logp` is elementwise: `_granularity` may call it with the log-confidences
[B] of whole answers. Exponents are ≥ 0.
"""
