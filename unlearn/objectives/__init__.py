"""Objectives: pure functions from per-token statistics to un-averaged values. They import only torch,
and pydantic for types.

Shapes: N answer tokens of all sequences of a batch, B sequences; `lengths` [B] splits N into examples.
Log-probabilities are natural logarithms. A positional parameter names a statistic
(`unlearn.statistics.STATISTICS`); statistics that no parameter names are not computed. A keyword-only
parameter is a hyper-parameter, and its annotation bounds its values (`PositiveFloat`). The shape in the
return annotation, "N" or "B", decides what is averaged over: answer tokens or sequences of the global batch.
"""
