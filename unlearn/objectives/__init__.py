"""Objectives: pure functions from per-token statistics to un-averaged values. They import torch alone.

Shapes: N answer tokens of all sequences of a batch together, B sequences; `lengths` [B] cuts N into
examples. Log-probabilities are natural logarithms. A positional parameter is the name of a
statistic (`unlearn.statistics.STATISTICS`): what is not named is not computed. A keyword-only parameter is a
hyper-parameter. The shape in the return annotation, "N" or "B", decides what is averaged over: answer tokens
or sequences of the global batch.
"""
