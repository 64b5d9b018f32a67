"""Granularities of a weighting: each token, groups of tokens, whole answers or the whole batch.

After dataloader_granu.py of arXiv 2505.11953. Shapes as in `unlearn.weightings`: N answer tokens, B
sequences, `lengths` [B] cuts N. Weights are fp32 and detached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from unlearn.statistics import CONFIDENCES
from unlearn.weightings._rank import ascending

GRANULARITIES = ("token", "group", "instance", "batch")
Weighing = Callable[..., Tensor]
"""A weighting with its hyper-parameters; takes statistics by name."""


def token_weights(
    weigh: Weighing,
    named: Mapping[str, Tensor],
    lengths: Tensor,
    *,
    granularity: str = "token",
    group_size: int = 10,
    length_norm: bool = False,
    batch_mean: Tensor | float | None = None,
    normalise: bool = False,
) -> Tensor:
    """Return the weight [N] of each token.

    - token: the weighting of the token.
    - group: the mean over its group. A sequence's weights in descending order are split into groups of
      `group_size`, the last one shorter.
    - instance: the weighting of the whole answer (`instance_weights`).
    - batch: `batch_mean`, the mean of the instance weights over the global batch.

    `normalise` scales each sequence to a mean weight of one, so that hard selection is the mean over the kept
    tokens. A sequence whose weights are all zero stays so.

    Args:
        named: the weighting's statistics by name, all of which it gets (token, group).

    Raises:
        ValueError: an unknown granularity; a weighting that is not elementwise, at instance granularity;
            no batch mean, at batch granularity; a group size below one.
    """
    if granularity == "token":
        weights = weigh(**named)
    elif granularity == "group":
        weights = group_means(weigh(**named), lengths, group_size)
    elif granularity == "instance":
        weights = instance_weights(weigh, named, lengths, length_norm=length_norm)
        weights = weights.repeat_interleave(lengths, output_size=_tokens(named))
    elif granularity == "batch":
        if batch_mean is None:
            raise ValueError("granularity=batch needs the mean of the instance weights over the global batch")
        weights = torch.ones(_tokens(named), device=lengths.device) * batch_mean
    else:
        raise ValueError(f"granularity={granularity}: not one of {', '.join(GRANULARITIES)}")
    return _mean_one(weights, lengths) if normalise else weights


def instance_weights(
    weigh: Weighing, named: Mapping[str, Tensor], lengths: Tensor, *, length_norm: bool = False
) -> Tensor:
    """Return the weight [B] of each answer: an elementwise weighting of the answer's confidence.

    The confidence is the product of the tokens' probabilities, as in the released code; it vanishes for long
    answers (fifty tokens of 0.9: 5e-3). With `length_norm` it is their geometric mean.

    Raises:
        ValueError: the weighting needs more than log-probabilities.
    """
    if more := sorted(set(named) - CONFIDENCES):
        raise ValueError(
            f"a weighting that needs {', '.join(more)} weighs tokens, not answers: granularity=token"
        )
    confidence = {name: _sum(values.detach().float(), lengths) for name, values in named.items()}
    if length_norm:
        confidence = {name: total / lengths.clamp(min=1) for name, total in confidence.items()}
    return weigh(**confidence)


def group_means(weights: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Replace each token's weight [N] by the mean over its group of `size` in descending order."""
    if size < 1:
        raise ValueError(f"group_size={size}: a group holds at least one token")
    order, rank = ascending(-weights, lengths)
    firsts = (rank % size == 0).nonzero()[:, 0]
    sizes = firsts.diff(append=firsts.new_tensor([len(weights)]))
    means = _sum(weights[order], sizes) / sizes
    return torch.empty_like(weights).scatter_(
        0, order, means.repeat_interleave(sizes, output_size=len(weights))
    )


def _mean_one(weights: Tensor, lengths: Tensor) -> Tensor:
    mean = _sum(weights, lengths) / lengths.clamp(min=1)
    return weights / mean.where(mean > 0, 1.0).repeat_interleave(lengths, output_size=len(weights))


def _sum(values: Tensor, lengths: Tensor) -> Tensor:
    return torch.segment_reduce(values, "sum", lengths=lengths)


def _tokens(named: Mapping[str, Tensor]) -> int:
    return len(next(iter(named.values())))
