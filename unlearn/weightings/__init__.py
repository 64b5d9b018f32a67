"""Weightings: pure functions from per-token statistics to the weight of each token. They import only torch,
and pydantic for types.

Shapes, statistics and hyper-parameters are as in `unlearn.objectives`. The result is [N], fp32 and detached:
a weight has no gradient. A weighting that needs only `logp` and `ref_logp` is elementwise: `_granularity` may
call it with the log-confidences [B] of whole answers. Exponents are ≥ 0.
"""
